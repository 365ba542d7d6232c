"""Where the gateway sends a path of a service."""

import pytest
from aiohttp import web

from gateway.proxy import Upstreams
from gateway.settings import GatewaySettings


@pytest.fixture
async def upstreams(tmp_path):
    addresses, runners = {}, []
    for name in ("iqa", "iqa/slow", "iqa/slow/er"):

        async def answer(_, name=name):
            return web.Response(text=name)

        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        path = tmp_path / f"{len(runners)}.sock"
        await web.UnixSite(runner, str(path)).start()
        addresses[name] = f"unix://{path}"
        runners.append(runner)
    upstreams = Upstreams(GatewaySettings(home=tmp_path, services=addresses), ("iqa",))
    await upstreams.open()
    yield upstreams
    await upstreams.close()
    for runner in runners:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/v1/iqa/score", "iqa"),
        ("/v1/iqa/slow", "iqa/slow"),
        ("/v1/iqa/slow/1", "iqa/slow"),
        ("/v1/iqa/slow/er", "iqa/slow/er"),
        ("/v1/iqa/slower", "iqa"),
        ("/v2/models/iqa", "iqa"),
    ],
)
async def test_the_longest_configured_path_decides(upstreams, path, place):
    async with upstreams.session("iqa", path).get(path) as answer:
        assert await answer.text() == place
