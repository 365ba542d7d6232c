"""Runs each parse and compile in a process of its own, without rights: the fork server's client.

A fork server (compiler.py) that has llvmlite loaded forks a child for each task. LLVM's options are global to a process
and its parsers crash on hostile input, so no child does two tasks and none of it happens in this process.
"""

from __future__ import annotations

import atexit
import json
import mmap
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.problems import InternalError, Unprocessable

MESSAGE_BYTES = 1 << 20  # of a child's standard error that is read


class CompilerCrashed(Unprocessable):
    code = "inlining-compiler-crashed"
    title = "The compiler crashed on this input"
    advice = "Send a smaller part of the module; the input is at fault or LLVM is."


class CompilerRefused(Unprocessable):
    code = "inlining-compiler-refused"
    title = "The compiler does not take this input"
    advice = "Make the IR with LLVM 22 or older, before any pass."


class LimitExceeded(Unprocessable):
    code = "inlining-limit-exceeded"
    title = "Compiling this input takes more than is allowed"
    advice = "Send a smaller module, or allow more time."


@dataclass(frozen=True)
class Limits:
    """Of one child."""

    memory_bytes: int = 3 << 30  # address space; LLVM itself maps 0.4 GiB of it
    cpu_seconds: int = 60
    file_bytes: int = 256 << 20
    seconds: float = 120.0


@dataclass(frozen=True)
class Output:
    """What a child that did its task left."""

    data: bytes
    messages: str  # its standard error
    cpu_seconds: float


class Sandbox:
    """One fork server, started at the first task and again if it died. Safe for threads, and after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = 0
        self._socket: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None

    def run(
        self,
        task: Mapping[str, Any],
        data: bytes,
        *,
        limits: Limits,
        folder: Path | None = None,
        meanwhile: Callable[[int], None] | None = None,
    ) -> Output:
        """Do `task` with `data` in a fresh child whose only folder is `folder` (an empty one if None).

        `meanwhile` is called with a descriptor that becomes readable when the child ends. Raises CompilerCrashed,
        CompilerRefused (with the compiler's words) or LimitExceeded.
        """
        own = None if folder is not None else tempfile.mkdtemp(prefix="fourfold-compile-")
        given, result, messages = (os.memfd_create(name) for name in ("given", "result", "messages"))
        status_read, status_write = os.pipe()
        try:
            os.truncate(given, len(data))
            _write_all(given, data)
            order = {"folder": str(folder or own), "limits": asdict(limits), **task}
            self._send(order, (given, result, messages, status_write))
            os.close(status_write)
            status_write = -1
            child = self._read_line(status_read, 30)
            try:
                if meanwhile is not None:
                    meanwhile(status_read)
                status = self._read_line(status_read, limits.seconds + 10)
            except BaseException:
                _kill(child.get("pid", 0))
                raise
            text = _content(messages, MESSAGE_BYTES).decode("utf-8", "replace")
            _judge(status, text)
            return Output(_content(result, limits.file_bytes), text, float(status["cpu_seconds"]))
        finally:
            for descriptor in (given, result, messages, status_read, status_write):
                if descriptor >= 0:
                    os.close(descriptor)
            if own is not None:
                shutil.rmtree(own, ignore_errors=True)

    def close(self) -> None:
        """End the fork server."""
        with self._lock:
            self._drop()

    def _send(self, order: Mapping[str, Any], descriptors: tuple[int, ...]) -> None:
        message = json.dumps(order).encode()
        with self._lock:
            for again in (True, False):
                try:
                    connection = self._connected()
                    length = len(message).to_bytes(4, "little")
                    socket.send_fds(connection, [length], list(descriptors))
                    connection.sendall(message)
                    return
                except OSError:
                    self._drop()
                    if not again:
                        raise InternalError("The compiler's sandbox cannot be started.") from None

    def _connected(self) -> socket.socket:
        if self._socket is not None and self._owner == os.getpid() and self._server and self._server.poll() is None:
            return self._socket
        self._drop()
        ours, theirs = socket.socketpair()
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "services.inlining.compiler", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C is for the supervisor, which closes the socket
            )
        self._socket, self._owner = ours, os.getpid()
        return ours

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._server is not None and self._owner == os.getpid():
            try:
                self._server.wait(5)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        self._socket, self._server = None, None

    @staticmethod
    def _read_line(descriptor: int, seconds: float) -> dict[str, Any]:
        ends = time.monotonic() + seconds
        line = b""
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        while not line.endswith(b"\n"):
            if not poller.poll(max(0.0, ends - time.monotonic()) * 1000):
                raise LimitExceeded("The compiler did not end in time.")
            more = os.read(descriptor, 1)
            if not more:
                raise InternalError("The compiler's sandbox ended.")
            line += more
        return json.loads(line)


def _judge(status: Mapping[str, Any], text: str) -> None:
    code = int(status["code"])
    if code == 0:
        return
    number = -code if code < 0 else code - 128
    low = text.lower()
    if number in (signal.SIGXCPU, signal.SIGALRM, signal.SIGKILL):
        raise LimitExceeded("It took more CPU time, or more time, than a compile is given.")
    if number == signal.SIGXFSZ or "file too large" in low:
        raise LimitExceeded("It made a larger file than is allowed.")
    if "out of memory" in low or "bad_alloc" in low or "memoryerror" in low:
        raise LimitExceeded("It took more memory than a compile is given.")
    if number > 0 or "stack dump" in low or "llvm error" in low:
        name = signal.Signals(number).name if number in set(signal.Signals) else f"status {code}"
        raise CompilerCrashed(f"The compiler ended with {name}; the input may be damaged.")
    words = [line for line in text.splitlines() if "error: " in line]
    raise CompilerRefused(words[0].strip()[:500] if words else f"The compiler ended with the status {code}.")


def _kill(pid: int) -> None:
    try:
        if pid > 1:
            os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    offset = 0
    while offset < len(view):
        offset += os.pwrite(descriptor, view[offset:], offset)


def _content(descriptor: int, most: int) -> bytes:
    size = min(os.fstat(descriptor).st_size, most)
    if size == 0:
        return b""
    with mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) as mapped:
        return mapped[:]


SANDBOX = Sandbox()
atexit.register(SANDBOX.close)
