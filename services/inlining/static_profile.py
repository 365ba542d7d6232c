"""How often a compiled function's code is expected to run, from LLVM's own block frequencies; nothing is run.

`-fbasic-block-address-map` with `-pgo-analysis-map` writes into the object where each basic block lies, how often it is
entered by LLVM's static branch heuristics (Ball and Larus, 1993; Wu and Larus, 1994), and where its calls end.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.inlining.sizes import Image, read_image

PROFILED = ("-fbasic-block-address-map", "-mllvm", "-pgo-analysis-map=func-entry-count,bb-freq")
MAP, _VERSION = 0x6FFF4C0A, 5  # SHT_LLVM_BB_ADDR_MAP, as LLVM 22 writes it
_ENTRY, _FREQUENCY, _BRANCHES, _CALLS = 1, 2, 4, 32
_CALL, _JUMP = 0xE8, 0xE9


@dataclass
class Work:
    """Expected of one entry of a function: bytes of machine code executed in it, and calls of functions that the
    object defines."""

    bytes: float = 0.0
    calls: float = 0.0


def profile(data: bytes) -> dict[str, Work]:
    """Function → its work, of an object that was compiled with PROFILED; raises ValueError for another form."""
    image = read_image(data)
    found: dict[str, Work] = {}
    for number, section in enumerate(image.sections):
        if section.kind == MAP:
            reader = _Reader(data[section.offset : section.offset + section.size])
            while not reader.done:
                _function(image, number, section.link, reader, found)
    return found


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self.place = data, 0

    @property
    def done(self) -> bool:
        return self.place >= len(self._data)

    def fixed(self, size: int) -> int:
        part = self._data[self.place : self.place + size]
        if len(part) < size:
            raise ValueError("the map of basic blocks is cut off")
        self.place += size
        return int.from_bytes(part, "little")

    def number(self) -> int:
        """ULEB128."""
        value = shift = 0
        while True:
            byte = self.fixed(1)
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value


def _function(image: Image, map_: int, text: int, reader: _Reader, found: dict[str, Work]) -> None:
    if reader.fixed(1) != _VERSION:
        raise ValueError("another version of the map of basic blocks")
    features = reader.fixed(2)
    if features & ~(_ENTRY | _FREQUENCY | _BRANCHES | _CALLS) or not features & _FREQUENCY:
        raise ValueError("another form of the map of basic blocks")
    at = image.relocations.get(map_, {}).get(reader.place)
    reader.fixed(8)
    start = end = at.symbol.value + at.addend if at is not None else 0
    blocks: list[tuple[int, list[int]]] = []  # size, ends of calls
    for _ in range(reader.number()):
        reader.number()
        begin = place = end + reader.number()
        ends: list[int] = []
        if features & _CALLS:
            for _ in range(reader.number()):
                place += reader.number()
                ends.append(place)
        end = place + reader.number()
        reader.number()
        blocks.append((end - begin, ends))
    if features & _ENTRY:
        reader.number()
    frequencies: list[int] = []
    for _ in blocks:
        frequencies.append(reader.number())
        if features & _BRANCHES:
            for _ in range(2 * reader.number()):
                reader.number()
    name = image.function_at(text, start)
    if name is None or not frequencies or not frequencies[0]:
        return
    work = found.setdefault(name, Work())
    for (size, ends), frequency in zip(blocks, frequencies, strict=True):
        times = frequency / frequencies[0]
        work.bytes += times * size
        work.calls += times * sum(_is_inner(image, text, place) for place in ends)


def _is_inner(image: Image, text: int, end: int) -> bool:
    """Whether the call or jump whose instruction ends there goes straight to a function of the object."""
    at = image.relocations.get(text, {}).get(end - 4)
    if at is not None:
        home = at.symbol.section
        begins = image.function_at(home, at.symbol.value + at.addend + 4) is not None
        return bool(home) and (at.symbol.function or begins)
    section = image.sections[text]
    code = image.data[section.offset + end - 5 : section.offset + end]
    if len(code) < 5 or code[0] not in (_CALL, _JUMP):
        return False
    return image.function_at(text, end + int.from_bytes(code[1:], "little", signed=True)) is not None
