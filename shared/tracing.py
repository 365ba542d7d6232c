"""OpenTelemetry spans of requests, sent to a collector; off unless one is named. Needs the `tracing` extra."""

from __future__ import annotations

from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.settings import Settings


def tracing(settings: Settings, service: str) -> list[Middleware]:
    """The outermost middleware of an application: one, or none where no collector is set.

    Raises SystemExit with one line when a collector is set but the extra is not installed.
    """
    if settings.otlp_endpoint is None:
        return []
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
    except ImportError as error:
        raise SystemExit(f"fourfold: FOURFOLD_OTLP_ENDPOINT needs the extra `tracing` ({error})") from None
    provider = TracerProvider(
        resource=Resource.create({"service.name": f"fourfold-{service}"}),
        sampler=ParentBasedTraceIdRatio(settings.trace_share),
    )
    exporter = OTLPSpanExporter(endpoint=settings.otlp_endpoint.rstrip("/") + "/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return [Middleware(_Traced, provider=provider)]


class _Traced:
    """A span around each request. What is inside sees the span as the request's trace parent, and hands it on."""

    def __init__(self, app: ASGIApp, provider: Any) -> None:
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.app = app
        self._propagator = TraceContextTextMapPropagator()
        # Spans of single messages would cost more than the rest together.
        self._outer: Any = OpenTelemetryMiddleware(
            self._inner, tracer_provider=provider, exclude_spans=["receive", "send"]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._outer(scope, receive, send)

    async def _inner(self, scope: Scope, receive: Receive, send: Send) -> None:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        if "traceparent" in carrier and "headers" in scope:
            kept = [(name, value) for name, value in scope["headers"] if name != b"traceparent"]
            scope = {**scope, "headers": [*kept, (b"traceparent", carrier["traceparent"].encode())]}
        await self.app(scope, receive, send)
