"""For tests: a tiny real model and domain, and the conformance suite that every service must pass.

Needs the `dev` extra (onnx, httpx); nothing that serves imports this module.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
from fastapi import APIRouter, FastAPI
from onnx import TensorProto, helper

from shared.bundles import Bundle, TensorSpec, write_manifest
from shared.service import Domain
from shared.sessions import OnnxSession
from shared.settings import ServiceSettings


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def toy_bundle(folder: Path, *, name: str = "toy", factor: float = 2.0, padding: int = 0, **manifest: Any) -> Path:
    """A bundle whose graph answers y = factor · x for x FP32 (batch, 4); `padding` floats make it heavier."""
    folder.mkdir(parents=True, exist_ok=True)
    free = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    constants = [onnx.numpy_helper.from_array(np.array(factor, np.float32), "factor")]
    nodes = [helper.make_node("Mul", ["x", "factor"], ["y"])]
    if padding:
        constants.append(onnx.numpy_helper.from_array(np.zeros(padding, np.float32), "padding"))
        nodes = [
            helper.make_node("ReduceSum", ["padding"], ["zero"], keepdims=0),
            helper.make_node("Mul", ["x", "factor"], ["scaled"]),
            helper.make_node("Add", ["scaled", "zero"], ["y"]),
        ]
    graph = helper.make_graph(nodes, "toy", [free], [out], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    write_manifest(
        folder,
        files=["model.onnx"],
        name=name,
        domain=name,
        graphs={"fp32": "model.onnx"},
        inputs=[TensorSpec(name="x", dtype="float32", shape=["batch", 4])],
        outputs=[TensorSpec(name="y", dtype="float32", shape=["batch", 4])],
        **manifest,
    )
    return folder


class ToyPredictor:
    """Predictor of the toy graph: a row of four numbers in, a row out."""

    def __init__(self, session: OnnxSession) -> None:
        self.session = session

    def predict(self, batch: Sequence[Any]) -> list[Any]:
        answers = self.session.infer_many([{"x": np.asarray([row], np.float32)} for row in batch])
        return [answer if isinstance(answer, Exception) else answer["y"][0] for answer in answers]

    def warm_up(self) -> None:
        shape = [max(1, size) for size in self.session.inputs[0].shape]
        self.session.infer_many([{"x": np.zeros(shape, np.float32)}])


def load_toy(bundle: Bundle, settings: ServiceSettings) -> ToyPredictor:
    return ToyPredictor(OnnxSession(bundle.graph(settings.precision), device=settings.device))


def toy_domain(pretrained: Path | None, name: str = "toy") -> Domain:
    """A domain with no routes of its own."""
    return Domain(name, "Toy", "A model for tests.", load_toy, APIRouter(), pretrained)


@asynccontextmanager
async def running(app: FastAPI) -> AsyncGenerator[httpx.AsyncClient]:
    """A client of `app` in this process, with its lifespan run."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


class ServiceConformance:
    """What every service promises. Subclass it with a `client` fixture and the model's `name`."""

    name: str

    async def test_is_alive_and_ready(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/healthz")).json()["status"] == "alive"
        ready = await client.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["models"][self.name]

    async def test_every_answer_has_a_request_id(self, client: httpx.AsyncClient) -> None:
        given = await client.get("/healthz", headers={"X-Request-ID": "my-id.1"})
        assert given.headers["X-Request-ID"] == "my-id.1"
        hostile = await client.get("/healthz", headers={"X-Request-ID": "a b\t{}"})
        assert len(hostile.headers["X-Request-ID"]) == 32

    async def test_unknown_paths_are_problems(self, client: httpx.AsyncClient) -> None:
        answer = await client.get("/nothing/here")
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == "urn:fourfold:problem:not-found"
        assert answer.json()["request_id"] == answer.headers["X-Request-ID"]

    async def test_requests_are_counted(self, client: httpx.AsyncClient) -> None:
        await client.get("/nothing/here")
        text = (await client.get("/metrics")).text
        assert f'fourfold_requests_total{{method="GET",route="unmatched",service="{self.name}",status="404"}}' in text

    async def test_v2_describes_the_model(self, client: httpx.AsyncClient) -> None:
        assert (await client.get("/v2/health/ready")).status_code == 200
        assert "binary_tensor_data" in (await client.get("/v2")).json()["extensions"]
        model = (await client.get(f"/v2/models/{self.name}")).json()
        assert model["name"] == self.name
        assert model["inputs"] and model["outputs"]
        index = (await client.post("/v2/repository/index", json={"ready": True})).json()
        assert [row["state"] for row in index] == ["READY"]

    async def test_v2_errors_have_the_protocols_shape(self, client: httpx.AsyncClient) -> None:
        unknown = await client.get("/v2/models/no-such-model")
        assert unknown.status_code == 404
        assert set(unknown.json()) == {"error"}
        for body in (b"", b"{", b"[]", b'{"inputs": 1}', b"[" * 100_000, b'{"inputs": [{"name": "nope"}]}'):
            answer = await client.post(f"/v2/models/{self.name}/infer", content=body)
            assert answer.status_code == 400, body[:20]
            assert set(answer.json()) == {"error"}

    async def test_documents_itself(self, client: httpx.AsyncClient) -> None:
        document = (await client.get("/openapi.json")).json()
        assert "/v2/models/{model}/infer" in document["paths"]

    async def test_unload_and_load(self, client: httpx.AsyncClient) -> None:
        assert (await client.post(f"/v2/repository/models/{self.name}/unload")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get(f"/v2/models/{self.name}/ready")).status_code == 503
        assert (await client.post(f"/v2/repository/models/{self.name}/load")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
