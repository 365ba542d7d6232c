"""The Open Inference Protocol v2's paths for the one model of a service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from shared import protocol
from shared.about import V2_SERVER
from shared.bodies import decompress, read_body
from shared.problems import InputError, NotFound, NotReady, NotSupported
from shared.sessions import GraphTensor, LoadedModel, ModelHost
from shared.settings import ServiceSettings
from shared.telemetry import remaining_seconds

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class _DirectRoute(APIRoute):
    """Documented like any route, but its endpoint is called with the request alone: no dependency solving per call."""

    def get_route_handler(self) -> Handler:
        return self.endpoint


class V2Error(BaseModel):
    """The protocol's own error shape."""

    error: str


class V2Tensor(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str
    shape: list[int]
    datatype: str = Field(description="BOOL, UINT8 … INT64, FP16, FP32, FP64 or BYTES")
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = Field(default=None, description="Row-major, nested or flat; absent for binary tensors.")


class V2InferRequest(BaseModel):
    id: str | None = None
    parameters: dict[str, Any] | None = None
    inputs: list[V2Tensor]
    outputs: list[dict[str, Any]] | None = None


class V2InferResponse(BaseModel):
    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[V2Tensor]


def deadline_of(request: Request) -> float | None:
    """When the caller stops waiting, as a time of the loop's clock; None if it set no deadline."""
    left = remaining_seconds(request.headers.raw)
    return None if left is None else asyncio.get_running_loop().time() + left


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status_code=status, media_type="application/json")


def _described(tensors: tuple[GraphTensor, ...]) -> list[dict[str, Any]]:
    return [{"name": t.name, "datatype": protocol.datatype(t.dtype), "shape": list(t.shape)} for t in tensors]


def _statistics(model: LoadedModel) -> dict[str, Any]:
    totals = model.batcher.statistics
    empty = {"count": 0, "ns": 0}
    return {
        "name": model.name,
        "version": str(model.version),
        "last_inference": totals.last_inference_ms,
        "inference_count": totals.items,
        "execution_count": totals.batches,
        "inference_stats": {
            "success": {"count": totals.items, "ns": totals.queue_ns + totals.compute_ns},
            "fail": {"count": totals.failures, "ns": totals.failure_ns},
            "queue": {"count": totals.items, "ns": totals.queue_ns},
            "compute_input": empty,
            "compute_infer": {"count": totals.batches, "ns": totals.compute_ns},
            "compute_output": empty,
        },
        "batch_stats": [],
    }


def inference_router(host: ModelHost, settings: ServiceSettings) -> APIRouter:
    """All V2 paths; errors leave as exceptions and become the protocol's shape in `problems`."""
    errors: dict[int | str, dict[str, Any]] = {status: {"model": V2Error} for status in (400, 404, 413, 429, 503, 504)}
    router = APIRouter(prefix="/v2", tags=["inference"], route_class=_DirectRoute, responses=errors)

    def check(request: Request) -> str | None:
        """The version of the path; NotFound if the path names another model."""
        name = request.path_params["model"]
        if name != host.name:
            raise NotFound(f"There is no model named {name!r} here.")
        return request.path_params.get("version")

    def chosen(request: Request) -> LoadedModel:
        return host.choose(request.scope["fourfold.request_id"], check(request))

    async def metadata(request: Request) -> Response:
        """The server and its extensions."""
        return _json(V2_SERVER)

    async def live(request: Request) -> Response:
        """The process answers."""
        return Response()

    async def ready(request: Request) -> Response:
        """Every model is ready."""
        if not host.ready:
            raise NotReady(f"The model {host.name} is not ready: {host.reason}.")
        return Response()

    async def model_metadata(request: Request) -> Response:
        """Name, versions, inputs and outputs of a model."""
        model = chosen(request)
        return _json(
            {
                "name": model.name,
                "versions": [str(each.version) for each in host.loaded],
                "platform": "onnx_onnxv1",
                "inputs": _described(model.session.inputs),
                "outputs": _described(model.session.outputs),
            }
        )

    async def model_ready(request: Request) -> Response:
        """Whether the model, or the version named, takes traffic."""
        chosen(request)
        return Response()

    async def statistics(request: Request) -> Response:
        """Counts and times since the model was loaded."""
        models = host.loaded
        if "model" in request.path_params:
            version = check(request)
            models = [model for model in models if version in (None, str(model.version))]
            if not models:
                raise NotReady(f"The model {host.name} is not ready: {host.reason}.")
        return _json({"model_stats": [_statistics(model) for model in models]})

    async def infer(request: Request) -> Response:
        """Run the model; binary tensors in and out as the protocol's extension says."""
        version = check(request)
        body = await read_body(request, settings.max_body_bytes)
        encoding = request.headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            body = decompress(body, encoding, settings.max_body_bytes)
        with host.lease(request.scope["fourfold.request_id"], version) as model:
            session = model.session
            asked = protocol.decode(body, request.headers.get(protocol.HEADER_LENGTH), session.inputs, session.outputs)
            outputs = await model.infer(asked.inputs, deadline=deadline_of(request))
            content, header_length = protocol.encode(asked, outputs, model=model.name, version=str(model.version))
            headers = {"Fourfold-Model": model.tag}
            media_type = "application/json"
            if header_length is not None:
                headers[protocol.HEADER_LENGTH] = str(header_length)
                media_type = "application/octet-stream"
            return Response(content, media_type=media_type, headers=headers)

    async def index(request: Request) -> Response:
        """Every published version with its state."""
        body = await read_body(request, 1 << 16)
        try:
            asked = orjson.loads(body) if len(body) else {}
        except orjson.JSONDecodeError:
            raise InputError("The body must be empty or a JSON object.") from None
        if not isinstance(asked, dict) or not isinstance(asked.get("ready", False), bool):
            raise InputError('The body must be empty or an object with a boolean "ready".')
        loaded = {model.version for model in host.loaded}
        versions = await asyncio.to_thread(host.repository.versions, host.name)
        rows = [
            {
                "name": host.name,
                "version": str(version),
                "state": "READY" if version in loaded else "UNAVAILABLE",
                "reason": "" if version in loaded else host.reason or "not the champion",
            }
            for version in versions
        ]
        return _json([row for row in rows if row["state"] == "READY"] if asked.get("ready") else rows)

    async def load(request: Request) -> Response:
        """Serve the champion again after an unload, or look at the aliases now."""
        check(request)
        await read_body(request, 1 << 16)
        await host.load()
        return _json({})

    async def unload(request: Request) -> Response:
        """Stop serving the model and free its memory; requests under way finish."""
        check(request)
        if settings.processes > 1:
            raise NotSupported(f"The service runs in {settings.processes} processes; this would reach one of them.")
        await read_body(request, 1 << 16)
        await host.unload()
        return _json({})

    infer_extra: dict[str, Any] = {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": V2InferRequest.model_json_schema()},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        }
    }
    router.add_api_route("", metadata, methods=["GET"])
    router.add_api_route("/health/live", live, methods=["GET"], response_class=Response)
    router.add_api_route("/health/ready", ready, methods=["GET"], response_class=Response)
    router.add_api_route("/models/stats", statistics, methods=["GET"])
    router.add_api_route("/repository/index", index, methods=["POST"])
    for prefix in ("/models/{model}", "/models/{model}/versions/{version}"):
        named = _path_parameters(prefix)
        router.add_api_route(prefix, model_metadata, methods=["GET"], openapi_extra=named)
        router.add_api_route(
            f"{prefix}/ready", model_ready, methods=["GET"], response_class=Response, openapi_extra=named
        )
        router.add_api_route(f"{prefix}/stats", statistics, methods=["GET"], openapi_extra=named)
        router.add_api_route(
            f"{prefix}/infer",
            infer,
            methods=["POST"],
            response_model=V2InferResponse,
            openapi_extra={**named, **infer_extra},
        )
    for verb, endpoint in (("load", load), ("unload", unload)):
        path = f"/repository/models/{{model}}/{verb}"
        router.add_api_route(path, endpoint, methods=["POST"], openapi_extra=_path_parameters(path))
    return router


def _path_parameters(path: str) -> dict[str, Any]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    schema = {"type": "string"}
    return {"parameters": [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]}
