"""The rules of the house that import contracts cannot say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.routes import SERVICES

ROOT = Path(__file__).parents[2]
DOMAINS = sorted(path.parent.name for path in ROOT.glob("services/*/api.py"))
WORDS = {"bots", "bot", "iqa", "pointcloud", "inlining", "photo", "photograph", "tweet", "llvm", "mesh"}


def test_there_is_a_domain():
    assert "iqa" in DOMAINS


@pytest.mark.parametrize("module", ["gateway.app", *(f"services.{name}.api" for name in DOMAINS)])
def test_no_serving_process_imports_torch(module):
    check = (
        f"import sys, {module}; heavy = {{'torch', 'scipy', 'skimage', 'sklearn', 'pyarrow', 'onnx'}}; "
        "heavy &= set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT)


def test_the_command_is_light():
    check = "import sys, fourfold.cli; assert not {'aiohttp', 'fastapi', 'numpy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT)


def test_the_kit_has_no_domain_word():
    for path in (ROOT / "shared").rglob("*.py"):
        found = WORDS & set(re.findall(r"[a-z]+", path.read_text().lower()))
        assert not found, f"{path.name}: {found}"


@pytest.mark.parametrize("name", DOMAINS)
def test_every_service_is_in_the_route_table_and_the_contracts(name):
    assert name in SERVICES
    assert f"services.{name}" in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("name", DOMAINS)
def test_every_service_has_the_same_files(name):
    for file in (
        "README.md",
        "schemas.py",
        "features.py",
        "model.py",
        "predict.py",
        "train.py",
        "evaluate.py",
        "api.py",
    ):
        assert (ROOT / "services" / name / file).is_file(), file
    assert (ROOT / "services" / name / "pretrained" / "manifest.json").is_file()


def test_every_module_says_its_job_and_stays_small():
    for folder in ("fourfold", "gateway", "services", "shared"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            assert not text or text.startswith('"""'), f"{path} has no opening sentence"
            assert text.count("\n") <= 430, f"{path} has grown too long"


def test_no_file_names_an_index_address():
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    for name in tracked:
        path = ROOT / name
        if path.suffix in {".toml", ".txt", ".md", ".py", ""} and path.is_file() and path != Path(__file__):
            text = path.read_text(errors="ignore")
            assert "--index-url" not in text, name
            assert "--extra-index" not in text, name
