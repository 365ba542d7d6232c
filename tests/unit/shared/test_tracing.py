"""Spans reach a collector, with the caller's trace; without a collector nothing is loaded."""

import asyncio
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from shared.service import create_service
from shared.settings import ServiceSettings
from shared.testing import running, toy_bundle, toy_domain
from shared.tracing import tracing


@pytest.fixture
def collector():
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    thread.join()
    server.server_close()


async def test_a_request_becomes_a_span_of_the_callers_trace(collector, tmp_path, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    url, received = collector
    settings = ServiceSettings(home=tmp_path, otlp_endpoint=url, trace_share=0.0)
    trace, parent = "ab" * 16, "cd" * 8
    async with running(create_service(toy_domain(toy_bundle(tmp_path / "b")), settings)) as client:
        await client.get("/v2/models/toy", headers={"traceparent": f"00-{trace}-{parent}-01"})
        await client.get("/healthz")  # not sampled: it belongs to no trace, and the share is nought
    end = time.monotonic() + 10
    while not received and time.monotonic() < end:
        await asyncio.sleep(0.05)
    path, body = received[0]
    assert path == "/v1/traces"
    [resource] = ExportTraceServiceRequest.FromString(body).resource_spans
    names = {item.key: item.value.string_value for item in resource.resource.attributes}
    assert names["service.name"] == "fourfold-toy"
    [span] = resource.scope_spans[0].spans
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (trace, parent)


def test_without_a_collector_there_is_no_middleware():
    assert tracing(ServiceSettings(), "toy") == []
