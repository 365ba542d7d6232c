"""CPU-milliseconds a request, of whole process trees at 32 connections, beside the plain runtime in the same run.

    make bench        (python -m benchmarks [--seconds 5])

Wall time depends on the neighbours of a machine; CPU time, and ratios within one run, much less.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import psutil
from onnx import TensorProto, helper
from PIL import Image

from services.iqa.features import ImageTooLarge, decode
from shared.bundles import TensorSpec, write_manifest
from shared.repository import ModelRepository
from shared.testing import toy_bundle

CONNECTIONS = 32
SERVICE = "benchmarks.toy_service:create_app"


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its descendants."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in family)


def small_cnn(folder: Path) -> Path:
    """A CNN on (batch, 3, 224, 224) floats, 602 KB an input, of about 1.4 ms on one thread."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array(random.normal(0, 0.1, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], strides=[2, 2], kernel_shape=[7, 7]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], strides=[2, 2], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "w3"], ["e"], strides=[2, 2], kernel_shape=[3, 3]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Flatten", ["f"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 224, 224])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
        [weights("w1", 24, 3, 7, 7), weights("w2", 48, 24, 3, 3), weights("w3", 64, 48, 3, 3)],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "model.onnx"
    )
    write_manifest(
        folder,
        files=["model.onnx"],
        name="toy",
        domain="toy",
        graphs={"fp32": "model.onnx"},
        inputs=[TensorSpec(name="x", dtype="float32", shape=["batch", 3, 224, 224])],
        outputs=[TensorSpec(name="y", dtype="float32", shape=["batch", 64])],
    )
    return folder


def runtime_alone(graph: Path, inputs: dict[str, np.ndarray], seconds: float) -> float:
    """CPU-ms a run of ONNX Runtime without any server, one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    session.run(None, inputs)
    count, ends, started = 0, time.monotonic() + seconds, time.process_time()
    while time.monotonic() < ends:
        session.run(None, inputs)
        count += 1
    return (time.process_time() - started) * 1000 / count


async def _load(address: str, head: bytes, body: bytes, seconds: float) -> int:
    """Requests answered over CONNECTIONS connections; raises if one is not answered 200."""
    ends = time.monotonic() + seconds
    request = head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def connection() -> int:
        if address.startswith("/"):
            reader, writer = await asyncio.open_unix_connection(address)
        else:
            host, port = address.split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
        count = 0
        while time.monotonic() < ends:
            writer.write(request)
            status = await reader.readline()
            if b" 200 " not in status:
                raise RuntimeError(status.decode())
            length = 0
            while (line := await reader.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
                elif line.lower().startswith(b"transfer-encoding:"):
                    raise RuntimeError("the answer is chunked")
            await reader.readexactly(length)
            count += 1
        writer.close()
        return count

    return sum(await asyncio.gather(*(connection() for _ in range(CONNECTIONS))))


@contextmanager
def server(
    application: str, home: Path, ready: str, *arguments: str, **environment: str
) -> Iterator[tuple[int, float]]:
    """(process id, seconds to ready) of a uvicorn process."""
    command = [sys.executable, "-m", "uvicorn", application, "--factory", "--log-level", "warning"]
    flags = ["--http", "shared.connections:GuardedProtocol", "--no-access-log", "--no-server-header", *arguments]
    started = time.monotonic()
    process = subprocess.Popen([*command, *flags], env={**os.environ, "FOURFOLD_HOME": str(home), **environment})
    try:
        while subprocess.run(["curl", "-sf", "-o", "/dev/null", *ready.split()]).returncode:
            if process.poll() is not None or time.monotonic() - started > 60:
                raise RuntimeError(f"{application} did not start")
            time.sleep(0.02)
        yield process.pid, time.monotonic() - started
    finally:
        process.terminate()
        process.wait()


def per_request(pids: list[int], address: str, head: bytes, body: bytes, seconds: float) -> list[float]:
    """CPU-ms a request of each process, after a second of warming up."""
    asyncio.run(_load(address, head, body, 1.0))
    before = [cpu_seconds(pid) for pid in pids]
    count = asyncio.run(_load(address, head, body, seconds))
    return [(cpu_seconds(pid) - start) * 1000 / count for pid, start in zip(pids, before, strict=True)]


def photograph(megapixels: float) -> bytes:
    """A JPEG of a photograph-like picture, 4 : 3."""
    width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
    size = (width, width * 3 // 4)
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    fine = Image.fromarray(random.integers(0, 256, (768, 1024, 3), dtype=np.uint8)).resize(size)
    stream = io.BytesIO()
    Image.blend(coarse, fine, 0.15).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of load for each row")
    seconds = parser.parse_args().seconds
    rows: list[tuple[str, float, float | None, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        homes = {name: root / name for name in ("small", "cnn", "iqa")}
        ModelRepository(str(homes["small"] / "models")).seed(toy_bundle(root / "toy"))
        cnn = small_cnn(root / "bundle")
        ModelRepository(str(homes["cnn"] / "models")).seed(cnn)
        infer = b"POST /v2/models/toy/infer HTTP/1.1\r\nHost: x\r\n"
        tensor: dict[str, Any] = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
        document = {"inputs": [tensor]}
        small = json.dumps(document).encode()
        where = str(root / "small.sock")
        alone = runtime_alone(root / "toy" / "model.onnx", {"x": np.ones((1, 4), np.float32)}, 1)
        with server(SERVICE, homes["small"], f"--unix-socket {where} http://x/readyz", "--uds", where) as (pid, _):
            rows.append(
                ("service, small V2 JSON", per_request([pid], where, infer, small, seconds)[0], 0.20, f"{alone:.3f}")
            )
        picture = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
        document["inputs"] = [
            {
                "name": "x",
                "shape": [1, 3, 224, 224],
                "datatype": "FP32",
                "parameters": {"binary_data_size": picture.nbytes},
            }
        ]
        header = json.dumps(document).encode()
        head = infer + f"Inference-Header-Content-Length: {len(header)}\r\n".encode()
        alone = runtime_alone(cnn / "model.onnx", {"x": picture}, seconds / 2)
        where = str(root / "cnn.sock")
        with server(SERVICE, homes["cnn"], f"--unix-socket {where} http://x/readyz", "--uds", where) as (pid, _):
            cost = per_request([pid], where, head, header + picture.tobytes(), seconds)[0]
            rows.append(("service, 602 KB tensor to a small CNN", cost, alone * 2.0 / 1.44, f"{alone:.3f}"))
        where = str(root / "iqa.sock")
        ready = f"--unix-socket {where} http://x/readyz"
        services = json.dumps({"iqa": f"unix://{where}"})
        home = homes["iqa"]
        photo = photograph(12)
        with server("services.iqa.api:create_app", home, ready, "--uds", where, FOURFOLD_PRECISION="int8") as (
            service,
            started,
        ):
            rows.append(("iqa service, start to ready, s", started, 2.0, ""))
            score = b"POST /v1/iqa/score HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
            cost = per_request([service], where, score, photo, seconds)[0]
            rows.append(("12-megapixel JPEG, Lite0 int8", cost, 120.0, ""))
            with server(
                "gateway.app:create_app",
                home,
                "http://127.0.0.1:18080/readyz",
                *("--port", "18080"),
                FOURFOLD_SERVICES=services,
                FOURFOLD_RATE_LIMIT="1000000/second",
            ) as (gateway, _):
                key = (home / "key").read_text().strip()
                get = f"GET /v2/models/iqa/ready HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n".encode()
                cost = per_request([gateway], "127.0.0.1:18080", get, b"", seconds)[0]
                rows.append(("gateway hop", cost, 0.35, ""))
                resident = psutil.Process(gateway).memory_info().rss / 2**20
                rows.append(("gateway resident memory, MiB", resident, 120.0, ""))
        bomb = io.BytesIO()
        Image.new("1", (12_000, 12_000)).save(bomb, "PNG")
        before = time.process_time()
        try:
            decode(bomb.getvalue())
        except ImageTooLarge:
            rows.append(("144-megapixel PNG refused", (time.process_time() - before) * 1000, 10.0, ""))
    print("| CPU-ms a request unless said | measured | goal | runtime alone | |\n|---|---|---|---|---|")
    for name, value, goal, limit in rows:
        verdict = "" if goal is None else "reached" if value <= goal else "short"
        print(f"| {name} | {value:.3f} | {goal:.3g} | {limit} | {verdict} |")


if __name__ == "__main__":
    main()
