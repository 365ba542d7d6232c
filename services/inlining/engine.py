"""One compile in a fresh child: bitcode in, an object with its text sizes and every inlining decision out.

The compiler is the ziglang package's clang 22. It is what users' stock clang is: a build with assertions, as llvmlite's
LLVM is, takes 1.6 times as long to the same byte and aborts on `-inline-threshold=-10`.

Shapes: S call sites seen, F features with stock's own decision last (features.WIDTH + 1).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from services.inlining.channel import Channel, ChannelBroken
from services.inlining.channel import host as host_channel
from services.inlining.features import STOCK, WIDTH, Decide
from services.inlining.replay import Decision, Places, decisions_from_remarks, replay_options
from services.inlining.sandbox import SANDBOX, CompilerCrashed, CompilerRefused, LimitExceeded, Limits, Output
from services.inlining.sizes import text_sizes
from services.inlining.static_profile import PROFILED
from shared.problems import Unprocessable

Level = Literal["z", "s", "2", "3"]
TARGET = "x86_64-unknown-linux-gnu"
_GROWTH = "-ml-advisor-size-increase-threshold=1000"  # or the advisor stops at 2 times the first size, at -O1 to -O3


class UnsafeAssembly(Unprocessable):
    code = "inlining-unsafe-assembly"
    title = "Assembly with directives is refused"
    advice = "Take the directives out of the inline assembly."


@dataclass(frozen=True)
class Module:
    """A parsed input: its textual IR, in which every call has a place, and what `assembly.facts` finds."""

    code: bytes
    triple: str
    located: bool  # whether the places are the input's own
    calls: int
    minsize: bool  # compiled for size alone, as -Oz does: it has no speed to gain
    places: Places


@dataclass(frozen=True)
class Compiled:
    """What a compile left. Sizes are bytes of machine code."""

    object: bytes = field(repr=False)
    text: int
    functions: dict[str, int]
    features_SF: NDArray[np.int64]  # empty unless the compile was advised
    decisions_S: NDArray[np.int8]
    decisions: list[Decision] = field(repr=False)  # by name, where asked for
    cpu_seconds: float = 0.0

    @property
    def stock_S(self) -> NDArray[np.int8]:
        """What stock would have decided at each site, given all before it."""
        return self.features_SF[:, STOCK].astype(np.int8)


def inspect_module(data: bytes, *, limits: Limits | None = None) -> Module:
    """Parse bitcode or textual IR; raises UnsafeAssembly for assembly that is more than instructions."""
    found, _, text = SANDBOX.run({"task": "inspect"}, data, limits=limits or Limits()).data.partition(b"\n")
    about = json.loads(found)
    if about["assembly"] is not None:
        raise UnsafeAssembly(about["assembly"])
    # Bitcode parses faster than text, and is as good where it has places.
    code = data if about["located"] else text
    return Module(code, about["triple"], about["located"], about["calls"], about["minsize"], Places(about["functions"]))


def compile_module(
    bitcode: bytes,
    *,
    decide: Decide | None = None,
    replay: str | None = None,
    places: Places | None = None,
    level: Level = "z",
    options: Sequence[str] = (),
    profiled: bool = False,
    target: str = TARGET,
    limits: Limits | None = None,
) -> Compiled:
    """Compile bitcode or textual IR whose passes have not run yet; without `decide` and `replay` as stock does.

    `decide` gets a call site's features (F,) and answers 1 to inline it; `features[STOCK]` is what stock would do.
    `replay` is the text of a replay file. With the module's `places` the decisions come by name. `options` are LLVM's
    own and trusted; `profiled` makes an object that static_profile reads. Size comes from the functions' `minsize`
    attribute, which `clang -Oz` sets; `level` chooses the pipeline. Raises CompilerCrashed, CompilerRefused or
    LimitExceeded.
    """
    limits = limits or Limits()
    arguments = [f"--target={target}", f"-O{level}", "-w", "-x", "ir", "input", "-c", "-o", "object"]
    if profiled:
        arguments += PROFILED
    pass_name = "inline" if decide is None else "inline-ml"
    if places is not None:
        arguments += ["-foptimization-record-file=remarks", f"-foptimization-record-passes=^{pass_name}$"]
    features = np.zeros((0, WIDTH + 1), np.int64)
    decisions = np.zeros(0, np.int8)
    folder = Path(tempfile.mkdtemp(prefix="fourfold-compile-"))
    try:
        (folder / "input").write_bytes(bitcode)
        inner = list(options)
        if replay is not None:
            (folder / "replay").write_text(replay)
            inner += replay_options("replay")
        if decide is None:
            out = _run_clang(arguments, inner, folder, limits)
        else:
            with Channel(folder) as channel:

                def host(ended: int) -> None:
                    nonlocal features, decisions
                    features, decisions = host_channel(*channel.descriptors, decide, ended, limits.seconds + 5)

                try:
                    out = _run_clang(arguments, [*inner, *channel.options, _GROWTH], folder, limits, host)
                except ChannelBroken as error:
                    raise CompilerCrashed(str(error)) from None
        image = read_file(folder / "object", limits.file_bytes)
        named: list[Decision] = []
        if places is not None:
            remarks = read_file(folder / "remarks", limits.file_bytes) if (folder / "remarks").exists() else b""
            named = decisions_from_remarks(remarks.decode("utf-8", "replace"), places)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text, functions = text_sizes(image)
    return Compiled(image, text, functions, features, decisions, named, out.cpu_seconds)


def _run_clang(
    arguments: Sequence[str], options: Sequence[str], folder: Path, limits: Limits, host: Any = None
) -> Output:
    inner = [part for option in options for part in ("-mllvm", option)]
    order = {"task": "clang", "arguments": [*arguments, *inner]}
    return SANDBOX.run(order, b"", limits=limits, folder=folder, meanwhile=host)


def read_file(path: Path, most: int) -> bytes:
    """A file that a child left; links are not followed, since the child may have been taken over."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        raise CompilerRefused("The compiler left no output.") from None
    with os.fdopen(descriptor, "rb") as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise LimitExceeded("It made a larger file than is allowed.")
    return data
