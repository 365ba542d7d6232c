"""A fifth domain, built of docs/extending.md alone in a copy of the tree: written, trained, served, promoted."""

import os
import shutil
import subprocess
from dataclasses import replace

from tests.guides import ROOT, Page, Shell
from tests.running import Up


def test_the_page_makes_a_domain(tmp_path):
    tree = tmp_path / "fourfold"
    tracked = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    for name in filter(None, tracked.split("\0")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, tree / name)
    home = tmp_path / ".fourfold"
    environment = {**os.environ, "PYTHONPATH": str(tree), "FOURFOLD_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PATH"] = f"{ROOT / '.venv' / 'bin'}:{environment['PATH']}"
    shell = Shell(tree, environment, tmp_path / "state")
    up = None
    try:
        for block in Page(ROOT / "docs" / "extending.md").blocks():
            if block.name and block.kind != "text":
                (tree / block.name).write_text(block.text)
                continue
            if "localhost:8080" in block.text and up is None:
                up = Up(home, folder=tree, PYTHONPATH=str(tree))
            if block.runs:
                where = f"127.0.0.1:{up.port}" if up else ""
                shell.run(replace(block, text=block.text.replace("localhost:8080", where)))
        assert up is not None
        assert "digits     ready in" in up.text
    finally:
        if up is not None:
            up.stop()
