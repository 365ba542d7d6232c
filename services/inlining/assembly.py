"""LLVM's textual IR: what a module is made of, and the two changes made to it, locations and annotated calls.

Runs in the sandbox's children. The text is what LLVM itself printed from a module that it parsed, use-list order kept:
without that order the same module compiles to another size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_NAME = r'@("(?:[^"\\]|\\.)*"|[-\w.$]+)'
_DEFINE = re.compile(rf"^define [^\n]*?{_NAME}\([^\n]*\{{$")
_CALL = re.compile(r"^ +(?:%[^=\n]+ = )?(?:tail |musttail |notail )?(call|invoke|callbr) ")
_CALLEE = re.compile(rf"{_NAME}\(")
_ATTACHED = re.compile(r"!dbg !(\d+)")
_NODE = re.compile(r"^!(\d+) = (?:distinct )?!DI(Subprogram|File|Location)\((.*)\)$", re.MULTILINE)
_TEXT_FIELD = re.compile(r'\b(name|linkageName|filename): "((?:[^"\\]|\\.)*)"')
_NUMBER_FIELD = re.compile(r"\b(line|column): (\d+)")
_FILE_FIELD = re.compile(r"\bfile: !(\d+)")
_ASM = re.compile(r'\basm (?:[a-z]+ )*"((?:[^"\\]|\\.)*)"')
_DIRECTIVE = re.compile(r"\.\s*[A-Za-z_]|\\[0-9A-Fa-f]{2}")
_PLAIN_ESCAPES = re.compile(r"\\(09|0A|0D|22|5C)")


def facts(text: str) -> dict[str, Any]:
    """`triple`; `functions`: those defined, each with `name` in locations, `file` and `line` (null without);
    `located`: whether any has a place; `calls`; `minsize`: whether a function was compiled for
    size alone, as `-Oz` does; `assembly`: why its inline assembly is refused, or null."""
    nodes = {number: (kind, body) for number, kind, body in _NODE.findall(text)}
    functions: dict[str, Any] = {}
    calls = 0
    for line in text.splitlines():
        if line.startswith("define "):
            defined = _DEFINE.match(line)
            if defined is not None:
                attached = _ATTACHED.search(line)
                functions[_plain(defined[1])] = _place(nodes, attached[1]) if attached else None
        elif _CALL.match(line):
            calls += 1
    triple = re.search(r'^target triple = "(.*)"$', text, re.MULTILINE)
    return {
        "triple": triple[1] if triple else "",
        "functions": functions,
        "located": any(functions.values()),
        "calls": calls,
        "minsize": re.search(r"^attributes #\d+ = \{[^}]*\bminsize\b", text, re.MULTILINE) is not None,
        "assembly": _refusal(text),
    }


def _place(nodes: Mapping[str, tuple[str, str]], number: str) -> dict[str, Any] | None:
    kind, body = nodes.get(number, ("", ""))
    if kind != "Subprogram":
        return None
    words = dict(_TEXT_FIELD.findall(body))
    lines = dict(_NUMBER_FIELD.findall(body))
    file = _FILE_FIELD.search(body)
    _, file_body = nodes.get(file[1], ("", "")) if file else ("", "")
    name = words.get("linkageName") or words.get("name", "")
    return {
        "name": name,
        "file": dict(_TEXT_FIELD.findall(file_body)).get("filename", ""),
        "line": int(lines.get("line", 0)),
    }


def _refusal(text: str) -> str | None:
    """Assembly is taken where it is instructions alone: directives could read files into the object."""
    if re.search(r"^module asm ", text, re.MULTILINE):
        return "The module has assembly of its own (module asm), which is refused."
    for code in _ASM.findall(text):
        if _DIRECTIVE.search(_PLAIN_ESCAPES.sub(" ", code)):
            return "Its inline assembly has directives, which are refused; instructions alone are taken."
    return None


def locate(text: str) -> str:
    """The text with a place at every call of every function that has none: line n of `<module>`, column 1."""
    lines = text.splitlines()
    free = 1 + max((int(number) for number in re.findall(r"^!(\d+) = ", text, re.MULTILINE)), default=-1)
    unit, file, kind = free, free + 1, free + 2
    free += 4
    added = [
        f"!{unit} = distinct !DICompileUnit(language: DW_LANG_C99, file: !{file}, isOptimized: true, "
        "runtimeVersion: 0, emissionKind: LineTablesOnly)",
        f'!{file} = !DIFile(filename: "module", directory: "/")',
        f"!{kind} = !DISubroutineType(types: !{kind + 1})",
        f"!{kind + 1} = !{{}}",
    ]
    row, scope, pending = 0, -1, False
    for index, line in enumerate(lines):
        if line.startswith("define "):
            defined = _DEFINE.match(line)
            scope = -1
            if defined is not None and " !dbg " not in line:
                row += 1
                scope, free = free, free + 1
                lines[index] = f"{line[:-1]}!dbg !{scope} {{"
                added.append(
                    f"!{scope} = distinct !DISubprogram(name: {_quoted(defined[1])}, scope: null, file: !{file}, "
                    f"line: {row}, type: !{kind}, scopeLine: {row}, spFlags: DISPFlagDefinition | DISPFlagOptimized, "
                    f"unit: !{unit})"
                )
        elif line == "}":
            scope = -1
        elif scope >= 0 and (pending or _CALL.match(line)):
            # `invoke` and `callbr` go on in the next line, where what is attached stands.
            pending = not pending and bool(re.match(r"^ +(?:%[^=\n]+ = )?(?:invoke|callbr) ", line))
            if not pending and " !dbg " not in line:
                row += 1
                lines[index] = f"{line}, !dbg !{free}"
                added.append(f"!{free} = !DILocation(line: {row}, column: 1, scope: !{scope})")
                free += 1
    _name_metadata(lines, "llvm.dbg.cu", f"!{unit}")
    if '!"Debug Info Version"' not in text:
        added.append(f'!{free} = !{{i32 2, !"Debug Info Version", i32 3}}')
        _name_metadata(lines, "llvm.module.flags", f"!{free}")
    return "\n".join([*lines, *added, ""])


def _name_metadata(lines: list[str], name: str, node: str) -> None:
    start = f"!{name} = !{{"
    for index, line in enumerate(lines):
        if line.startswith(start):
            inner = line[len(start) : -1]
            lines[index] = f"{start}{inner}{', ' if inner else ''}{node}}}"
            return
    lines.append(f"{start}{node}}}")


def annotate(text: str, wanted: Mapping[tuple[str, str, int, int], bool]) -> tuple[str, int]:
    """Calls marked `alwaysinline` or `noinline`: (caller, callee, line, column) → decision; and how many were."""
    places = {
        number: dict(_NUMBER_FIELD.findall(body)) for number, kind, body in _NODE.findall(text) if kind == "Location"
    }
    lines = text.splitlines()
    count = 0
    for index, caller, line in _calls(lines):
        attached = _ATTACHED.search(line) or (
            _ATTACHED.search(lines[index + 1]) if "invoke " in line and index + 1 < len(lines) else None
        )
        callee = _CALLEE.search(line)
        if attached is None or callee is None or attached[1] not in places:
            continue
        place = places[attached[1]]
        key = (caller, _plain(callee[1]), int(place.get("line", 0)), int(place.get("column", 0)))
        if key in wanted:
            end = _closing(line, callee.end() - 1)
            lines[index] = f"{line[:end]} {'alwaysinline' if wanted[key] else 'noinline'}{line[end:]}"
            count += 1
    return "\n".join([*lines, ""]), count


def _calls(lines: list[str]) -> Iterator[tuple[int, str, str]]:
    caller = ""
    for index, line in enumerate(lines):
        if line.startswith("define "):
            defined = _DEFINE.match(line)
            caller = _plain(defined[1]) if defined else ""
        elif caller and _CALL.match(line):
            yield index, caller, line


def _closing(line: str, opening: int) -> int:
    """The index after the parenthesis that closes the one at `opening`; text in quotes does not count."""
    depth, quoted = 0, False
    for index in range(opening, len(line)):
        match line[index]:
            case '"':
                quoted = not quoted
            case "(" if not quoted:
                depth += 1
            case ")" if not quoted:
                depth -= 1
                if depth == 0:
                    return index + 1
            case _:
                pass
    return len(line)


def _plain(name: str) -> str:
    """A name as symbols have it, without the quotes and escapes of the text."""
    if not name.startswith('"'):
        return name
    raw = re.sub(rb"\\([0-9A-Fa-f]{2})", lambda found: bytes([int(found[1], 16)]), name[1:-1].encode())
    return raw.decode("utf-8", "replace")


def _quoted(name: str) -> str:
    return name if name.startswith('"') else f'"{name}"'
