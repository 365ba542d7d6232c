"""Text sizes of an ELF object: machine code in all, and of each function; and the tables behind them.

Read by hand, since the wrapper does it for every file of a build: the tables' layout alone is needed, and pyelftools
takes longer to load than clang to compile a small file. Plain classes for the same reason: dataclasses cost 20 ms.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_EXECUTABLE = 4
_SYMBOLS, _RELOCATIONS, _FUNCTION = 2, 4, 2


class Section:
    __slots__ = ("flags", "info", "kind", "link", "offset", "size")

    def __init__(self, kind: int, flags: int, offset: int, size: int, link: int, info: int) -> None:
        self.kind = kind
        self.flags = flags
        self.offset = offset
        self.size = size
        self.link = link
        self.info = info


class Symbol:
    """`section` is 0 where another object defines it; `name` is empty for a section's own symbol."""

    __slots__ = ("function", "name", "section", "size", "value")

    def __init__(self, name: str, section: int, value: int, size: int, function: bool) -> None:
        self.name = name
        self.section = section
        self.value = value
        self.size = size
        self.function = function


class Relocation:
    __slots__ = ("addend", "symbol")

    def __init__(self, symbol: Symbol, addend: int) -> None:
        self.symbol = symbol
        self.addend = addend


class Image:
    """An object's sections, its symbols, and section → offset → relocation."""

    def __init__(
        self,
        data: bytes,
        sections: list[Section],
        symbols: list[Symbol],
        relocations: dict[int, dict[int, Relocation]],
    ) -> None:
        self.data = data
        self.sections = sections
        self.symbols = symbols
        self.relocations = relocations
        self._at: dict[tuple[int, int], str] = {}
        for symbol in symbols:
            if symbol.function and symbol.section:
                self._at.setdefault((symbol.section, symbol.value), symbol.name)

    def function_at(self, section: int, offset: int) -> str | None:
        """The function that begins there."""
        return self._at.get((section, offset))


def text_total(data: bytes) -> int:
    """Bytes of the executable sections; raises ValueError unless it is a 64-bit little-endian ELF object."""
    return sum(section.size for section in _sections(data) if section.flags & _EXECUTABLE)


def text_sizes(data: bytes) -> tuple[int, dict[str, int]]:
    """`text_total`, and the bytes of every function symbol by name (local names that occur twice add up)."""
    sections = list(_sections(data))
    functions: dict[str, int] = {}
    for symbol in _symbols(data, sections):
        if symbol.function and symbol.section:
            functions[symbol.name] = functions.get(symbol.name, 0) + symbol.size
    return sum(section.size for section in sections if section.flags & _EXECUTABLE), functions


def read_image(data: bytes) -> Image:
    """All of an object's tables; raises ValueError as `text_total` does."""
    sections = list(_sections(data))
    symbols = list(_symbols(data, sections))
    relocations: dict[int, dict[int, Relocation]] = {}
    for section in sections:
        if section.kind == _RELOCATIONS:
            table = data[section.offset : section.offset + section.size // 24 * 24]
            for offset, info, addend in struct.iter_unpack("<QQq", table):
                relocations.setdefault(section.info, {})[offset] = Relocation(symbols[info >> 32], addend)
    return Image(data, sections, symbols, relocations)


def _symbols(data: bytes, sections: list[Section]) -> Iterator[Symbol]:
    for table in sections:
        if table.kind != _SYMBOLS:
            continue
        names = sections[table.link]
        for name, info, _, home, value, size in struct.iter_unpack(
            "<IBBHQQ", data[table.offset : table.offset + table.size // 24 * 24]
        ):
            start = names.offset + name
            key = data[start : data.index(b"\0", start)].decode("utf-8", "replace")
            yield Symbol(key, home, value, size, info & 15 == _FUNCTION)


def _sections(data: bytes) -> Iterator[Section]:
    if data[:6] != b"\x7fELF\x02\x01" or len(data) < 64:
        raise ValueError("this is not a 64-bit little-endian ELF object")
    try:
        start = struct.unpack_from("<Q", data, 40)[0]
        width, count, _ = struct.unpack_from("<HHH", data, 58)
        if count == 0 and start:  # more than fit: the first section has the number
            count = struct.unpack_from("<Q", data, start + 32)[0]
        for number in range(count):
            _, kind, flags, _, offset, size, link, info = struct.unpack_from("<IIQQQQII", data, start + number * width)
            yield Section(kind, flags, offset, size, link, info)
    except struct.error:
        raise ValueError("the object is cut off") from None
