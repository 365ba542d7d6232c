"""What every reader of a file returns, and how it refuses a file.

Shapes: V vertices, T triangles. Nothing here or beside it imports a web framework: it runs in the limited child.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

MOST_VERTICES = 50_000_000
MOST_TRIANGLES = 20_000_000
Kind = Literal["empty", "unknown", "damaged", "too-large", "not-finite", "bad-index", "too-few", "no-extent"]


class Refused(Exception):
    """The file cannot be used; `kind` chooses the problem that the caller is answered with."""

    def __init__(self, kind: Kind, detail: str) -> None:
        super().__init__(detail)
        self.kind: Kind = kind
        self.detail = detail


@dataclass(frozen=True)
class Geometry:
    """Points, or a mesh: coordinates in the file's own units, as it stores them."""

    vertices_V3: NDArray[Any]
    triangles_T3: NDArray[np.int64] | None = None
    total: int | None = None  # points in the file, where only a part of them was taken
    notes: list[str] = field(default_factory=list[str])


def damaged(detail: str) -> Refused:
    """A file that ends early, contradicts itself or cannot be read."""
    return Refused("damaged", detail)


def claim(what: str, count: int, size: int, room: int) -> None:
    """Raise Refused unless `count` items of at least `size` bytes fit into the `room` bytes that are there."""
    if count < 0:
        raise damaged(f"The header claims {count} {what}.")
    if count * size > room:
        raise damaged(
            f"The header claims {count} {what}, at least {count * size} bytes; {max(0, room)} bytes are there."
        )


def whole(text: bytes | str, what: str) -> int:
    """`text` as a count that is not absurd; raises Refused."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < 2**63:
        raise damaged(f"The header's {what} is not a count.")
    return number


def fan(sizes: NDArray[np.int64], corners: NDArray[np.int64]) -> NDArray[np.int64]:
    """Triangles (T, 3) of polygons whose corners follow each other in `corners`, each cut from its first corner.

    Polygons of fewer than three corners are left out.
    """
    if sizes.size and (sizes == 3).all():
        return corners.reshape(-1, 3)
    start = np.cumsum(sizes) - sizes
    cuts = np.maximum(sizes - 2, 0)
    first = np.repeat(start, cuts)
    step = np.arange(len(first)) - np.repeat(np.cumsum(cuts) - cuts, cuts)
    return np.stack([corners[first], corners[first + step + 1], corners[first + step + 2]], axis=1)


def numbers(text: bytes, what: str) -> NDArray[np.float64]:
    """All numbers of a text, separated by white space; raises Refused for anything else in it."""
    try:
        return np.array(text.split(), np.float64) if len(text) < 4096 else _many_numbers(text)
    except (ValueError, OverflowError, DeprecationWarning):
        raise damaged(f"The {what} are not all numbers.") from None


def _many_numbers(text: bytes) -> NDArray[np.float64]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy only warns where the text ends early
        return np.fromstring(text, np.float64, sep=" ")


def lines_of(text: bytes) -> list[bytes]:
    """The lines that say something, without comments."""
    without = re.sub(rb"#[^\n]*", b"", text)
    return [line for line in (line.strip() for line in without.splitlines()) if line]


def check(geometry: Geometry, drop: bool) -> Geometry:
    """The geometry, finite and with indices in range; raises Refused. `drop` leaves bare points out that are not."""
    vertices, triangles = geometry.vertices_V3, geometry.triangles_T3
    if len(vertices) == 0:
        raise Refused("empty", "The file holds no point.")
    if len(vertices) > MOST_VERTICES or (triangles is not None and len(triangles) > MOST_TRIANGLES):
        raise Refused("too-large", f"At most {MOST_VERTICES} points and {MOST_TRIANGLES} triangles are taken.")
    if triangles is not None and len(triangles) and (triangles.min() < 0 or triangles.max() >= len(vertices)):
        bad = int(np.flatnonzero(((triangles < 0) | (triangles >= len(vertices))).any(axis=1))[0])
        raise Refused("bad-index", f"Triangle {bad} names a vertex that is not among the {len(vertices)}.")
    finite = np.isfinite(vertices).all(axis=1)
    if finite.all():
        return geometry
    count, first = int((~finite).sum()), int(np.flatnonzero(~finite)[0])
    if not drop or triangles is not None:
        what = f"{count} of {len(vertices)} points are not finite, the first is number {first}"
        raise Refused("not-finite", f"{what}; non_finite=drop leaves such points of a cloud out.")
    if count == len(vertices):
        raise Refused("empty", "The file holds no finite point.")
    notes = [*geometry.notes, f"{count} points that are not finite were left out"]
    return Geometry(vertices[finite], None, geometry.total, notes)
