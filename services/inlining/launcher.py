"""Builds the launcher: a small program, made by the user's own clang, that starts a build's compiles without Python.

`launcher.c` asks the resident policy; where there is none, or anything else is unusual, it becomes the wrapper.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).with_name("launcher.c")


def build_launcher(target: str, clang: Sequence[str], policy: str, compiler: Sequence[str] = ()) -> int:
    """The exit status of the compile, by clang itself unless by `compiler`. The launcher is for this Python, this
    clang and this policy."""
    policy = os.path.realpath(policy)
    wrapper = [sys.executable, "-P", "-m", "services.inlining.wrapper", "--clang", shlex.join(clang)]
    wrapper += ["--policy", policy, "--fast", "--"]
    lists = {"CLANG": clang, "WRAPPER": wrapper, "POLICY": [policy]}
    head = "".join(f"#define {name} {_listed(words)}\n" for name, words in lists.items())
    command = [*(compiler or clang), "-O2", "-x", "c", "-", "-o", target]
    return subprocess.run(command, input=f"{head}{SOURCE.read_text()}".encode(), check=False).returncode


def _listed(words: Sequence[str]) -> str:
    """As C's string literals: letters and digits as they are, every other byte by its number."""
    return ", ".join('"' + "".join(map(_letter, os.fsencode(word))) + '"' for word in words)


def _letter(byte: int) -> str:
    return chr(byte) if chr(byte).isascii() and (chr(byte).isalnum() or chr(byte) in "/-_. ") else f"\\{byte:03o}"
