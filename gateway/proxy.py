"""Streams requests to the services and their answers back, buffering neither."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping

import aiohttp
import structlog
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from yarl import URL

from gateway.auth import Authenticator
from gateway.limits import Limits
from gateway.routes import Target, match
from gateway.settings import GatewaySettings
from shared.about import PRINCIPAL_HEADER
from shared.problems import DeadlineExceeded, FourfoldError, PayloadTooLarge, UpstreamUnavailable, problem_response
from shared.telemetry import DEADLINE_BYTES, DEADLINE_HEADER, remaining_seconds

log = structlog.get_logger(__name__)

# RFC 9110 section 7.6.1, and what the gateway speaks for itself. Credentials end here.
_NOT_FORWARDED = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"expect",
        b"authorization",
        b"x-api-key",
        b"x-request-id",
        b"traceparent",
        PRINCIPAL_HEADER.lower().encode(),
        DEADLINE_BYTES,
    }
)
_NOT_RETURNED = _NOT_FORWARDED | {b"date", b"server"}
# A request that takes longer than this is watched for its client going away.
WATCH_AFTER_SECONDS = 0.1
# Bodies that go to a file as they arrive, under the limits of data sets.
UPLOADS, UPLOADS_WHOLE = "/v1/datasets/files/", "/v1/datasets"


class Upstreams:
    """One pooled client session for each service. Open it inside the event loop."""

    def __init__(self, settings: GatewaySettings, services: tuple[str, ...]) -> None:
        self.addresses = {name: settings.address(name) for name in services}
        self._connect_timeout = settings.connect_timeout_seconds
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self._below: dict[str, list[tuple[str, str]]] = {}  # service → path prefixes that go elsewhere, longest first
        for name in sorted(settings.services, key=len, reverse=True):
            service, slash, _ = name.partition("/")
            if slash and service in services:
                self.addresses[name] = settings.services[name]
                self._below.setdefault(service, []).append((f"/v1/{name}/", name))

    async def open(self) -> None:
        for name, address in self.addresses.items():
            if address.startswith("unix://"):
                connector: aiohttp.BaseConnector = aiohttp.UnixConnector(address.removeprefix("unix://"), limit=0)
                base = "http://service"
            else:
                connector, base = aiohttp.TCPConnector(limit=0), address
            self._sessions[name] = aiohttp.ClientSession(
                base,
                connector=connector,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout),
            )

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()

    def session(self, service: str, path: str = "") -> aiohttp.ClientSession:
        """Of the service, or of those of its processes that `path` is for."""
        for prefix, name in self._below.get(service, ()):
            if f"{path}/".startswith(prefix):
                return self._sessions[name]
        return self._sessions[service]

    async def fetch(self, service: str, path: str, *, method: str = "GET", seconds: float = 2.0) -> tuple[int, bytes]:
        """(status, body) of a small answer of the gateway's own asking; raises UpstreamUnavailable."""
        try:
            timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=self._connect_timeout)
            async with self.session(service).request(method, path, timeout=timeout) as answer:
                return answer.status, await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError):
            raise UpstreamUnavailable(f"The service {service} is not answering.", retry_after=1) from None


class Proxy:
    """The ASGI application in front: requests that `routes` names go to their service, the others to `app`."""

    def __init__(
        self, app: ASGIApp, upstreams: Upstreams, auth: Authenticator, limits: Limits, settings: GatewaySettings
    ) -> None:
        self.app = app
        self.upstreams = upstreams
        self.auth = auth
        self.limits = limits
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        target = match(scope["method"], scope["path"])
        try:
            if target is None:
                await self._own(scope, receive, send)
                return
            scope["fourfold.route"] = target.label
            principal = await self.auth.authenticate(scope["headers"])
            principal.require(target.scope)
            async with self.limits.admit(principal.id):
                await _Exchange(self, scope, receive, send, target, principal.id).run()
        except FourfoldError as error:
            answer = problem_response(error, path=scope["path"], request_id=scope["fourfold.request_id"])
            await answer(scope, receive, send)

    async def _own(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What the gateway answers itself. Its routes read a body before they ask whose it is, and all of it: so the
        key is looked at first, and the body's size, but for uploads, which go to a file."""
        if scope["method"] in ("GET", "HEAD", "OPTIONS") or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        await self.auth.authenticate(scope["headers"])
        if scope["path"] == UPLOADS_WHOLE or (scope["method"] == "PUT" and scope["path"].startswith(UPLOADS)):
            await self.app(scope, receive, send)
            return
        limit, size = self.settings.max_body_bytes, 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                # FastAPI lets this one pass, and would turn any other into a 400.
                raise HTTPException(413, f"The body has more than the {limit} bytes that are taken.")
            return message

        await self.app(scope, counted, send)


class _Exchange:
    """One request on its way there and back."""

    def __init__(
        self, proxy: Proxy, scope: Scope, receive: Receive, send: Send, target: Target, principal_id: str
    ) -> None:
        self.proxy = proxy
        self.principal_id = principal_id
        self.scope = scope
        self.receive = receive
        self.send = send
        self.target = target
        self.limit = proxy.settings.max_body_bytes
        self.refusal: FourfoldError | None = None  # why the body's stream was broken off
        self.body_ended = False
        self.answering = False
        self.client_left = False
        self._watchers: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        headers, declared = self._headers()
        if declared is not None and declared > self.limit:
            raise PayloadTooLarge(f"The body has {declared} bytes; at most {self.limit} are taken.")
        seconds = self.proxy.settings.request_timeout_seconds
        asked = remaining_seconds(self.scope["headers"])
        seconds = seconds if asked is None else min(seconds, asked)
        ends = time.monotonic() + seconds
        headers[DEADLINE_HEADER] = str(int(seconds * 1000))
        first = await self.receive()
        if first["type"] == "http.disconnect":
            return
        body: bytes | AsyncIterator[bytes] | None
        if first.get("more_body", False):
            body = self._stream(first)
        else:
            self.body_ended = True
            whole: bytes = first.get("body", b"")
            if len(whole) > self.limit:
                raise PayloadTooLarge(f"The body has {len(whole)} bytes; at most {self.limit} are taken.")
            body = whole or None
        task = asyncio.current_task()
        watch = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, self._watch, task)
        try:
            await self._attempt(body, headers, ends, again=self.target.repeatable and self.body_ended)
        except asyncio.CancelledError:
            if not self.client_left:
                raise
            if task is not None:
                task.uncancel()
        finally:
            watch.cancel()
            for watcher in self._watchers:
                watcher.cancel()

    async def _attempt(
        self, body: bytes | AsyncIterator[bytes] | None, headers: Mapping[str, str], ends: float, *, again: bool
    ) -> None:
        service = self.target.service
        session = self.proxy.upstreams.session(service, self.scope["path"])
        timeout = aiohttp.ClientTimeout(
            total=max(0.001, ends - time.monotonic()), sock_connect=self.proxy.settings.connect_timeout_seconds
        )
        query = self.scope["query_string"]
        path = self.scope["raw_path"].decode("latin-1") if self.scope.get("raw_path") else self.scope["path"]
        url = f"{path}?{query.decode('latin-1')}" if query else path
        try:
            async with session.request(
                self.scope["method"],
                URL(url, encoded=True),
                data=body,
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
            ) as answer:
                await self._answer(answer)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            if self.answering:
                raise  # the server then closes the connection: a cut answer never looks like a whole one
            if self.refusal is not None:
                raise self.refusal from None
            if isinstance(error, aiohttp.ServerDisconnectedError) and again:
                await self._attempt(body, headers, ends, again=False)
                return
            if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientConnectionError):
                raise DeadlineExceeded() from None
            log.warning("service unavailable", upstream=service, error=f"{type(error).__name__}: {error}")
            raise UpstreamUnavailable(f"The service {service} is not answering.", retry_after=1) from None

    def _headers(self) -> tuple[dict[str, str], int | None]:
        headers: dict[str, str] = {
            "X-Request-ID": self.scope["fourfold.request_id"],
            "traceparent": self.scope["fourfold.traceparent"],
            PRINCIPAL_HEADER: self.principal_id,
        }
        declared = None
        for name, value in self.scope["headers"]:
            if name in _NOT_FORWARDED:
                continue
            if name == b"content-length":
                declared = int(value) if value.isdigit() else None
            key = name.decode("latin-1")
            text = value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        return headers, declared

    async def _stream(self, message: Message) -> AsyncIterator[bytes]:
        size = 0
        while True:
            if message["type"] == "http.disconnect":
                self.refusal = UpstreamUnavailable("The client went away.")
                raise self.refusal
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self.limit:
                self.refusal = PayloadTooLarge(f"The body has more than the {self.limit} bytes that are taken.")
                raise self.refusal
            if chunk:
                yield chunk
            if not message.get("more_body", False):
                self.body_ended = True
                return
            message = await self.receive()

    async def _answer(self, answer: aiohttp.ClientResponse) -> None:
        headers = [(name.lower(), value) for name, value in answer.raw_headers]
        headers = [(name, value) for name, value in headers if name not in _NOT_RETURNED]
        self.answering = True
        await self.send({"type": "http.response.start", "status": answer.status, "headers": headers})
        async for chunk in answer.content.iter_any():
            await self.send({"type": "http.response.body", "body": chunk, "more_body": True})
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    def _watch(self, task: asyncio.Task[None] | None) -> None:
        if self.body_ended and task is not None:
            self._watchers.append(asyncio.get_running_loop().create_task(self._cancel_if_left(task)))

    async def _cancel_if_left(self, task: asyncio.Task[None]) -> None:
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                self.client_left = True
                task.cancel()
                return
