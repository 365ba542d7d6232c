"""What is sent of a module for advice: its content, and for C source the headers of its own that it includes."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*["<]([^">\n]+)[">]', re.MULTILINE)


def module_of(path: Path, flags: Sequence[str] = ()) -> dict[str, Any]:
    """The members `format`, `content`, `name`, `files` and `flags` of a request for advice.

    Headers are looked for beside the file that includes them and in the folders of `-I`, and only below the folder that
    holds all of these; the system's own are the service's.
    """
    if path.suffix == ".bc":
        return {"format": "bitcode", "content": base64.b64encode(path.read_bytes()).decode()}
    if path.suffix == ".ll":
        return {"format": "ir", "content": path.read_text(errors="replace")}
    source = path.resolve()
    folders = [Path(flag[2:]).resolve() for flag in flags if flag.startswith("-I") and len(flag) > 2]
    root = Path(os.path.commonpath([source.parent, *folders]))
    files: dict[str, str] = {}
    waiting = [source]
    while waiting:
        current = waiting.pop()
        text = current.read_text(errors="replace")
        files[current.relative_to(root).as_posix()] = text
        for name in _INCLUDE.findall(text):
            for folder in (current.parent, *folders):
                found = (folder / name).resolve()
                inside = found.is_relative_to(root) and found.relative_to(root).as_posix() not in files
                if inside and found.is_file() and found not in waiting:
                    waiting.append(found)
                    break
    name = source.relative_to(root).as_posix()
    own = [f"-I{folder.relative_to(root).as_posix()}" for folder in folders]
    others = [flag for flag in flags if not flag.startswith("-I")]
    return {"format": "c", "content": files.pop(name), "name": name, "files": files, "flags": [*own, *others]}
