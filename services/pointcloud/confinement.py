"""A confined child process from the outside: started, asked, and replaced when it misbehaves."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.problems import InternalError

START_SECONDS = 60.0
MOST_ANSWERED = 8 << 20  # bytes of an answer; the child is not trusted to keep to what it was asked
_ROOT = Path(__file__).parents[2]
_KEPT = ("PATH", "LANG", "LC_ALL", "SYSTEMROOT", "LD_LIBRARY_PATH")  # of the environment; no address, no secret
COMMAND = (sys.executable, "-m", "services.pointcloud.child")
_KINDS = {"<f4", "<i4"}


class ChildLost(Exception):
    """The child died or overran its time over a request; `slow` where that is known to be why."""

    def __init__(self, slow: bool) -> None:
        super().__init__("slow" if slow else "died")
        self.slow = slow


class Child:
    """One child, started at the first request and again after it was lost. Serves one request at a time."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self.starts = 0

    def ask(
        self, operation: str, data: bytes | bytearray | memoryview, seconds: float, **options: Any
    ) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """The answer's members and arrays; raises ChildLost, after which the next request meets a fresh child."""
        link = self._ready()
        ends = time.monotonic() + seconds
        try:
            link.settimeout(seconds)
            head = json.dumps({"operation": operation, "size": len(data), **options}).encode() + b"\n"
            link.sendall(head)
            link.sendall(data)
            return self._answer(link, ends)
        except TimeoutError:
            self.close()
            raise ChildLost(slow=True) from None
        except (OSError, EOFError, ValueError, KeyError, TypeError):
            slow = self.close() == -signal.SIGXCPU
            raise ChildLost(slow) from None

    def _answer(self, link: socket.socket, ends: float) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        buffer = bytearray()
        while b"\n" not in buffer:
            if len(buffer) > 1 << 16:
                raise ValueError("no answer's head")
            buffer += _received(link, 1 << 16, ends)
        head, _, rest = bytes(buffer).partition(b"\n")
        about: dict[str, Any] = json.loads(head)
        arrays: list[NDArray[Any]] = []
        for kind, shape in about.pop("blocks"):
            if kind not in _KINDS or len(shape) != 2:
                raise ValueError("foreign block")
            array: NDArray[Any] = np.empty(shape, kind)
            if array.nbytes > MOST_ANSWERED:
                raise ValueError("too long")
            view = array.data.cast("B")
            have = min(len(rest), len(view))
            view[:have], rest = rest[:have], rest[have:]
            while have < len(view):
                link.settimeout(max(0.001, ends - time.monotonic()))
                got = link.recv_into(view[have:])
                if not got:
                    raise EOFError
                have += got
            arrays.append(array)
        if rest:
            raise ValueError("more than was said")
        return about, arrays

    def _ready(self) -> socket.socket:
        if self._link is not None and self._process is not None and self._process.poll() is None:
            return self._link
        self.close()
        ours, theirs = socket.socketpair()
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        environment |= {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with theirs:
            self._process = subprocess.Popen(
                list(self._command),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                cwd="/",
            )
        self._link = ours
        self.starts += 1
        try:
            greeting = _received(ours, 6, time.monotonic() + START_SECONDS)
        except (OSError, EOFError):
            greeting = b""
        if greeting != b"ready\n":
            self.close()
            raise InternalError("The process that reads files could not be started.")
        return ours

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def close(self) -> int | None:
        """End the child, however it is; its exit status."""
        if self._link is not None:
            with suppress(OSError):
                self._link.close()
            self._link = None
        if self._process is None:
            return None
        with suppress(subprocess.TimeoutExpired):
            # One that broke off by itself is ending already; its own status tells why.
            self._process.wait(0.2)
        self._process.kill()
        status = self._process.wait()
        self._process = None
        return status


def _received(link: socket.socket, most: int, ends: float) -> bytes:
    link.settimeout(max(0.001, ends - time.monotonic()))
    data = link.recv(most)
    if not data:
        raise EOFError
    return data
