"""Text sizes of an ELF object: machine code in all, and of each function.

Read by hand, since the wrapper does it for every file of a build: the tables' layout alone is needed, and pyelftools
takes longer to load than clang to compile a small file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_EXECUTABLE, _SYMBOLS, _FUNCTION = 4, 2, 2


@dataclass(frozen=True)
class _Section:
    kind: int
    flags: int
    offset: int
    size: int
    link: int


def text_total(data: bytes) -> int:
    """Bytes of the executable sections; raises ValueError unless it is a 64-bit little-endian ELF object."""
    return sum(section.size for section in _sections(data) if section.flags & _EXECUTABLE)


def text_sizes(data: bytes) -> tuple[int, dict[str, int]]:
    """`text_total`, and the bytes of every function symbol by name (local names that occur twice add up)."""
    sections = list(_sections(data))
    functions: dict[str, int] = {}
    for table in sections:
        if table.kind != _SYMBOLS:
            continue
        names = sections[table.link]
        for name, info, _, home, _, size in struct.iter_unpack(
            "<IBBHQQ", data[table.offset : table.offset + table.size // 24 * 24]
        ):
            if info & 15 == _FUNCTION and home:
                start = names.offset + name
                key = data[start : data.index(b"\0", start)].decode("utf-8", "replace")
                functions[key] = functions.get(key, 0) + size
    return sum(section.size for section in sections if section.flags & _EXECUTABLE), functions


def _sections(data: bytes) -> Iterator[_Section]:
    if data[:6] != b"\x7fELF\x02\x01" or len(data) < 64:
        raise ValueError("this is not a 64-bit little-endian ELF object")
    try:
        start = struct.unpack_from("<Q", data, 40)[0]
        width, count, _ = struct.unpack_from("<HHH", data, 58)
        if count == 0 and start:  # more than fit: the first section has the number
            count = struct.unpack_from("<Q", data, start + 32)[0]
        for number in range(count):
            _, kind, flags, _, offset, size, link = struct.unpack_from("<IIQQQQI", data, start + number * width)
            yield _Section(kind, flags, offset, size, link)
    except struct.error:
        raise ValueError("the object is cut off") from None
