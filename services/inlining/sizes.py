"""Text sizes of an ELF object: machine code in all, and of each function."""

from __future__ import annotations

from io import BytesIO

from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection


def text_sizes(data: bytes) -> tuple[int, dict[str, int]]:
    """Bytes of the executable sections, and of every function symbol, by name (local names that occur twice add up)."""
    elf = ELFFile(BytesIO(data))
    total = sum(
        section["sh_size"] for section in elf.iter_sections() if section["sh_flags"] & SH_FLAGS.SHF_EXECINSTR
    )
    functions: dict[str, int] = {}
    for table in elf.iter_sections("SHT_SYMTAB"):
        if isinstance(table, SymbolTableSection):
            for symbol in table.iter_symbols():
                if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_shndx"] != "SHN_UNDEF":
                    functions[symbol.name] = functions.get(symbol.name, 0) + symbol["st_size"]
    return total, functions
