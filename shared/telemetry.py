"""Structured logs, Prometheus metrics and request identity for every process, as one pure ASGI middleware."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.registry import REGISTRY
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.settings import Settings

REQUEST_ID_HEADER = "X-Request-ID"
DEADLINE_HEADER = "Fourfold-Deadline-Ms"  # milliseconds left for this request, set by the caller or the gateway
DEADLINE_BYTES = DEADLINE_HEADER.lower().encode()
SLOW_SECONDS = 5.0

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}\Z")
_TRACEPARENT = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")
_current_request: ContextVar[str | None] = ContextVar("fourfold_request_id", default=None)

REQUESTS = Counter("fourfold_requests", "Finished requests.", ["service", "route", "method", "status"])
LATENCY = Histogram(
    "fourfold_request_seconds",
    "Time from the request's first byte to its answer's last.",
    ["service", "route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
IN_FLIGHT = Gauge("fourfold_requests_in_flight", "Requests being answered.", ["service"], multiprocess_mode="livesum")


def _add_request_id(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    request_id = _current_request.get()
    if request_id is not None:
        event.setdefault("request_id", request_id)
    return event


def configure_logging(settings: Settings, service: str) -> None:
    """Send structlog and the standard library's loggers to stderr in one format, each line naming `service`."""

    def add_service(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
        return {"service": service, **event}

    shared_steps: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_service,
        _add_request_id,
    ]
    last = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared_steps,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared_steps, structlog.processors.format_exc_info],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())


def metrics_text() -> bytes:
    """This server's metrics in Prometheus' text form, summed over its processes when it has several."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        return generate_latest(registry)
    return generate_latest(REGISTRY)


def remaining_seconds(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """Time that the caller still gives this request, from the deadline header; None if it set none or nonsense."""
    for name, value in headers:
        if name == DEADLINE_BYTES and value.isdigit() and len(value) < 10:
            return int(value) / 1000
    return None


class Telemetry:
    """Give each request an id and a trace parent, count it, time it, and log it if it is worth a line.

    Sets `scope["fourfold.request_id"]` and `scope["fourfold.traceparent"]`; a route may set
    `scope["fourfold.route"]` to the low-cardinality name it is counted under (the matched route's path otherwise).
    """

    def __init__(self, app: ASGIApp, *, service: str, access_log: str = "problems") -> None:
        self.app = app
        self.service = service
        self.access_log = access_log
        self.log = structlog.get_logger("fourfold.access")
        self._in_flight = IN_FLIGHT.labels(service)
        self._children: dict[tuple[str, str, int], tuple[Any, Any]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given_id = given_trace = b""
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                given_id = value
            elif name == b"traceparent":
                given_trace = value
        request_id = given_id.decode() if _REQUEST_ID.match(given_id) else os.urandom(16).hex()
        if _TRACEPARENT.match(given_trace):
            traceparent = given_trace.decode()
        else:
            traceparent = f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-00"
        scope["fourfold.request_id"] = request_id
        scope["fourfold.traceparent"] = traceparent
        token = _current_request.set(request_id)
        status = 500
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        self._in_flight.inc()
        try:
            await self.app(scope, receive, send_with_id)
        finally:
            self._in_flight.dec()
            seconds = time.perf_counter() - started
            self._count(scope, status, seconds)
            _current_request.reset(token)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("fourfold.route") or getattr(scope.get("route"), "path", None) or "unmatched"
        method = scope["method"] if scope["method"] in {"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"} else "other"
        key = (route, method, status)
        children = self._children.get(key)
        if children is None:
            children = (REQUESTS.labels(self.service, route, method, status), LATENCY.labels(self.service, route))
            self._children[key] = children
        children[0].inc()
        children[1].observe(seconds)
        if self.access_log == "off":
            return
        worth = self.access_log == "all" or status >= 400 or seconds > SLOW_SECONDS
        if worth:
            emit = self.log.warning if status >= 500 else self.log.info
            emit("request", method=method, path=scope["path"], status=status, ms=round(seconds * 1000, 2))
