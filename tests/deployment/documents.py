"""The commands of a document: its indented blocks."""

from __future__ import annotations

import re
from pathlib import Path


def blocks(document: Path) -> dict[str, list[str]]:
    """Heading → its blocks of commands, as they stand."""
    found: dict[str, list[str]] = {}
    heading, lines = "", list[str]()
    for line in [*document.read_text().splitlines(), "# "]:
        if line.startswith("    "):
            lines.append(line[4:])
            continue
        if lines:
            found.setdefault(heading, []).append("\n".join(lines) + "\n")
            lines = []
        if match := re.match(r"#+ (.*)", line):
            heading = match[1]
    return found


def commands(document: Path) -> list[str]:
    """Every command, with its continued lines in one."""
    whole = "".join(text for texts in blocks(document).values() for text in texts)
    return [line.strip() for line in re.sub(r"\\\n\s*", "", whole).splitlines()]
