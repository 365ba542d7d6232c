"""C source → bitcode whose passes have not run, by the ziglang package's clang in the sandbox.

What is sent may read nothing but itself and the headers of ziglang (glibc's and clang's). Paths that lead elsewhere are
refused by name; the kernel's Landlock refuses the rest where it can; and what clang says that it read is looked through
before anything is answered.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import ziglang

from services.inlining.engine import TARGET, Level, read_file
from services.inlining.sandbox import SANDBOX, CompilerRefused, Limits
from shared.problems import InputError, Unprocessable

MOST_FLAGS = 200
_LIBRARY = Path(ziglang.__file__).parent / "lib"
_FOLDERS = (
    "include",
    "libc/include/x86-linux-gnu",
    "libc/include/generic-glibc",
    "libc/include/x86-linux-any",
    "libc/include/any-linux-any",
)
SYSTEM = (
    "-nostdinc",
    *(part for name in _FOLDERS for part in ("-isystem", str(_LIBRARY / name))),
    "-D__GLIBC_MINOR__=36",
)

_VALUE = r"[\w.+\-/ \"'()<>,:*&|=]*"
_ALLOWED = re.compile(
    rf"-D\w+(\({_VALUE}\))?(={_VALUE})?|-U\w+|-I[\w.\-/]+"
    r"|-std=(c|gnu)(89|90|99|11|17|18|2x|23)|-ansi|-pedantic|-w|-W(?!a,|l,|p,)[\w=+\-]+|-O[0-3szg]?|-g\d?|-pipe"
    r"|-m(arch|tune|cpu)=[\w.\-+]+|-m(no-)?(sse|sse2|sse3|ssse3|sse4|sse4\.1|sse4\.2|avx|avx2|bmi|bmi2|popcnt|fma|lzcnt)"
    r"|-f(no-)?(builtin|strict-aliasing|wrapv|common|signed-char|unsigned-char|omit-frame-pointer|stack-protector"
    r"|stack-protector-strong|math-errno|fast-math|trapping-math|exceptions|unwind-tables|asynchronous-unwind-tables"
    r"|strict-overflow|delete-null-pointer-checks|short-enums|jump-tables|unroll-loops|vectorize|slp-vectorize|PIC|pic"
    r"|PIE|pie|semantic-interposition|lax-vector-conversions|gnu89-inline)"
    r"|-fvisibility=(default|hidden|protected)|-ffp-contract=(on|off|fast)|-ffreestanding|-fhosted"
)
_IGNORED = re.compile(r"-O[0-3szg]?|-g\d?|-pipe|-W.*")
_INCLUDE = re.compile(
    r'(?:#|%:|\?\?=)\s*(?:include|include_next|import|embed)\b\s*(?P<what>"[^"\n]*"|<[^>\n]*>|[^\n]*)'
)
_ASSEMBLY = re.compile(r"\.\s*(?:incbin|include)\b")


class UnknownFlag(Unprocessable):
    code = "inlining-flag-refused"
    title = "This compiler flag is not on the list of those taken"
    advice = "Leave the flag out, or run `fourfold clang` at home with it."


class OutsideInclude(Unprocessable):
    code = "inlining-include-refused"
    title = "The source includes something outside of what was sent"
    advice = "Send the header along in `files`, under the path that the source names."


class SourceInvalid(Unprocessable):
    code = "inlining-source-invalid"
    title = "The source does not compile"
    advice = "Mend what the compiler says, or send the headers and flags that it lacks."


def check_flags(flags: Sequence[str]) -> list[str]:
    """The flags that change the code; raises UnknownFlag for one that is not allowed."""
    for flag in flags:
        if not _ALLOWED.fullmatch(flag) or ".." in flag or flag.startswith("-I/"):
            raise UnknownFlag(f"{flag[:100]!r} is not taken: no paths, plugins, response files or options of LLVM.")
    return [flag for flag in flags if not _IGNORED.fullmatch(flag)]


def check_names(files: Mapping[str, str]) -> None:
    """Raise InputError unless every name is a plain path below the source's folder."""
    for name in files:
        path = PurePosixPath(name)
        if (
            not re.fullmatch(r"[\w.+\-/]{1,200}", name)
            or path.is_absolute()
            or ".." in path.parts
            or len(path.parts) > 8
        ):
            raise InputError(f"{name[:100]!r} is not a name for a file of the source: a path like include/a.h is.")


def check_source(name: str, text: str) -> None:
    """Raise OutsideInclude for what would read files of the machine."""
    joined = re.sub(r"(\\|\?\?/)[ \t]*\r?\n", "", text)
    for found in _INCLUDE.finditer(joined):
        what = found["what"].strip()
        inner = what[1:-1] if what[:1] in '"<' else what
        if inner.startswith(("/", "\\", "~")) or ".." in PurePosixPath(inner.replace("\\", "/")).parts:
            raise OutsideInclude(f"{name} includes {what[:100]}; paths that lead elsewhere are refused.")
    if _ASSEMBLY.search(joined) and re.search(r"\basm\b|\b__asm(__)?\b", joined):
        raise OutsideInclude(f"{name} reads a file from assembly (.incbin or .include), which is refused.")


def to_bitcode(
    source: str,
    *,
    name: str = "input.c",
    files: Mapping[str, str] | None = None,
    flags: Sequence[str] = (),
    level: Level = "z",
    limits: Limits | None = None,
) -> bytes:
    """Bitcode of the source with line tables; `files` are the headers it includes, by path.

    Raises SourceInvalid with the compiler's first error, OutsideInclude or UnknownFlag.
    """
    sent = {**(files or {}), name: source}
    check_names(sent)
    chosen = check_flags(flags)
    for path, text in sent.items():
        check_source(path, text)
    limits = limits or Limits()
    folder = Path(tempfile.mkdtemp(prefix="fourfold-source-"))
    try:
        for path, text in sent.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        arguments = [f"--target={TARGET}", *SYSTEM, *chosen, f"-O{level}", "-gline-tables-only", "-w"]
        arguments += ["-Xclang", "-disable-llvm-passes", "-emit-llvm", "-c", name, "-o", ".bitcode"]
        arguments += ["-MD", "-MF", ".read", "-fno-caret-diagnostics", "-fno-color-diagnostics"]
        try:
            order = {"task": "clang", "headers": True, "arguments": arguments}
            SANDBOX.run(order, b"", limits=limits, folder=folder)
        except CompilerRefused as error:
            if re.search(r"(cannot open file|error: )\W*'(/|\.\.|[^']*/\.\./)", error.detail):
                raise OutsideInclude("The source includes a file outside of what was sent.") from None
            raise SourceInvalid(_own_words(error.detail, sent)) from None
        _check_read(read_file(folder / ".read", limits.file_bytes).decode("utf-8", "replace"))
        return read_file(folder / ".bitcode", limits.file_bytes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _own_words(error: str, sent: Mapping[str, str]) -> str:
    """The compiler's error if it is about what was sent; others could quote files that are not the sender's."""
    if any(error.startswith((f"{path}:", f"./{path}:")) for path in sent) or error.startswith("error: "):
        return error
    return "An included header does not compile."


def _check_read(rules: str) -> None:
    """Look through clang's list of the files that it read."""
    text = rules.partition(":")[2].replace("\\\n", " ")
    for path in re.split(r"(?<!\\)\s+", text.strip()):
        plain = path.replace("\\ ", " ")
        inside = not plain.startswith("/") and ".." not in PurePosixPath(plain).parts
        if plain and not inside and not Path(plain).resolve().is_relative_to(_LIBRARY):
            raise OutsideInclude("The source reads a file outside of what was sent.")
