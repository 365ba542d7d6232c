"""One compile of a module by the ziglang package's clang under a policy, with who called whom: what training learns from.

Its LLVM is built without assertions and so nearly twice as fast as llvmlite's; sizes differ by a few bytes. Shapes: F features.
"""

from __future__ import annotations

import json
import os
import re
import select
import struct
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ziglang  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Decide = Callable[[Ints, int], int]  # (features_F, the stock decision) → 0 or 1
CLANG = Path(ziglang.__file__).parent / "zig"
REMARK = re.compile(r"^--- !\w+\nPass: +inline-ml\n(.*?)^\.\.\.$", re.MULTILINE | re.DOTALL)
FUNCTION = re.compile(r"^Function: +(.+)$", re.MULTILINE)
CALLEE = re.compile(r"^  - Callee: +(.+)$", re.MULTILINE)
LINE = re.compile(r"Line: (\d+), Column: (\d+)")


class CompileFailed(Exception):
    """clang said no; the message is its own."""


@dataclass(frozen=True)
class Decision:
    features_F: Ints
    stock: int
    taken: int
    caller: str
    callee: str
    line: int
    column: int


@dataclass(frozen=True)
class Rollout:
    """`text`: bytes of executable sections; `functions`: bytes of each."""

    text: int
    functions: dict[str, int]
    decisions: list[Decision]


def compile_with(
    bitcode: Path, decide: Decide | None = None, *, flags: Sequence[str] = (), level: str = "-Oz", seconds: float = 120
) -> Rollout:
    """Compile; without `decide` as stock does."""
    with tempfile.TemporaryDirectory(prefix="fourfold-rollout-") as scratch:
        base = Path(scratch) / "c"
        output, remarks = base.with_suffix(".o"), base.with_suffix(".yaml")
        command = [str(CLANG), "clang", "--target=x86_64-linux-gnu", level, "-w", "-c", str(bitcode), "-o", str(output)]
        for flag in flags:
            command += ["-mllvm", flag]
        if decide is None:
            log: list[tuple[Ints, int]] = []
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
            if done.returncode != 0:
                raise CompileFailed(done.stderr[-300:])
        else:
            command += ["-mllvm", "-enable-ml-inliner=release", "-mllvm", "-inliner-interactive-include-default"]
            command += ["-mllvm", f"-inliner-interactive-channel-base={base}"]
            command += [f"-foptimization-record-file={remarks}", "-foptimization-record-passes=inline-ml"]
            log = _talk(command, base, decide, seconds)
        names = _names(remarks.read_text(errors="replace")) if decide is not None else []
        if len(names) != len(log):
            raise CompileFailed(f"{len(log)} decisions but {len(names)} remarks")
        text, functions = text_sizes(output.read_bytes())
    decisions = [Decision(row[:-1], int(row[-1]), taken, *name) for (row, taken), name in zip(log, names, strict=True)]
    return Rollout(text, functions, decisions)


def _talk(command: list[str], base: Path, decide: Decide, seconds: float) -> list[tuple[Ints, int]]:
    """Answer every question of the channel; [(features and stock decision, decision)]."""
    inward, outward = base.with_name("c.in"), base.with_name("c.out")
    os.mkfifo(inward)
    os.mkfifo(outward)
    # Opened so that neither waits: a compiler that fails early never opens its ends.
    reply = os.open(inward, os.O_RDWR)
    asked = os.open(outward, os.O_RDONLY | os.O_NONBLOCK)
    log: list[tuple[Ints, int]] = []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    watch = os.pidfd_open(process.pid)
    poll = select.poll()
    poll.register(asked, select.POLLIN)
    poll.register(watch, select.POLLIN)
    buffer = b""
    width = 0
    try:
        while True:
            ready = dict(poll.poll(seconds * 1000))
            if not ready:
                raise CompileFailed("it took too long")
            if asked not in ready or not (ready[asked] & select.POLLIN):
                break
            try:
                buffer += os.read(asked, 1 << 16)
            except BlockingIOError:
                continue
            while True:
                end = buffer.find(b"\n")
                if end < 0:
                    break
                if not width:
                    width = 8 * len(json.loads(buffer[:end])["features"])
                    buffer = buffer[end + 1 :]
                elif buffer.startswith(b'{"context"'):
                    buffer = buffer[end + 1 :]
                elif len(buffer) >= end + width + 2:
                    row = np.frombuffer(buffer[end + 1 : end + 1 + width], np.int64)
                    buffer = buffer[end + width + 2 :]
                    taken = int(decide(row[:-1], int(row[-1])))
                    log.append((row, taken))
                    os.write(reply, struct.pack("<q", taken))
                else:
                    break
        _, words = process.communicate(timeout=seconds)
        if process.returncode != 0:
            raise CompileFailed(words.decode(errors="replace")[-300:])
    except subprocess.TimeoutExpired as error:
        raise CompileFailed("it took too long") from error
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
        for handle in (reply, asked, watch):
            os.close(handle)
    return log


def _names(remarks: str) -> list[tuple[str, str, int, int]]:
    """(caller, callee, line, column) of each decision, in order."""
    found: list[tuple[str, str, int, int]] = []
    for body in REMARK.findall(remarks):
        caller, callee, place = FUNCTION.search(body), CALLEE.search(body), LINE.search(body)
        line, column = (int(place[1]), int(place[2])) if place else (0, 0)
        found.append((caller[1].strip("'\"") if caller else "", callee[1].strip("'\"") if callee else "", line, column))
    return found


def text_sizes(image: bytes) -> tuple[int, dict[str, int]]:
    """(bytes of executable sections, function → bytes) of an x86-64 ELF object."""
    header = struct.unpack_from("<Q", image, 0x28)[0]
    width, count, _ = struct.unpack_from("<HHH", image, 0x3A)
    count = count or struct.unpack_from("<Q", image, header + 0x20)[0]
    sections = [struct.unpack_from("<IIQQQQIIQQ", image, header + number * width) for number in range(count)]
    text = sum(section[5] for section in sections if section[1] == 1 and section[2] & 4)
    functions: dict[str, int] = {}
    for section in sections:
        if section[1] != 2:
            continue
        strings = sections[section[6]][4]
        for place in range(section[4], section[4] + section[5], 24):
            name, info, _, home, _, size = struct.unpack_from("<IBBHQQ", image, place)
            if info & 15 == 2 and home:
                functions[image[strings + name : image.index(b"\0", strings + name)].decode(errors="replace")] = size
    return text, functions
