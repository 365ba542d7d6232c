"""A codeword as a small file: which decoder it belongs to, what undoes the normalisation, and the numbers.

Little-endian, 52 bytes before the numbers:

    0   4  "FFCW"
    4   1  form of the file, 1
    5   1  precision: 0 fp32, 1 fp16, 2 int8
    6   2  0
    8   2  W, numbers in the codeword
    10  2  version of the model, for people; 0 unknown
    12  8  fingerprint of the decoder: only it can read the codeword
    20 24  centre, three float64, in the caller's units
    44  4  scale, float32, in the caller's units
    48  4  CRC-32 of everything before and after it

then, for int8, a float32 step (codeword = step · integer), and then the numbers' bytes by their place, all first bytes,
all second bytes …: for each place the length as two bytes, and W bytes as they are or fewer in raw DEFLATE. The places
of signs and exponents shrink to about two thirds, so a whole fp16 file is smaller than the numbers alone.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shared.problems import Conflict, InputError, Unprocessable

MAGIC = b"FFCW"
MEDIA_TYPE = "application/vnd.fourfold.codeword"
MOST_WIDTH = 8192
Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
_HEAD = struct.Struct("<4sBBHHH8s3df")
_KINDS: dict[Precision, np.dtype[Any]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2"), "int8": np.dtype("<i1")}
Floats = NDArray[np.float32]


class BadCodeword(InputError):
    code = "pointcloud-bad-codeword"
    title = "The codeword's file is damaged or is none"
    advice = "Send the file that `encode` made, whole."


class ForeignCodeword(Conflict):
    code = "pointcloud-foreign-codeword"
    title = "The codeword was made for another model"
    advice = "Encode the shape again with the version served now, or roll back."


class Unencodable(Unprocessable):
    code = "pointcloud-unencodable"
    title = "The codeword does not fit into that precision"
    advice = "Use `precision=fp32`."


@dataclass(frozen=True)
class Codeword:
    """`values_W` as the decoder sees them; `centre_3` and `scale` take its points back to the caller's units."""

    values_W: Floats
    centre_3: NDArray[np.float64]
    scale: float
    fingerprint: bytes  # 8
    version: int = 0
    precision: Precision = "fp32"


def pack(codeword: Codeword, precision: Precision) -> bytes:
    """The file; raises Unencodable where a number is beyond the precision's range."""
    step, numbers_W = _stored(codeword.values_W, precision)
    head = _HEAD.pack(
        MAGIC,
        1,
        PRECISIONS.index(precision),
        0,
        len(numbers_W),
        codeword.version & 0xFFFF,
        codeword.fingerprint,
        *codeword.centre_3.tolist(),
        codeword.scale,
    )
    body = step.astype("<f4").tobytes() if precision == "int8" else b""
    for place in numbers_W.view(np.uint8).reshape(len(numbers_W), -1).T:
        squeezer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
        plain = place.tobytes()
        packed = squeezer.compress(plain) + squeezer.flush()
        shorter = min(plain, packed, key=len)  # plain where they are as long: that is how it is told
        body += len(shorter).to_bytes(2, "little") + shorter
    return head + zlib.crc32(head + body).to_bytes(4, "little") + body


def unpack(data: bytes | bytearray) -> Codeword:
    """Raises BadCodeword; allocates no more than the widest codeword takes."""
    if len(data) < _HEAD.size + 4 or data[:4] != MAGIC:
        raise BadCodeword("The bytes do not begin like a codeword's file.")
    head, body = bytes(data[: _HEAD.size]), bytes(data[_HEAD.size + 4 :])
    _, form, number, _, width, version, fingerprint, x, y, z, scale = _HEAD.unpack(head)
    if form != 1 or number >= len(PRECISIONS) or not 0 < width <= MOST_WIDTH:
        raise BadCodeword("The codeword's file is of an unknown form.")
    if zlib.crc32(head + body) != int.from_bytes(data[_HEAD.size : _HEAD.size + 4], "little"):
        raise BadCodeword("The codeword's file is damaged: its checksum does not fit.")
    precision = PRECISIONS[number]
    values, centre = _numbers(body, precision, width), np.array([x, y, z])
    if not (np.isfinite(values).all() and np.isfinite(centre).all() and 0 < scale < np.inf):
        raise BadCodeword("The codeword's numbers are not all finite.")
    return Codeword(values, centre, float(scale), fingerprint, version, precision)


def rounded(values_W: Floats, precision: Precision) -> Floats:
    """The numbers as they come back from a file of that precision; raises Unencodable."""
    step, numbers_W = _stored(values_W, precision)
    return numbers_W.astype(np.float32) * step


def _stored(values_W: Floats, precision: Precision) -> tuple[np.float32, NDArray[Any]]:
    """A step and the numbers (W,) whose product the codeword is."""
    if not np.isfinite(values_W).all():
        raise Unencodable("The codeword is not finite.")
    if precision == "int8":
        step = np.float32(np.abs(values_W).max() / 127) or np.float32(1)
        return step, np.clip(np.rint(values_W / step), -127, 127).astype("<i1")
    with np.errstate(over="ignore"):
        numbers_W = values_W.astype(_KINDS[precision])
    if not np.isfinite(numbers_W).all():
        raise Unencodable("The codeword has numbers beyond the range of fp16; use fp32 or int8.")
    return np.float32(1), numbers_W


def _numbers(body: bytes, precision: Precision, width: int) -> Floats:
    step, at = np.float32(1), 0
    if precision == "int8":
        if len(body) < 4:
            raise BadCodeword("The codeword's file ends early.")
        step, at = np.frombuffer(body, "<f4", 1)[0], 4
    kind = _KINDS[precision]
    places = np.empty((kind.itemsize, width), np.uint8)
    for place in places:
        length = int.from_bytes(body[at : at + 2], "little")
        part, at = body[at + 2 : at + 2 + length], at + 2 + length
        if length < width:
            try:
                part = zlib.decompressobj(-15).decompress(part, width + 1)
            except zlib.error:
                raise BadCodeword("The codeword's numbers cannot be unpacked.") from None
        if len(part) != width:
            raise BadCodeword(f"The codeword's file does not hold {width} numbers.")
        place[:] = np.frombuffer(part, np.uint8)
    if at != len(body):
        raise BadCodeword("Something follows the codeword's numbers.")
    return np.ascontiguousarray(places.T).view(kind)[:, 0].astype(np.float32) * step
