"""A codeword as a small file: which decoder it belongs to, what undoes the normalisation, and the numbers.

Little-endian, 52 bytes before the numbers:

    0   4  "FFCW"
    4   1  form of the file, 1
    5   1  precision: 0 fp32, 1 fp16, 2 int8
    6   1  packing of the numbers: 0 plain, 1 byte planes in raw DEFLATE
    7   1  0
    8   2  W, numbers in the codeword
    10  2  version of the model, for people; 0 unknown
    12  8  fingerprint of the decoder: only it can read the codeword
    20 24  centre, three float64, in the caller's units
    44  4  scale, float32, in the caller's units
    48  4  CRC-32 of everything before and after it

then the numbers: W float32, or W float16, or a float32 step and W int8 (codeword = step · integer).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shared.problems import Conflict, InputError, Unprocessable

MAGIC = b"FFCW"
MEDIA_TYPE = "application/vnd.fourfold.codeword"
MOST_WIDTH = 8192
Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
_HEAD = struct.Struct("<4sBBBBHH8s3df")
_PLAIN, _DEFLATED = 0, 1
Floats = NDArray[np.float32]


class BadCodeword(InputError):
    code = "pointcloud-bad-codeword"
    title = "The codeword's file is damaged or is none"


class ForeignCodeword(Conflict):
    code = "pointcloud-foreign-codeword"
    title = "The codeword was made for another model"


class Unencodable(Unprocessable):
    code = "pointcloud-unencodable"
    title = "The codeword does not fit into that precision"


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
    plain, planes = _numbers(codeword.values_W, precision)
    # fp32 and fp16 numbers share few exponents, which lie together once the bytes are sorted by place.
    squeezed = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = squeezed.compress(planes) + squeezed.flush()
    packing, body = (_DEFLATED, packed) if len(packed) < len(plain) else (_PLAIN, plain)
    head = _HEAD.pack(
        MAGIC,
        1,
        PRECISIONS.index(precision),
        packing,
        0,
        len(codeword.values_W),
        codeword.version & 0xFFFF,
        codeword.fingerprint,
        *codeword.centre_3.tolist(),
        codeword.scale,
    )
    return head + zlib.crc32(head + body).to_bytes(4, "little") + body


def unpack(data: bytes | bytearray) -> Codeword:
    """Raises BadCodeword; allocates no more than the widest codeword takes."""
    if len(data) < _HEAD.size + 4 or data[:4] != MAGIC:
        raise BadCodeword("The bytes do not begin like a codeword's file.")
    head, body = bytes(data[: _HEAD.size]), bytes(data[_HEAD.size + 4 :])
    _, form, number, packing, _, width, version, fingerprint, x, y, z, scale = _HEAD.unpack(head)
    if form != 1 or number >= len(PRECISIONS) or packing > _DEFLATED or not 0 < width <= MOST_WIDTH:
        raise BadCodeword("The codeword's file is of an unknown form.")
    if zlib.crc32(head + body) != int.from_bytes(data[_HEAD.size : _HEAD.size + 4], "little"):
        raise BadCodeword("The codeword's file is damaged: its checksum does not fit.")
    precision = PRECISIONS[number]
    size = {"fp32": 4 * width, "fp16": 2 * width, "int8": 4 + width}[precision]
    if packing == _DEFLATED:
        engine = zlib.decompressobj(-15)
        try:
            body = engine.decompress(body, size + 1)
        except zlib.error:
            raise BadCodeword("The codeword's numbers cannot be unpacked.") from None
    if len(body) != size:
        raise BadCodeword(f"The codeword of {width} numbers needs {size} bytes.")
    values = _values(body, precision, width, packing == _DEFLATED)
    centre = np.array([x, y, z])
    if not (np.isfinite(values).all() and np.isfinite(centre).all() and 0 < scale < np.inf):
        raise BadCodeword("The codeword's numbers are not all finite.")
    return Codeword(values, centre, float(scale), fingerprint, version, precision)


def rounded(values_W: Floats, precision: Precision) -> Floats:
    """The numbers as they come back from a file of that precision; raises Unencodable."""
    return _values(_numbers(values_W, precision)[0], precision, len(values_W), False)


def _numbers(values_W: Floats, precision: Precision) -> tuple[bytes, bytes]:
    """The numbers plain, and with their bytes sorted by place."""
    if not np.isfinite(values_W).all():
        raise Unencodable("The codeword is not finite.")
    match precision:
        case "fp32":
            plain = values_W.astype("<f4").tobytes()
            return plain, _sorted_bytes(plain, 4)
        case "fp16":
            with np.errstate(over="ignore"):
                half = values_W.astype("<f2")
            if not np.isfinite(half).all():
                raise Unencodable("The codeword has numbers beyond the range of fp16; use fp32 or int8.")
            return half.tobytes(), _sorted_bytes(half.tobytes(), 2)
        case "int8":
            step = np.float32(np.abs(values_W).max() / 127) or np.float32(1)
            whole = np.clip(np.rint(values_W / step), -127, 127).astype("<i1")
            plain = np.float32(step).astype("<f4").tobytes() + whole.tobytes()
            return plain, plain


def _values(body: bytes, precision: Precision, width: int, by_place: bool) -> Floats:
    match precision:
        case "fp32" | "fp16":
            kind = np.dtype("<f4" if precision == "fp32" else "<f2")
            if by_place:
                body = np.frombuffer(body, np.uint8).reshape(kind.itemsize, width).T.tobytes()
            return np.frombuffer(body, kind).astype(np.float32)
        case "int8":
            step = np.frombuffer(body, "<f4", 1)[0]
            return np.frombuffer(body, "<i1", width, 4).astype(np.float32) * step


def _sorted_bytes(plain: bytes, size: int) -> bytes:
    return np.frombuffer(plain, np.uint8).reshape(-1, size).T.tobytes()
