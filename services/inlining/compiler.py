"""The fork server that holds llvmlite, and what its children do: one task each, without rights.

Run as `python -m services.inlining.compiler FD` by sandbox.py; FD is a socket on which orders come. A child's folder is
the only thing it finds in the file system where the kernel lets us have that; it has no network, and limits on address
space, CPU time, file size and time.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

import llvmlite.binding as llvm

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
GRACE_SECONDS = 2.0  # a child that outlives its alarm is killed after it


def serve(orders: socket.socket) -> None:
    """Fork a child for each order until the other end is closed."""
    poller = select.poll()
    poller.register(orders, select.POLLIN)
    children: dict[int, tuple[int, int, float]] = {}  # pidfd → pid, status descriptor, latest end
    while True:
        now = time.monotonic()
        for pid, _, latest in children.values():
            if now > latest:
                _kill(pid)
        for descriptor, _ in poller.poll(500 if children else None):
            if descriptor != orders.fileno():
                pid, status, _ = children.pop(descriptor)
                poller.unregister(descriptor)
                os.close(descriptor)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                _tell(status, {"code": code})
                os.close(status)
                continue
            length, descriptors, _, _ = socket.recv_fds(orders, 4, 4)
            if len(length) < 4 or len(descriptors) < 4:
                for pid, _, _ in children.values():
                    _kill(pid)
                return
            order = json.loads(_exactly(orders, int.from_bytes(length, "little")))
            pid = os.fork()
            if pid == 0:
                orders.close()
                _child(order, *descriptors[:3])
            given, result, messages, status = descriptors
            for done in (given, result, messages):
                os.close(done)
            _tell(status, {"pid": pid})
            pidfd = os.pidfd_open(pid)
            children[pidfd] = (pid, status, time.monotonic() + order["limits"]["seconds"] + GRACE_SECONDS)
            poller.register(pidfd, select.POLLIN)


def _exactly(orders: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        more = orders.recv(size - len(parts))
        if not more:
            break
        parts += more
    return bytes(parts)


def _tell(status: int, words: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # nobody waits any more
        os.write(status, json.dumps(words).encode() + b"\n")


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _child(order: Mapping[str, Any], given: int, result: int, messages: int) -> None:
    """Never returns."""
    code = 1
    try:
        os.setsid()
        os.dup2(messages, 2)
        size = os.fstat(given).st_size
        data = os.pread(given, size, 0)
        while len(data) < size:
            data += os.pread(given, size - len(data), len(data))
        _give_up_rights(order)
        out = TASKS[order["task"]](order, data)
        view = memoryview(out)
        offset = 0
        while offset < len(view):
            offset += os.write(result, view[offset:])
        code = 0
    except MemoryError:
        os.write(2, b"\nMemoryError\n")
    except BaseException as error:
        os.write(2, f"\n{error}\n".encode())
    finally:
        os._exit(code)


def _give_up_rights(order: Mapping[str, Any]) -> None:
    limits = order["limits"]
    os.chdir(order["folder"])
    with contextlib.suppress(OSError):  # root, or in a user namespace of ours; elsewhere the rest has to do
        os.chroot(".")
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _limit(resource.RLIMIT_AS, limits["memory_bytes"])
    _limit(resource.RLIMIT_CPU, limits["cpu_seconds"])
    _limit(resource.RLIMIT_FSIZE, limits["file_bytes"])
    _limit(resource.RLIMIT_CORE, 0)
    for number in (signal.SIGALRM, signal.SIGXCPU, signal.SIGXFSZ, signal.SIGPIPE, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limits["seconds"])


def _limit(what: int, value: int) -> None:
    hard = resource.getrlimit(what)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


# -- tasks, each in a child of its own


def _parsed(data: bytes) -> llvm.ModuleRef:
    if data[:4] in (b"BC\xc0\xde", b"\xde\xc0\x17\x0b"):
        return llvm.parse_bitcode(data)
    module = llvm.parse_assembly(data.decode())
    module.verify()
    return module


def _compile(order: Mapping[str, Any], data: bytes) -> bytes:
    """Bitcode or textual IR → an object file, after the default pipeline under `options`."""
    # Options before the module: one of them says how textual IR is written.
    for option in order["options"]:
        llvm.set_option("fourfold", option)
    module = _parsed(data)
    machine = _machine(module)
    tuning = llvm.create_pipeline_tuning_options(speed_level=order["level"])
    small = bool(order["small"])
    tuning.loop_vectorization = order["level"] > 1 and not small  # as clang sets them at -Oz and -O3
    tuning.slp_vectorization = order["level"] > 1
    tuning.loop_interleaving = order["level"] > 1
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    return machine.emit_object(module)


def _machine(module: llvm.ModuleRef) -> llvm.TargetMachine:
    return llvm.Target.from_triple(module.triple).create_target_machine(opt=2, reloc="pic", codemodel="default")


TASKS = {"compile": _compile}


def main() -> None:
    """The server's life."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)  # without rights; where neither is allowed, the limits remain
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
