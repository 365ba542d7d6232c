"""A real gateway process before a real service process: streaming, limits, failure and drain."""

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import aiohttp
import psutil
import pytest
from yarl import URL

from gateway.routes import SERVICES
from shared.testing import free_port

UPSTREAM = """
import asyncio
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

seen = {"cancelled": 0}

async def echo(request):
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
    return JSONResponse({"size": size, "headers": dict(request.headers), "query": str(request.url.query)})

async def slow(request):
    await asyncio.sleep(float(request.query_params.get("seconds", 1)))
    return JSONResponse({"slept": True})

async def watched(request):
    while not await request.is_disconnected():
        await asyncio.sleep(0.02)
    seen["cancelled"] += 1

async def counts(request):
    return JSONResponse(seen)

async def drip(request):
    async def parts():
        for number in range(3):
            yield f"{number}".encode()
            await asyncio.sleep(0.3)
    return StreamingResponse(parts())

async def broken(request):
    async def parts():
        yield b"some"
        raise RuntimeError("broken")
    return StreamingResponse(parts(), headers={"content-length": "100"})

async def problem(request):
    return JSONResponse({"type": "urn:x", "status": 418}, 418, media_type="application/problem+json")

async def ready(request):
    return JSONResponse({"status": "ready"})

routes = [Route("/v1/iqa/" + f.__name__, f, methods=["GET", "POST"]) for f in
          (echo, slow, watched, counts, drip, broken, problem)]
app = Starlette(routes=[*routes, Route("/readyz", ready)])
"""


class Stack:
    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self.socket = folder / "up.sock"
        (folder / "toy_upstream.py").write_text(UPSTREAM)
        self.environment = {
            **os.environ,
            "FOURFOLD_HOME": str(folder),
            "FOURFOLD_SERVICES": json.dumps(dict.fromkeys(SERVICES, f"unix://{self.socket}")),
            "FOURFOLD_MAX_BODY_BYTES": str(100 << 20),
            "FOURFOLD_KEY_CACHE_SECONDS": "0.1",
        }
        self.upstream = self.start_upstream()
        self.gateway = subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", "gateway.app:create_app", "--factory", "--port", str(self.port)),
                *("--http", "shared.connections:GuardedProtocol", "--timeout-graceful-shutdown", "10"),
                *("--log-level", "warning"),
            ],
            env=self.environment,
        )
        self.url = f"http://127.0.0.1:{self.port}"

    def start_upstream(self):
        command = [
            sys.executable,
            "-m",
            "uvicorn",
            "toy_upstream:app",
            "--uds",
            str(self.socket),
            "--log-level",
            "critical",
        ]
        return subprocess.Popen([*command, "--app-dir", str(self.folder)], env=self.environment)

    async def wait(self):
        async with aiohttp.ClientSession() as session, asyncio.timeout(90):
            while True:
                try:
                    async with session.get(f"{self.url}/readyz") as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.05)

    @property
    def key(self):
        return (self.folder / "key").read_text().strip()

    def session(self, key=None):
        return aiohttp.ClientSession(self.url, headers={"Authorization": f"Bearer {key or self.key}"})

    def stop(self):
        for process in (self.gateway, self.upstream):
            process.terminate()
        for process in (self.gateway, self.upstream):
            process.wait(20)


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = Stack(tmp_path_factory.mktemp("g"))
    asyncio.run(stack.wait())
    yield stack
    stack.stop()


async def problem_of(answer):
    document = await answer.json(content_type=None)
    assert answer.headers["content-type"] == "application/problem+json"
    assert document["status"] == answer.status
    assert document["request_id"] == answer.headers["X-Request-ID"]
    return document["type"].removeprefix("urn:fourfold:problem:")


async def test_what_is_handed_on_and_what_is_not(stack):
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    headers = {
        "Fourfold-Principal": "somebody else",
        "X-Request-ID": "mine",
        "traceparent": trace,
        "X-Custom": "1",
        "Fourfold-Deadline-Ms": "5000",
    }
    async with (
        stack.session() as session,
        session.post(URL(f"{stack.url}/v1/iqa/echo?a=b%2Fc", encoded=True), data=b"x" * 10, headers=headers) as answer,
    ):
        document = await answer.json()
    got = document["headers"]
    assert document["size"] == 10
    assert document["query"] == "a=b%2Fc"
    assert (got["x-request-id"], got["traceparent"], got["x-custom"]) == ("mine", trace, "1")
    assert 0 < int(got["fourfold-deadline-ms"]) <= 5000
    assert "authorization" not in got
    assert got["fourfold-principal"] not in ("", "somebody else")
    assert answer.headers["X-Request-ID"] == "mine"


async def test_keys_and_scopes(stack):
    async with aiohttp.ClientSession(stack.url) as session:
        async with session.get("/v1/iqa/echo") as answer:
            assert (answer.status, await problem_of(answer)) == (401, "unauthenticated")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        async with session.get("/v2/models/iqa") as answer:
            assert answer.status == 401
            assert set(await answer.json()) == {"error"}
    async with stack.session("ff_wrong") as session, session.get("/v1/iqa/echo") as answer:
        assert answer.status == 401
    async with stack.session() as admin:
        async with admin.post("/v1/keys", json={"name": "reader", "scopes": ["predict"]}) as answer:
            assert answer.status == 201
            made = await answer.json()
        async with stack.session(made["secret"]) as reader:
            async with reader.get("/v1/iqa/echo") as answer:
                assert answer.status == 200
            for method, path in (("GET", "/v1/keys"), ("POST", "/v1/iqa/training-jobs")):
                async with reader.request(method, path) as answer:
                    assert (answer.status, await problem_of(answer)) == (403, "forbidden")
            async with admin.delete(f"/v1/keys/{made['id']}") as answer:
                assert (await answer.json())["revoked_at"] is not None
            async with reader.get("/v1/iqa/echo") as answer:
                assert answer.status == 401
        async with admin.get("/v1/keys") as answer:
            assert any(key["id"] == made["id"] for key in (await answer.json())["keys"])


async def test_problems_of_the_service_pass_untouched(stack):
    async with stack.session() as session, session.get("/v1/iqa/problem") as answer:
        assert (answer.status, await answer.json(content_type=None)) == (418, {"type": "urn:x", "status": 418})


async def test_answers_stream(stack):
    started = time.monotonic()
    async with stack.session() as session, session.get("/v1/iqa/drip") as answer:
        first = await answer.content.read(1)
        assert first == b"0"
        assert time.monotonic() - started < 0.3
        assert await answer.read() == b"12"


async def test_uploads_stream_and_memory_stays_flat(stack):
    process = psutil.Process(stack.gateway.pid)
    before = process.memory_info().rss

    async def parts():
        for _ in range(60):
            yield b"x" * (1 << 20)

    async with stack.session() as session, session.post("/v1/iqa/echo", data=parts()) as answer:
        assert (await answer.json())["size"] == 60 << 20
    assert process.memory_info().rss - before < 24 << 20


async def test_an_endless_body_is_cut_off(stack):
    async def endless():
        while True:
            yield b"x" * (1 << 20)

    async with stack.session() as session:
        try:
            async with session.post("/v1/iqa/echo", data=endless()) as answer:
                assert (answer.status, await problem_of(answer)) == (413, "payload-too-large")
        except (aiohttp.ClientError, ConnectionError):
            pass  # the connection may be closed while the client still sends
        async with session.post("/v1/iqa/echo", data=b"ok") as answer:
            assert (await answer.json())["size"] == 2


async def test_a_declared_body_above_the_limit_is_refused_at_once(stack):
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    lines = ["POST /v1/iqa/echo HTTP/1.1", "Host: x", f"Authorization: Bearer {stack.key}"]
    writer.write("\r\n".join([*lines, "Content-Length: 999999999999", "", ""]).encode())
    assert b"413" in await asyncio.wait_for(reader.readline(), 2)
    writer.close()


async def test_a_deadline_ends_the_wait(stack):
    started = time.monotonic()
    headers = {"Fourfold-Deadline-Ms": "200"}
    async with stack.session() as session, session.get("/v1/iqa/slow?seconds=5", headers=headers) as answer:
        assert (answer.status, await problem_of(answer)) == (504, "deadline-exceeded")
    assert time.monotonic() - started < 2


async def test_a_client_that_leaves_cancels_the_service(stack):
    async with stack.session() as session:
        async with session.get("/v1/iqa/counts") as answer:
            before = (await answer.json())["cancelled"]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.4), session.get("/v1/iqa/watched"):
                pass
        async with asyncio.timeout(5):
            while True:
                async with session.get("/v1/iqa/counts") as answer:
                    if (await answer.json())["cancelled"] > before:
                        break
                await asyncio.sleep(0.05)


async def test_a_service_that_breaks_off_never_looks_whole(stack):
    async with stack.session() as session:
        with pytest.raises(aiohttp.ClientError):
            async with session.get("/v1/iqa/broken") as answer:
                await answer.read()


async def test_a_service_that_is_down_gives_503_quickly_and_comes_back(stack):
    async with stack.session() as session:
        stack.upstream.kill()
        stack.upstream.wait()
        started = time.monotonic()
        async with session.get("/v1/iqa/echo") as answer:
            assert (answer.status, await problem_of(answer)) == (503, "upstream-unavailable")
            assert "Retry-After" in answer.headers
        assert time.monotonic() - started < 1
        async with session.get("/readyz") as answer:
            assert answer.status == 503
        stack.upstream = stack.start_upstream()
        await stack.wait()
        async with session.get("/v1/iqa/echo") as answer:
            assert answer.status == 200


async def test_ten_thousand_idle_connections(stack):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 12_000), hard))
    process = psutil.Process(stack.gateway.pid)
    before = process.memory_info().rss
    connections = []
    try:
        for _ in range(min(10_000, min(hard, 12_000) - 500)):
            connection = socket.socket()
            connection.settimeout(5)
            connection.connect(("127.0.0.1", stack.port))
            connections.append(connection)
        async with stack.session() as session, session.post("/v1/iqa/echo", data=b"ok") as answer:
            assert answer.status == 200
        assert process.memory_info().rss - before < 96 << 20
        assert len(connections) > 900
    finally:
        for connection in connections:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_sigterm_lets_what_runs_finish(tmp_path):
    stack = Stack(tmp_path)
    try:
        await stack.wait()
        async with stack.session() as session:
            threading.Timer(0.4, lambda: stack.gateway.send_signal(signal.SIGTERM)).start()
            async with session.get("/v1/iqa/slow?seconds=1.2") as answer:
                assert (await answer.json())["slept"] is True
        assert stack.gateway.wait(10) in (0, -signal.SIGTERM)
    finally:
        stack.stop()
