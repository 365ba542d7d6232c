"""The Python client against a small real server: what is sent, what comes back, and how errors read."""

import asyncio
import hashlib
import os
import signal
import sys
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from fourfold import client as client_module
from fourfold.blocking import Client
from fourfold.client import AsyncClient
from fourfold.errors import ApiError, ConnectionFailed, NoKey


@asynccontextmanager
async def serving(handler):
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


async def test_a_score_sends_the_bytes_the_type_and_the_key(tmp_path):
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"\xff\xd8 pixels")
    seen = []

    async def handler(request):
        seen.append((request.method, request.path_qs, dict(request.headers), await request.read()))
        return web.json_response({"score": 70.5})

    async with serving(handler) as url, AsyncClient(url, "ff_key") as client:
        assert await client.score(photo) == {"score": 70.5}
        assert await client.score(b"raw", map="overlay") == {"score": 70.5}
    (method, path, headers, body), (_, path_of_bytes, headers_of_bytes, _) = seen
    assert (method, path, body) == ("POST", "/v1/iqa/score", b"\xff\xd8 pixels")
    assert headers["Authorization"] == "Bearer ff_key"
    assert headers["Content-Type"] == "image/jpeg"
    assert path_of_bytes == "/v1/iqa/score?map=overlay"
    assert headers_of_bytes["Content-Type"] == "application/octet-stream"


async def test_several_images_go_in_one_form(tmp_path):
    (tmp_path / "a.png").write_bytes(b"first")
    names = []

    async def handler(request):
        async for part in await request.multipart():
            names.append((part.name, part.filename, bytes(await part.read())))
        return web.json_response({"results": [{"name": name} for _, name, _ in names]})

    async with serving(handler) as url, AsyncClient(url, "ff_key") as client:
        assert await client.score_many([tmp_path / "a.png", b"second"]) == [{"name": "a.png"}, {"name": "image-1"}]
    assert names == [("images", "a.png", b"first"), ("images", "image-1", b"second")]


async def test_a_large_file_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(client_module, "PART_BYTES", 4)
    (tmp_path / "large").write_bytes(b"aaaabbbbcc")
    here = {hashlib.sha256(b"aaaa").hexdigest()}
    sent = []

    async def handler(request):
        if request.method == "PUT":
            sent.append(await request.read())
            here.add(request.path.rpartition("/")[2])
            return web.Response(status=204)
        asked = await request.json()
        wanted = asked.get("parts") or [entry["sha256"] for entry in asked["files"]]
        missing = [sha256 for sha256 in wanted if sha256 not in here]
        if missing:
            return web.json_response({"type": "x", "title": "", "detail": "", "missing": missing}, status=409)
        if request.path.endswith("/parts"):
            here.add(request.path.split("/")[-2])
        return web.json_response({"digest": "d"})

    async with serving(handler) as url, AsyncClient(url, "ff_key") as client:
        assert await client.add_dataset(tmp_path, "iqa", "mine") == {"digest": "d"}
    assert sent == [b"bbbb", b"cc"]


async def test_a_problem_becomes_an_error_with_all_its_members():
    problem = {
        "type": "urn:fourfold:problem:rate-limited",
        "title": "Too many requests",
        "status": 429,
        "detail": "This key may make 2000 per 1 second requests.",
        "request_id": "r1",
        "retry_after": 1,
    }

    async def handler(_):
        return web.json_response(problem, status=429, content_type="application/problem+json")

    async with serving(handler) as url, AsyncClient(url, "ff_key") as client:
        with pytest.raises(ApiError) as caught:
            await client.score(b"x")
    error = caught.value
    assert (error.status, error.type, error.request_id) == (429, problem["type"], "r1")
    assert error.extra == {"retry_after": 1}
    assert str(error) == "Too many requests: This key may make 2000 per 1 second requests."


@pytest.mark.parametrize("body", ["<html>bad gateway</html>", "[1, 2]", ""])
async def test_an_answer_that_is_no_problem_document_is_still_an_error(body):
    async def handler(_):
        return web.Response(status=502, text=body)

    async with serving(handler) as url, AsyncClient(url, "ff_key") as client:
        with pytest.raises(ApiError, match="HTTP 502"):
            await client.ready()


async def test_nobody_there_and_a_broken_connection():
    async def handler(request):
        request.transport.close()
        return web.Response()

    async with serving(handler) as url, AsyncClient(url, "ff_key") as client:
        with pytest.raises(ConnectionFailed, match="is not answering"):
            await client.ready()
    async with AsyncClient(url, "ff_key") as client:
        with pytest.raises(ConnectionFailed, match="is not answering"):
            await client.ready()


async def test_an_account_that_contains_itself_is_not_sent():
    account: dict[str, object] = {"screen_name": "a"}
    account["retweeted_by"] = [account]
    async with AsyncClient("http://127.0.0.1:9", "key") as client:
        with pytest.raises(TypeError, match="Recursion limit reached"):
            await client.score_accounts([account])


async def test_keys_are_read_to_the_last_page():
    async def handler(request):
        cursor = request.query["cursor"]
        return web.json_response({"keys": [{"id": cursor or "first"}], "next_cursor": {"": "b", "b": "c"}.get(cursor)})

    async with serving(handler) as url, AsyncClient(url, "ff_key") as client:
        assert [key["id"] for key in await client.list_keys()] == ["first", "b", "c"]


def test_without_a_key_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("FOURFOLD_HOME", str(tmp_path))
    monkeypatch.delenv("FOURFOLD_KEY", raising=False)
    with pytest.raises(NoKey):
        AsyncClient("http://127.0.0.1:1")


async def test_the_plain_client_works_inside_a_running_loop():
    async def handler(_):
        return web.json_response({"status": "ready"})

    async with serving(handler) as url:

        def ask():
            with Client(url, "ff_key") as client:
                return client.ready()

        assert await asyncio.to_thread(ask) == {"status": "ready"}


async def test_ctrl_c_detaches_from_a_job_with_one_line():
    async def handler(request):
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(b'event: progress\ndata: {"step":1,"total":2,"metrics":{"loss":0.5},"seconds_left":3}\n\n')
        await asyncio.sleep(60)
        return answer

    async with serving(handler) as url:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "fourfold.cli", "jobs", "watch", "j"),
            env={**os.environ, "FOURFOLD_URL": url, "FOURFOLD_KEY": "ff_key"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # A shell starts background jobs with it ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"1/2  loss 0.5  3 s left\n"
        process.send_signal(signal.SIGINT)
        _, told = await asyncio.wait_for(process.communicate(), 20)
        assert told.decode().split("\n") == ["", "detached; the job goes on. Follow it with: fourfold jobs watch j", ""]
