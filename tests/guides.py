"""A page of the documentation as its tests see it: its shell blocks with what they should print, its files, its links.

A fenced block `sh` (or `python`, without a file's name) is run, the blocks of a page one after the other in one
session. A block `text` right after it is what it prints: `…` stands for anything, alone on a line for any lines;
numbers with a decimal point may differ a little. After `text fails` it must end with an error. Commands that no test
can run are indented instead.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
_DECIMAL = re.compile(r"[+-]?\d+\.\d+")
_BOX = re.compile(r"[─-╿]{2,}")
_PARTS = re.compile(rf"…|{_BOX.pattern}|{_DECIMAL.pattern}|.")


@dataclass
class Block:
    """A fenced block; `expected` is the text block after a shell block."""

    kind: str  # the word after the fence: a language
    name: str  # the words after it, for a file its path
    text: str
    line: int
    expected: str | None = None
    fails: bool = False

    @property
    def runs(self):
        return self.kind == "sh" or (self.kind == "python" and not self.name)


class Page:
    def __init__(self, path):
        self.path = path
        self.text = path.read_text(encoding="utf-8")
        self.tokens = MarkdownIt().enable("table").parse(self.text)

    def blocks(self):
        """Fenced blocks in their order."""
        found = []
        for token in self.tokens:
            if token.type != "fence":
                if token.type == "heading_open":
                    found.append(None)  # what is printed does not stand under another heading
                continue
            kind, _, name = token.info.strip().partition(" ")
            if kind == "text" and found and found[-1] is not None and found[-1].runs:
                found[-1].expected, found[-1].fails = token.content, name == "fails"
            else:
                found.append(Block(kind, name, token.content, (token.map or [0])[0] + 1))
        return [block for block in found if block is not None]

    def links(self):
        """Targets of links and pictures."""
        inline = [child for token in self.tokens for child in token.children or ()]
        targets = [child.attrGet("href") or child.attrGet("src") for child in inline]
        return [str(target) for target in targets if target]

    def anchors(self):
        """Names of the headings, as GitHub makes them."""
        names = set()
        for before, token in zip(self.tokens, self.tokens[1:], strict=False):
            if before.type == "heading_open":
                plain = "".join(child.content for child in token.children or ())
                name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
                number = 0
                while (unique := f"{name}-{number}" if number else name) in names:
                    number += 1
                names.add(unique)
        return names


class Shell:
    """One shell session over several processes: folder and variables go from block to block."""

    def __init__(self, folder, environment, state):
        """Starts in `folder`; `state` is a file of its own to keep the session in."""
        self.environment = environment
        self._state = state
        self._state.write_text(f'cd "{folder}"\n')

    def run(self, block, timeout=400):
        """Run one block and hold what it prints against the page."""
        text = block.text if block.kind == "sh" else f"python - <<'PYTHON'\n{block.text}PYTHON\n"
        script = f"""
            . "{self._state}"
            trap '{{ export -p; echo "cd \\"$PWD\\""; }} > "{self._state}"' EXIT
            set -aeuo pipefail\n{text}"""
        done = subprocess.run(
            ["bash", "-c", script],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        place = f"line {block.line}:\n{block.text}\n{done.stdout}"
        assert (done.returncode != 0) == block.fails, place
        if block.expected is not None:
            assert prints(block.expected, done.stdout), f"{place}\n— expected —\n{block.expected}"
        return done.stdout


def prints(expected, output):
    """Whether `output` is what a page shows."""
    return _follow(_lines(expected), _lines(output))


def _lines(text):
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def _follow(wanted, given):
    if not wanted:
        return not given
    if wanted[0] == "…":
        return any(_follow(wanted[1:], given[skipped:]) for skipped in range(len(given) + 1))
    return bool(given) and _same(wanted[0], given[0]) and _follow(wanted[1:], given[1:])


def _same(wanted, given):
    pattern = "".join(
        ".*"
        if part == "…"
        else "[─-╿]+"
        if _BOX.fullmatch(part)
        else r"([+-]?\d+\.\d+)"
        if _DECIMAL.fullmatch(part)
        else re.escape(part)
        for part in _PARTS.findall(wanted)
    )
    found = re.fullmatch(pattern, given)
    numbers = [float(part) for part in _PARTS.findall(wanted) if _DECIMAL.fullmatch(part)]
    return found is not None and all(
        abs(float(other) - number) <= 0.05 * abs(number) + 0.1
        for number, other in zip(numbers, found.groups(), strict=True)
    )
