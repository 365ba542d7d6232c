"""A model bundle: its manifest, and a verified folder of its files. Nothing in one is ever executed or unpickled."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.problems import InternalError

MANIFEST = "manifest.json"
# What a bundle may hold. Nothing here can run code when it is opened; pickle, in any suffix, is not among them.
ALLOWED_SUFFIXES = frozenset({".onnx", ".json", ".md", ".safetensors", ".npy", ".csv", ".html", ".png", ".txt"})
MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}\Z")


class BundleRejected(InternalError):
    """A bundle that must not be loaded: a wrong digest, a missing or foreign file, an unreadable manifest."""

    code = "bundle-rejected"
    title = "The model's files are damaged or not acceptable"
    advice = "Roll back, and restore the version's files from a backup; never edit a bundle."


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorSpec(Frozen):
    """One input or output of a graph. `shape` names dynamic dimensions, for example `["batch", "height", 3]`."""

    name: str
    dtype: str
    shape: list[int | str]
    unit: str = ""
    description: str = ""


class FileEntry(Frozen):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Metric(Frozen):
    """A quality figure on the held-out split, with its 95 % interval."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    higher_is_better: bool = True
    description: str = ""


class Comparison(Frozen):
    """How the new version does beside the champion on the same held-out split: new − champion, paired."""

    champion: int = Field(ge=1)
    metric: str
    difference: Metric


class Manifest(Frozen):
    """What a bundle is and where it came from. `version` is given by the repository at publication."""

    format: Literal[1] = 1
    name: str = Field(pattern=MODEL_NAME.pattern.replace(r"\Z", "$"))
    version: int | None = Field(None, ge=1)
    domain: str
    created: datetime
    files: dict[str, FileEntry]
    graphs: dict[str, str] = Field(description="Precision or purpose → .onnx file, for example `int8`.")
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    metrics: dict[str, Metric] = {}
    metrics_split: str = Field("", description="What the metrics were measured on, in words.")
    config: dict[str, Any] = Field({}, description="The TrainConfig that made it.")
    dataset_digest: str | None = None
    comparison: Comparison | None = None
    parent: int | None = None
    job: str | None = Field(None, description="The job that made it.")
    seed: int | None = None
    code_revision: str | None = None
    device: str | None = None
    libraries: dict[str, str] = {}
    constants: dict[str, Any] = Field({}, description="Pre- and post-processing constants.")


class Bundle:
    """A verified bundle in a local folder."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Read and verify the bundle in `folder`; raises BundleRejected."""
        try:
            manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        except FileNotFoundError:
            raise BundleRejected("The bundle has no manifest.") from None
        except ValidationError as error:
            raise BundleRejected(f"The manifest is not valid: {error.errors()[0]['msg']}.") from None
        for name, entry in manifest.files.items():
            check_file_name(name)
            path = folder / name
            if path.is_symlink() or not path.is_file():
                raise BundleRejected(f"The bundle lacks the file {name}.")
            if path.stat().st_size != entry.size or file_digest(path) != entry.sha256:
                raise BundleRejected(f"The file {name} does not match its recorded SHA-256.")
        for graph in manifest.graphs.values():
            if graph not in manifest.files:
                raise BundleRejected(f"The graph {graph} is not among the bundle's files.")
        return cls(folder, manifest)

    def path(self, name: str) -> Path:
        """The verified local file `name`; only files that the manifest lists can be had."""
        if name not in self.manifest.files:
            raise BundleRejected(f"The bundle lists no file {name}.")
        return self.folder / name

    def graph(self, precision: str) -> Path:
        """The .onnx file of `precision`, or the bundle's first graph if it has none of that precision."""
        graphs = self.manifest.graphs
        if not graphs:
            raise BundleRejected("The bundle has no graph to serve.")
        return self.path(graphs.get(precision) or next(iter(graphs.values())))


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_file_name(name: str) -> None:
    """Raise BundleRejected unless `name` is a plain file name of an allowed kind."""
    if not _FILE.match(name) or Path(name).suffix not in ALLOWED_SUFFIXES or name == MANIFEST:
        raise BundleRejected(f"A bundle may not hold a file named {name!r}.")


def write_manifest(folder: Path, *, files: list[str], **fields: Any) -> Manifest:
    """Record the SHA-256 and size of `files` in `folder`, write manifest.json there, and return it.

    `fields` are the Manifest's other members; `created` is set here if absent.
    """
    for name in files:
        check_file_name(name)
    entries = {
        name: FileEntry(sha256=file_digest(folder / name), size=(folder / name).stat().st_size) for name in files
    }
    manifest = Manifest.model_validate({"created": datetime.now(UTC), **fields, "files": entries})
    write_atomically(folder / MANIFEST, manifest.model_dump_json(indent=1).encode())
    return manifest


def write_atomically(path: Path, data: bytes, *, exclusive: bool = False) -> None:
    """Write `data` so that `path` is either absent or whole; with `exclusive`, FileExistsError if it is there."""
    draft = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with draft.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if exclusive:
            os.link(draft, path)
        else:
            draft.replace(path)
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions of the named distributions, for a manifest."""
    found: dict[str, str] = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def code_revision() -> str | None:
    """The commit of the running code, for a manifest; None where it is not in a repository."""
    command: list[Any] = ["git", "-C", Path(__file__).resolve().parents[1], "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
