"""Versioned, immutable model bundles and their aliases, on any fsspec file system.

    <root>/<name>/<version>/manifest.json   written last, exclusively: a version exists if and only if this does
    <root>/<name>/<version>/<files>
    <root>/<name>/aliases/<generation>.json the whole alias table; the highest generation is in force

An alias changes by creating the next generation, which only one writer can do: a compare-and-set that every store
with exclusive creation offers, and a history to roll back along.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.problems import Conflict, InternalError, NotFound

MANIFEST = "manifest.json"
# What a bundle may hold. Nothing here can run code when it is opened; pickle, in any suffix, is not among them.
ALLOWED_SUFFIXES = frozenset({".onnx", ".json", ".md", ".safetensors", ".npy", ".csv", ".html", ".png", ".txt"})
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}\Z")


class BundleRejected(InternalError):
    """A bundle that must not be loaded: a wrong digest, a missing or foreign file, an unreadable manifest."""

    code = "bundle-rejected"
    title = "The model's files are damaged or not acceptable"


class AliasConflict(Conflict):
    code = "alias-conflict"
    title = "The alias was changed by somebody else in the meantime"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorSpec(_Frozen):
    """One input or output of a graph. `shape` names dynamic dimensions, for example `["batch", "height", 3]`."""

    name: str
    dtype: str
    shape: list[int | str]
    unit: str = ""
    description: str = ""


class FileEntry(_Frozen):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Metric(_Frozen):
    """A quality figure on the held-out split, with its 95 % interval."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    higher_is_better: bool = True
    description: str = ""


class Manifest(_Frozen):
    """What a bundle is and where it came from. `version` is given by the repository at publication."""

    format: Literal[1] = 1
    name: str = Field(pattern=_NAME.pattern.replace(r"\Z", "$"))
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
    parent: int | None = None
    seed: int | None = None
    code_revision: str | None = None
    device: str | None = None
    libraries: dict[str, str] = {}
    constants: dict[str, Any] = Field({}, description="Pre- and post-processing constants.")


class Alias(_Frozen):
    version: int = Field(ge=1)
    weight: float = Field(1.0, ge=0, le=1, description="Share of requests, for an alias beside the champion.")


class AliasTable(_Frozen):
    """All aliases of one model at one generation; generation 0 is the empty table of a new model."""

    generation: int = 0
    aliases: dict[str, Alias] = {}
    changed_at: datetime | None = None
    changed_by: str = ""
    reason: str = ""


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


def check_model_name(name: str) -> None:
    """Raise NotFound for a name that no model can have, before it touches a path."""
    if not _NAME.match(name):
        raise NotFound(f"There is no model named {name!r}.")


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
    _write_atomically(folder / MANIFEST, manifest.model_dump_json(indent=1).encode())
    return manifest


def _write_atomically(path: Path, data: bytes, *, exclusive: bool = False) -> None:
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


class ModelRepository:
    """Bundles by name and version under one fsspec URL. Safe for many readers and writers at once."""

    def __init__(self, location: str, cache: Path | None = None) -> None:
        """`location` is a folder or an fsspec URL; `cache` is where remote bundles are kept locally."""
        fs, root = fsspec.core.url_to_fs(location, use_listings_cache=False)
        self.fs: AbstractFileSystem = fs
        self.root: str = root
        self.local = isinstance(self.fs, LocalFileSystem)
        self._cache = cache

    # -- versions

    def names(self) -> list[str]:
        """Every model that has at least one version."""
        return sorted(name for name in self._children(self.root) if _NAME.match(name) and self.versions(name))

    def versions(self, name: str) -> list[int]:
        """Published versions of `name`, ascending."""
        check_model_name(name)
        base = f"{self.root}/{name}"
        return [number for number in self._numbers(base) if self.fs.exists(f"{base}/{number}/{MANIFEST}")]

    def manifest(self, name: str, version: int) -> Manifest:
        """The manifest of one version; raises NotFound."""
        check_model_name(name)
        try:
            return Manifest.model_validate_json(self.fs.cat_file(f"{self.root}/{name}/{version}/{MANIFEST}"))
        except FileNotFoundError:
            raise NotFound(f"Model {name} has no version {version}.") from None

    def publish(self, folder: Path, *, parent: int | None = None) -> int:
        """Publish the bundle in `folder` as the next version of its model and return that version.

        The folder is verified first; the version becomes visible in one step, or not at all.
        """
        bundle = Bundle.open(folder)
        name = bundle.manifest.name
        base = f"{self.root}/{name}"
        version = max(self._numbers(base), default=0)
        while True:
            version += 1
            self.fs.makedirs(f"{base}/{version}", exist_ok=True)
            with suppress(FileExistsError):
                self._create(f"{base}/{version}/claim", b"")
                break
        self._place(bundle, version, parent)
        return version

    def seed(self, folder: Path) -> None:
        """Make the bundle in `folder` version 1 and champion of its model, if the model is new.

        Idempotent and safe to race: every racer writes the same bytes, and only one creates the manifest.
        """
        bundle = Bundle.open(folder)
        name = bundle.manifest.name
        if not self.versions(name):
            with suppress(FileExistsError):
                self._place(bundle, 1, None)
        if not self.aliases(name).aliases:
            with suppress(AliasConflict):
                self.set_alias(name, "champion", 1, expected_generation=0, by="fourfold", reason="first start")

    def _place(self, bundle: Bundle, version: int, parent: int | None) -> None:
        target = f"{self.root}/{bundle.manifest.name}/{version}"
        self.fs.makedirs(target, exist_ok=True)
        for name in bundle.manifest.files:
            data = bundle.path(name).read_bytes()
            if self.local:
                _write_atomically(Path(target) / name, data)
            else:
                self.fs.pipe_file(f"{target}/{name}", data)
        for name, entry in bundle.manifest.files.items():
            if self._digest(f"{target}/{name}") != entry.sha256:
                raise BundleRejected(f"The file {name} changed while it was being published.")
        final = bundle.manifest.model_copy(update={"version": version, "parent": parent or bundle.manifest.parent})
        self._create(f"{target}/{MANIFEST}", final.model_dump_json(indent=1).encode())

    @contextmanager
    def fetch(self, name: str, version: int) -> Iterator[Bundle]:
        """A verified local Bundle of one version, valid within the `with`; raises NotFound or BundleRejected."""
        manifest = self.manifest(name, version)
        source = f"{self.root}/{name}/{version}"
        if self.local:
            yield Bundle.open(Path(source))
            return
        with tempfile.TemporaryDirectory(dir=self._cache) as folder:
            for file in [*manifest.files, MANIFEST]:
                self.fs.get_file(f"{source}/{file}", f"{folder}/{file}")
            yield Bundle.open(Path(folder))

    # -- aliases

    def aliases(self, name: str) -> AliasTable:
        """The alias table in force."""
        check_model_name(name)
        generations = self._numbers(f"{self.root}/{name}/aliases")
        if not generations:
            return AliasTable()
        return self._alias_table(name, generations[-1])

    def newer_aliases(self, name: str, than: int) -> AliasTable | None:
        """The table in force if its generation is above `than`, else None. One look-up when nothing changed."""
        if not self.fs.exists(self._generation_path(name, than + 1)):
            return None
        return self.aliases(name)

    def alias_history(self, name: str) -> list[AliasTable]:
        """Every alias table there was, oldest first."""
        return [self._alias_table(name, number) for number in self._numbers(f"{self.root}/{name}/aliases")]

    def set_alias(
        self,
        name: str,
        alias: str,
        version: int | None,
        *,
        weight: float = 1.0,
        expected_generation: int | None = None,
        by: str = "",
        reason: str = "",
    ) -> AliasTable:
        """Point `alias` at `version` (None removes it) and return the new table.

        Raises NotFound for an unknown version, and AliasConflict if the table is no longer at `expected_generation`
        or somebody else changes it at the same moment.
        """
        if version is not None:
            self.manifest(name, version)
        current = self.aliases(name)
        if expected_generation is not None and current.generation != expected_generation:
            raise AliasConflict(f"The alias table is at generation {current.generation}, not {expected_generation}.")
        aliases = {key: value for key, value in current.aliases.items() if key != alias}
        if version is not None:
            aliases[alias] = Alias(version=version, weight=weight)
        table = AliasTable(
            generation=current.generation + 1,
            aliases=aliases,
            changed_at=datetime.now(UTC),
            changed_by=by,
            reason=reason,
        )
        path = self._generation_path(name, table.generation)
        self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            self._create(path, table.model_dump_json(indent=1).encode())
        except FileExistsError:
            raise AliasConflict("Another change was made at the same moment; read the table and try again.") from None
        return table

    # -- storage

    def _generation_path(self, name: str, generation: int) -> str:
        return f"{self.root}/{name}/aliases/{generation}.json"

    def _alias_table(self, name: str, generation: int) -> AliasTable:
        return AliasTable.model_validate_json(self.fs.cat_file(self._generation_path(name, generation)))

    def _children(self, folder: str) -> list[str]:
        try:
            return [entry.rstrip("/").rpartition("/")[2] for entry in self.fs.ls(folder, detail=False)]
        except FileNotFoundError:
            return []

    def _numbers(self, folder: str) -> list[int]:
        return sorted(int(stem) for child in self._children(folder) if (stem := child.removesuffix(".json")).isdigit())

    def _digest(self, path: str) -> str:
        stored: Any = self.fs.cat_file(path)
        return hashlib.sha256(stored).hexdigest()

    def _create(self, path: str, data: bytes) -> None:
        """Create `path` whole, or raise FileExistsError."""
        if self.local:
            _write_atomically(Path(path), data, exclusive=True)
        else:
            self.fs.pipe_file(path, data, mode="create")


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions of the named distributions, for a manifest."""
    found: dict[str, str] = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
