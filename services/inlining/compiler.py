"""The fork server of the sandbox, and what its children do: one task each, without rights.

Run as `python -m services.inlining.compiler FD` by sandbox.py; FD is a socket on which orders come. A child reads and
writes its own folder and reads what the ziglang package holds, and nothing else (Landlock; where the kernel has none, a
change of root for all but C source); it has no network, and limits on address space, CPU time, file size and time.
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
import struct
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import ziglang

from services.inlining.assembly import annotate, facts, locate

GRACE_SECONDS = 2.0  # a child that outlives its alarm is killed after it
_ZIG = Path(ziglang.__file__).parent
_ZIG_OPEN = "FOURFOLD_ZIG"
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_NO_NEW_PRIVS = 38
_LIBC = ctypes.CDLL(None, use_errno=True)


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
                _, ended, used = os.wait4(pid, 0)
                code = os.waitstatus_to_exitcode(ended)
                _tell(status, {"code": code, "cpu_seconds": used.ru_utime + used.ru_stime})
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
    # Every child leads a process group: clang may have children of its own.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _child(order: Mapping[str, Any], given: int, result: int, messages: int) -> None:
    """Never returns."""
    code = 1
    try:
        os.setsid()
        os.dup2(messages, 2)
        data = bytearray()
        while chunk := os.pread(given, 1 << 24, len(data)):
            data += chunk
        _give_up_rights(order)
        out = TASKS[order["task"]](order, bytes(data))
        view = memoryview(out)
        offset = 0
        while offset < len(view):
            offset += os.write(result, view[offset:])
        code = 0
    except MemoryError:
        os.write(2, b"\nMemoryError\n")
    except BaseException as error:
        os.write(2, f"\nerror: {error}\n".encode())
    finally:
        os._exit(code)


# -- rights


def _give_up_rights(order: Mapping[str, Any]) -> None:
    limits = order["limits"]
    os.chdir(order["folder"])
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if not _landlock() and not order.get("headers"):
        with contextlib.suppress(OSError):  # root, or in a user namespace of ours; elsewhere the rest has to do
            os.chroot(".")
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


# Landlock (Linux 5.13 on): numbers of its calls and rights, from linux/landlock.h.
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_EXECUTE, _READ_FILE, _READ_DIR = 1, 4, 8
_FILE_RIGHTS = ((1, 0x1FFF), (2, 0x3FFF), (3, 0x7FFF))  # all that an ABI from this version on handles
_TCP_ABI, _TCP_RIGHTS = 4, 3


def _landlock() -> bool:
    """Leave this process the current folder, and the ziglang package for reading; False where there is no Landlock."""
    abi = _LIBC.syscall(_CREATE, None, 0, 1)
    if abi < 1:
        return False
    handled = max(rights for least, rights in _FILE_RIGHTS if abi >= least)
    rules = struct.pack("<QQ", handled, _TCP_RIGHTS) if abi >= _TCP_ABI else struct.pack("<Q", handled)
    ruleset = _LIBC.syscall(_CREATE, rules, len(rules), 0)
    if ruleset < 0:
        return False
    for folder, rights in ((".", handled), (str(_ZIG), _EXECUTE | _READ_FILE | _READ_DIR)):
        place = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        _LIBC.syscall(_ADD, ruleset, 1, struct.pack("<Qi", rights, place), 0)
        os.close(place)
    done = _LIBC.syscall(_RESTRICT, ruleset, 0)
    os.close(ruleset)
    return done == 0


# -- tasks, each in a child of its own


def _clang(order: Mapping[str, Any], _: bytes) -> bytes:
    """Becomes the ziglang package's clang, under `arguments`; its files are in the child's folder."""
    os.dup2(os.open("output", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600), 1)
    # By descriptor: after a change of root there is no path to it.
    os.execve(int(os.environ[_ZIG_OPEN]), ["zig", "clang", *order["arguments"]], {"TMPDIR": ".", "HOME": "."})


def _inspect(_: Mapping[str, Any], data: bytes) -> bytes:
    """Any module → its `facts` as JSON, a newline, and its text, which has a place at every call."""
    # Without the order of use lists the same module compiles to another size.
    llvm.set_option("fourfold", "-preserve-ll-uselistorder")
    module = _parsed(data)
    if not module.triple.startswith("x86_64-") or "linux" not in module.triple:
        raise ValueError(f"The module is for {module.triple or 'no target'}; those for x86_64 Linux are taken.")
    text = str(module)
    found = facts(text)
    if not found["located"]:
        text = locate(text)
        module = llvm.parse_assembly(text)
        module.verify()
        text = str(module)
        found = {**facts(text), "located": False}
    return json.dumps(found).encode() + b"\n" + text.encode()


def _parsed(data: bytes) -> llvm.ModuleRef:
    if data[:4] in (b"BC\xc0\xde", b"\xde\xc0\x17\x0b"):
        module = llvm.parse_bitcode(data)
    else:
        module = llvm.parse_assembly(data.decode())
    module.verify()
    return module


def _annotate(order: Mapping[str, Any], data: bytes) -> bytes:
    """Textual IR → the number of calls marked, a newline, and the text with them."""
    wanted = {(caller, callee, line, column): bool(inline) for caller, callee, line, column, inline in order["wanted"]}
    text, count = annotate(data.decode(), wanted)
    llvm.parse_assembly(text).verify()
    return f"{count}\n{text}".encode()


TASKS = {"clang": _clang, "inspect": _inspect, "annotate": _annotate}


def main() -> None:
    """The server's life."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if _LIBC.unshare(_CLONE_NEWNET) != 0:
        _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)  # without rights; where neither is allowed, Landlock remains
    os.environ[_ZIG_OPEN] = str(os.open(_ZIG / "zig", os.O_RDONLY | os.O_CLOEXEC))
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
