"""PCD (ascii, binary, binary_compressed) → points."""

from __future__ import annotations

import lzf
import numpy as np

from services.pointcloud.formats.geometry import Geometry, Refused, claim, damaged, numbers, whole

MOST_UNPACKED = 512 << 20
_TYPES = {
    b"F": {4: "<f4", 8: "<f8"},
    b"U": {1: "<u1", 2: "<u2", 4: "<u4", 8: "<u8"},
    b"I": {1: "<i1", 2: "<i2", 4: "<i4", 8: "<i8"},
}


def read(data: bytes) -> Geometry:
    header, start = _header(data)
    names = [name.decode(errors="replace") for name in header.get(b"FIELDS", header.get(b"COLUMNS", []))]
    sizes = [whole(word, "SIZE") for word in header.get(b"SIZE", [])]
    kinds = header.get(b"TYPE", [])
    repeats = [whole(word, "COUNT") for word in header.get(b"COUNT", [b"1"] * len(names))]
    if not names or not len(names) == len(sizes) == len(kinds) == len(repeats) or max(repeats) > 10_000:
        raise damaged("The PCD header's FIELDS, SIZE, TYPE and COUNT do not fit together.")
    try:
        types = [_TYPES[kind][size] for kind, size in zip(kinds, sizes, strict=True)]
        x, y, z = (names.index(axis) for axis in "xyz")
    except (KeyError, ValueError):
        raise damaged("The PCD header has no x, y and z of a known type.") from None
    count = whole(header.get(b"POINTS", [b""])[0], "POINTS")
    form = header[b"DATA"][0].lower()
    body = memoryview(data)[start:]
    if form == b"ascii":
        width = sum(repeats)
        claim("points", count, 2 * width - 1, len(body) + 1)
        values = numbers(bytes(body), "rows")
        if count == 0 or len(values) != count * width:
            raise damaged(f"The PCD header claims {count} points of {width} values; {len(values)} values are there.")
        offsets = np.cumsum([0, *repeats])
        return Geometry(values.reshape(count, width)[:, [offsets[x], offsets[y], offsets[z]]])
    if form == b"binary":
        claim("points", count, sum(size * n for size, n in zip(sizes, repeats, strict=True)), len(body))
        record = [(f"{i}", kind, (n,)) for i, (kind, n) in enumerate(zip(types, repeats, strict=True))]
        rows = np.frombuffer(body, np.dtype(record), count)
        return Geometry(np.concatenate([rows[f"{axis}"][:, :1] for axis in (x, y, z)], axis=1))
    if form == b"binary_compressed":
        plain = _unpacked(body, count * sum(size * n for size, n in zip(sizes, repeats, strict=True)))
        lengths = [count * size * n for size, n in zip(sizes, repeats, strict=True)]
        offsets = np.cumsum([0, *lengths])
        columns = [np.frombuffer(plain, types[axis], count * repeats[axis], offsets[axis]) for axis in (x, y, z)]
        return Geometry(np.stack([c[:: repeats[axis]] for c, axis in zip(columns, (x, y, z), strict=True)], axis=1))
    raise damaged("The PCD header's DATA is none of ascii, binary and binary_compressed.")


def _header(data: bytes) -> tuple[dict[bytes, list[bytes]], int]:
    """Key → words of each line up to DATA, and where the points begin."""
    found: dict[bytes, list[bytes]] = {}
    at = 0
    while (end := data.find(b"\n", at, at + 10_000)) >= 0 and len(found) < 64:
        words = data[at:end].split(b"#", 1)[0].split()
        at = end + 1
        if len(words) >= 2:
            found[words[0].upper()] = words[1:]
            if words[0].upper() == b"DATA":
                return found, at
    raise damaged("The PCD header does not come to its DATA line.")


def _unpacked(body: memoryview, size: int) -> bytes:
    if len(body) < 8:
        raise damaged("The compressed points are cut off.")
    packed, unpacked = (int.from_bytes(body[i : i + 4], "little") for i in (0, 4))
    claim("compressed bytes", packed, 1, len(body) - 8)
    if unpacked > MOST_UNPACKED:
        raise Refused("too-large", f"The points unpack to {unpacked} bytes; at most {MOST_UNPACKED} are taken.")
    # LZF copies at most 264 bytes for three: more cannot come out.
    if unpacked != size or unpacked > 88 * packed + 32:
        raise damaged(f"The header claims {unpacked} unpacked bytes, which its points or packed bytes do not make up.")
    try:
        plain = lzf.decompress(bytes(body[8 : 8 + packed]), unpacked)
    except ValueError:
        plain = None
    if plain is None or len(plain) != size:
        raise damaged("The compressed points cannot be unpacked.")
    return plain
