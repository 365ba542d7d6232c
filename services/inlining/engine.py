"""One compile in a fresh child: bitcode in, an object with its text sizes and every inlining decision out.

Shapes: S call sites seen, F features with stock's own decision last (features.WIDTH + 1).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from services.inlining.channel import Channel, ChannelBroken, Decide
from services.inlining.features import STOCK, WIDTH
from services.inlining.sandbox import SANDBOX, CompilerCrashed, Limits
from services.inlining.sizes import text_sizes

Level = Literal["z", "s", "2", "3"]
_GROWTH = "-ml-advisor-size-increase-threshold=1000"  # or the advisor stops at 2 × the first size, at -O1 to -O3


@dataclass(frozen=True)
class Compiled:
    """What a compile left. Sizes are bytes of machine code."""

    object: bytes
    text: int
    functions: dict[str, int]
    features_SF: NDArray[np.int64]  # empty unless the compile was advised
    decisions_S: NDArray[np.int8]
    messages: str = field(default="", repr=False)

    @property
    def stock_S(self) -> NDArray[np.int8]:
        """What stock would have decided at each site, given all before it."""
        return self.features_SF[:, STOCK].astype(np.int8)


def compile_module(
    bitcode: bytes,
    *,
    decide: Decide | None = None,
    level: Level = "z",
    options: Sequence[str] = (),
    limits: Limits | None = None,
) -> Compiled:
    """Compile bitcode (or textual IR) whose passes have not run yet; `decide=None` is stock.

    `decide` gets a call site's features (F,) and answers 1 to inline it; `features[STOCK]` is what stock would do.
    `options` are LLVM's own and trusted. Size comes from the functions' `minsize` attribute, which `clang -Oz` sets;
    `level` chooses the pipeline. Raises CompilerCrashed, CompilerRefused or LimitExceeded.
    """
    limits = limits or Limits()
    order = {
        "task": "compile",
        "options": list(options),
        "level": 3 if level == "3" else 2,
        "small": level == "z",
    }
    features = np.zeros((0, WIDTH + 1), np.int64)
    decisions = np.zeros(0, np.int8)
    if decide is None:
        out = SANDBOX.run(order, bitcode, limits=limits)
    else:
        folder = Path(tempfile.mkdtemp(prefix="fourfold-compile-"))
        try:
            with Channel(folder) as channel:
                order["options"] += [*channel.options, _GROWTH]

                def host(ended: int) -> None:
                    nonlocal features, decisions
                    features, decisions = channel.host(decide, ended, limits.seconds + 5)

                try:
                    out = SANDBOX.run(order, bitcode, limits=limits, folder=folder, meanwhile=host)
                except ChannelBroken as error:
                    raise CompilerCrashed(str(error)) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    text, functions = text_sizes(out.data)
    return Compiled(out.data, text, functions, features, decisions, out.messages)
