"""The V2 paths that speak for all models at once; those of one model go to its service."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Request, Security
from starlette.responses import Response

from gateway.control.access import BEARER, needs
from gateway.proxy import Upstreams
from gateway.routes import SERVICES
from shared.about import V2_SERVER
from shared.bodies import read_body
from shared.problems import FourfoldError, InputError, NotFound, NotReady, UpstreamUnavailable

router = APIRouter(prefix="/v2", tags=["inference"])
guarded = APIRouter(prefix="/v2", tags=["inference"], dependencies=[Security(BEARER), Depends(needs("predict"))])


def _upstreams(request: Request) -> Upstreams:
    return request.app.state.upstreams


Services = Annotated[Upstreams, Depends(_upstreams)]


async def ready_services(upstreams: Upstreams) -> dict[str, bool]:
    """Service → whether it is ready now."""

    async def ready(name: str) -> bool:
        try:
            return (await upstreams.fetch(name, "/readyz"))[0] == 200
        except UpstreamUnavailable:
            return False

    return dict(zip(SERVICES, await asyncio.gather(*(ready(name) for name in SERVICES)), strict=True))


async def _gather(upstreams: Upstreams, path: str, method: str = "GET") -> list[Any]:
    """The answers of every service that gives one."""

    async def ask(name: str) -> Any:
        try:
            status, body = await upstreams.fetch(name, path, method=method)
            return orjson.loads(body) if status == 200 else None
        except (FourfoldError, orjson.JSONDecodeError):
            return None

    return [answer for answer in await asyncio.gather(*(ask(name) for name in SERVICES)) if answer is not None]


# The V2 client does not read the body of a health answer, and would keep its connection busy over one.
@router.get("/health/live", response_class=Response)
async def live() -> Response:
    """The gateway answers."""
    return Response()


@router.get("/health/ready", response_class=Response)
async def ready(upstreams: Services) -> Response:
    """Every service is ready."""
    missing = [name for name, up in (await ready_services(upstreams)).items() if not up]
    if missing:
        raise NotReady(f"Not ready: {', '.join(missing)}.", retry_after=1)
    return Response()


@guarded.get("")
async def metadata() -> dict[str, Any]:
    """The server and its extensions."""
    return V2_SERVER


@guarded.get("/models/stats")
async def statistics(upstreams: Services) -> dict[str, Any]:
    """Counts and times of every loaded model."""
    return {
        "model_stats": [row for answer in await _gather(upstreams, "/v2/models/stats") for row in answer["model_stats"]]
    }


@guarded.post("/repository/index")
async def index(request: Request, upstreams: Services) -> list[dict[str, Any]]:
    """Every published version of every model, with its state."""
    body = await read_body(request, 1 << 16)
    try:
        asked: Any = orjson.loads(body) if len(body) else {}
    except orjson.JSONDecodeError:
        raise InputError("The body must be empty or a JSON object.") from None
    rows = [row for answer in await _gather(upstreams, "/v2/repository/index", "POST") for row in answer]
    only_ready = isinstance(asked, dict) and bool(asked.get("ready"))
    return [row for row in rows if row["state"] == "READY" or not only_ready]


@guarded.api_route("/models/{model}", methods=["GET"], include_in_schema=False)
@guarded.api_route("/models/{model}/{rest:path}", methods=["GET", "POST"], include_in_schema=False)
@guarded.api_route("/repository/models/{model}/{rest:path}", methods=["POST"], include_in_schema=False)
async def unknown(model: str) -> Response:
    """Models of the table never get here: they are proxied."""
    raise NotFound(f"There is no model named {model!r}.")
