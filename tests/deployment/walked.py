"""Whether what `make images-test` is about has changed since it last passed."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).with_name("walked.json")
FILES = (
    *(
        "Dockerfile",
        ".dockerignore",
        "image-trim.sh",
        "constraints-gpu.txt",
        "docker-compose.yml",
        "compose.gpu.yml",
        "compose.s3.yml",
    ),
    *("docs/compose.md", "tests/images.py", "tests/engine.py", "tests/standins.py"),
)


def digest() -> str:
    """Of the files that make the images and the stack, and of what walks them."""
    whole = hashlib.sha256()
    for name in FILES:
        data = (ROOT / name).read_bytes()
        whole.update(f"{name} {len(data)}\n".encode() + data)
    return whole.hexdigest()


def passed() -> str | None:
    """The day on which images-test passed with the files as they are; None if they have changed."""
    known = json.loads(RECORD.read_text())
    return known["passed"] if known["files"] == digest() else None


def record() -> None:
    """Keep that images-test passed now. The file is committed."""
    now = {"files": digest(), "passed": time.strftime("%Y-%m-%d", time.gmtime())}
    RECORD.write_text(json.dumps(now, indent=1) + "\n")
