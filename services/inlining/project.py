"""`fourfold advise --commands`: every compile of a compile_commands.json as stock and as advised, and a report.

Run as `python -m services.inlining.project FILE [--clang COMMAND] [--policy FOLDER] [--jobs N]`. Objects go to a
temporary folder; nothing of the build is touched. The report is Markdown for a pull request's comment.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.inlining.resident import hosting
from services.inlining.sizes import text_sizes
from services.inlining.wrapper import Fallback, advised, find_clang, policy_folder, understand

if TYPE_CHECKING:
    from services.inlining.wrapper import Host

_IN_FOLDER = ("sh", "-c", 'cd "$1" && shift && exec "$@"', "sh")  # a folder and a command follow
MOST_ROWS = 40  # of functions in the report: a comment has 65,536 characters


@dataclass(frozen=True)
class Unit:
    """One compile of the list. `reason` says why there are no sizes."""

    source: str
    stock: int = 0
    advised: int = 0  # what would be kept: never above stock
    functions: tuple[tuple[str, int, int], ...] = ()  # name, stock, advised
    reason: str = ""


def measure(entry: dict[str, Any], clang: Sequence[str] | None, host: Host) -> Unit:
    """Compile one entry twice and compare."""
    source = str(entry.get("file", "?"))
    command = [str(part) for part in entry.get("arguments") or shlex.split(entry.get("command", ""))]
    if not command:
        return Unit(source, reason="the entry has no command")
    wanted = understand(command[1:])
    if wanted is None:
        return Unit(source, reason="not a compile of one source at -Oz or -Os")
    folder = Path(tempfile.mkdtemp(prefix="fourfold-advise-"))
    try:
        stock, better = folder / "stock.o", folder / "advised.o"
        where = str(entry.get("directory") or ".")
        compiler = [*_IN_FOLDER, where, *(clang if clang is not None else _compiler(command[0]))]
        plain = [*compiler, *wanted.beside(str(stock))]
        done = subprocess.run(plain, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return Unit(source, reason=_last(done.stderr) or "it does not compile")
        before, functions = text_sizes(stock.read_bytes())
        status = advised(compiler, wanted.beside(str(better)), host, str(folder), quiet=True)
        if status != 0:
            return Unit(source, before, before, reason=f"the advised compile ended with {status}")
        after, changed = text_sizes(better.read_bytes())
        if after >= before:
            return Unit(source, before, before)
        names = functions.keys() | changed.keys()
        rows = ((name, functions.get(name, 0), changed.get(name, 0)) for name in names)
        return Unit(source, before, after, tuple(sorted(row for row in rows if row[1] != row[2])))
    except (Fallback, ValueError, OSError) as error:
        return Unit(source, reason=str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _compiler(named: str) -> list[str]:
    return [named] if "clang" in Path(named).name else find_clang(None)


def _last(words: str) -> str:
    lines = [line for line in words.splitlines() if "error" in line]
    return lines[0][:200] if lines else ""


def report(units: Sequence[Unit]) -> str:
    """The Markdown report: totals, files, and the functions that changed most."""
    measured = [unit for unit in units if unit.stock]
    stock, now = sum(unit.stock for unit in measured), sum(unit.advised for unit in measured)
    lines = [
        "### Code size with inlining advice",
        "",
        f"**{_change(stock, now)}**: {stock:,} → {now:,} bytes of machine code in {len(measured)} files, "
        f"{sum(unit.advised < unit.stock for unit in measured)} of them smaller, none larger.",
    ]
    files = sorted(
        (unit for unit in measured if unit.advised != unit.stock), key=lambda unit: unit.advised - unit.stock
    )
    if files:
        lines += ["", "| file | stock | advised | change |", "|---|---:|---:|---:|"]
        lines += [f"| {_code(u.source)} | {u.stock:,} | {u.advised:,} | {_change(u.stock, u.advised)} |" for u in files]
        rows = [(unit.source, *row) for unit in files for row in unit.functions]
        rows.sort(key=lambda row: (-abs(row[3] - row[2]), row[0], row[1]))
        lines += ["", f"<details><summary>{len(rows)} functions changed</summary>", ""]
        lines += ["| function | file | stock | advised | bytes |", "|---|---|---:|---:|---:|"]
        lines += [
            f"| {_code(name)} | {_code(source)} | {was or 'new'} | {is_ or 'gone'} | {is_ - was:+d} |"
            for source, name, was, is_ in rows[:MOST_ROWS]
        ]
        if len(rows) > MOST_ROWS:
            lines.append(f"| … {len(rows) - MOST_ROWS} more | | | | |")
        lines += ["", "</details>"]
    left = [unit for unit in units if unit.reason]
    if left:
        lines += ["", f"<details><summary>{len(left)} files were left as they are</summary>", ""]
        lines += [f"- {_code(unit.source)}: {unit.reason}" for unit in left[:MOST_ROWS]]
        lines += ["", "</details>"]
    return "\n".join([*lines, ""])


def _change(before: int, after: int) -> str:
    return f"{100 * (after - before) / before:+.2f} %" if before else "0 %"


def _code(text: str) -> str:
    return "`" + text.replace("`", "'").replace("|", "\\|").replace("\n", " ") + "`"


def main(given: Sequence[str]) -> int:
    """Print the report; 0 unless the list cannot be read."""
    parser = argparse.ArgumentParser(prog="fourfold advise --commands", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--clang", default="", help="the compiler's command, instead of each entry's own")
    parser.add_argument("--policy", default="", help="a folder with a policy")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args(given)
    try:
        entries = json.loads(asked.file.read_text())
        clang = find_clang(asked.clang) if asked.clang else None
        if not isinstance(entries, list):
            raise ValueError("it is not a list")
    except (OSError, ValueError, Fallback) as error:
        print(f"fourfold: {asked.file}: {error}", file=sys.stderr)
        return 1
    try:
        host = hosting(policy_folder(asked.policy))
    except (OSError, ValueError, KeyError) as error:
        print(f"fourfold: the policy cannot be read: {error}", file=sys.stderr)
        return 1
    with ThreadPoolExecutor(max(1, asked.jobs)) as pool:
        units = list(pool.map(lambda entry: measure(entry, clang, host), entries))
    print(report(units), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
