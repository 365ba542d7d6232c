"""Versioned, immutable model bundles and their aliases, on any fsspec file system.

    <root>/<name>/<version>/manifest.json   written last, exclusively: a version exists if and only if this does
    <root>/<name>/<version>/<files>
    <root>/<name>/made/<key>.json           the manifest of what a job made: decides between attempts of one job
    <root>/<name>/comparisons/<version>-<champion>.json   made after the training, with a later champion
    <root>/<name>/audits/, policies/        see audit_records.py
    <root>/<name>/aliases/<generation>.json the whole alias table; the highest generation is in force

An alias changes by creating the next generation, which only one writer can do: a compare-and-set that every store
with exclusive creation offers, and a history to roll back along.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from pydantic import Field

from shared.bundles import MANIFEST, MODEL_NAME, Bundle, BundleRejected, Comparison, Frozen, Manifest, write_atomically
from shared.problems import Conflict, NotFound
from shared.storage import names_in, open_location


class AliasConflict(Conflict):
    code = "alias-conflict"
    title = "The alias was changed by somebody else in the meantime"
    advice = "Look at the aliases again; repeat it if you still mean it."


CHAMPION = "champion"  # the alias that takes the traffic


class Alias(Frozen):
    version: int = Field(ge=1)
    weight: float = Field(1.0, ge=0, le=1, description="Share of requests, for an alias beside the champion.")


class AliasTable(Frozen):
    """All aliases of one model at one generation; generation 0 is the empty table of a new model."""

    generation: int = 0
    aliases: dict[str, Alias] = Field(default_factory=dict[str, Alias])
    changed_at: datetime | None = None
    changed_by: str = ""
    reason: str = ""
    audits: tuple[str, ...] = Field(default=(), description="SHA-256 of the audit reports that the gate went by.")

    @property
    def champion(self) -> int | None:
        """The version that takes the traffic; None for a model that has none yet."""
        alias = self.aliases.get(CHAMPION)
        return None if alias is None else alias.version


def check_model_name(name: str) -> None:
    """Raise NotFound for a name that no model can have, before it touches a path."""
    if not MODEL_NAME.match(name):
        raise NotFound(f"There is no model named {name!r}.")


class ModelRepository:
    """Bundles by name and version under one fsspec URL. Safe for many readers and writers at once."""

    def __init__(self, location: str, cache: Path | None = None) -> None:
        """`location` is a folder or an fsspec URL; `cache` is where remote bundles are kept locally."""
        self.fs, self.root = open_location(location)
        self.local = isinstance(self.fs, LocalFileSystem)
        self._cache = cache

    # -- versions

    def names(self) -> list[str]:
        """Every model that has at least one version."""
        return sorted(name for name in names_in(self.fs, self.root) if MODEL_NAME.match(name) and self.versions(name))

    def versions(self, name: str) -> list[int]:
        """Published versions of `name`, ascending."""
        check_model_name(name)
        base = f"{self.root}/{name}"
        return [number for number in self.numbers(base) if self.fs.exists(f"{base}/{number}/{MANIFEST}")]

    def manifest(self, name: str, version: int) -> Manifest:
        """The manifest of one version; raises NotFound."""
        check_model_name(name)
        try:
            return Manifest.model_validate_json(self.fs.cat_file(f"{self.root}/{name}/{version}/{MANIFEST}"))
        except FileNotFoundError:
            raise NotFound(f"Model {name} has no version {version}.") from None

    def publish(self, folder: Path, *, parent: int | None = None, key: str | None = None) -> int:
        """Publish the bundle in `folder` as the next version of its model and return that version.

        The folder is verified first; the version becomes visible in one step, or not at all. With a `key` (the job's
        id) it is published once, however often and by how many at once it is tried; all get the same version.
        """
        bundle = Bundle.open(folder)
        name = bundle.manifest.name
        if key is not None and (made := self.made_by(name, key)) is not None:
            return made
        base = f"{self.root}/{name}"
        version = max(self.numbers(base), default=0)
        while True:
            version += 1
            self.fs.makedirs(f"{base}/{version}", exist_ok=True)
            with suppress(FileExistsError):
                self.create(f"{base}/{version}/claim", b"")
                break
        try:
            final = self._place(bundle, version, parent, key)
        except BaseException:
            self._clear(bundle, version)  # a disk that is full should not stay so
            raise
        if key is not None:
            # Whoever creates this file has published; it holds the manifest, so that anybody can finish the job.
            self.fs.makedirs(f"{base}/made", exist_ok=True)
            with suppress(FileExistsError):
                self.create(f"{base}/made/{key}.json", final.model_dump_json(indent=1).encode())
            made = self.made_by(name, key)
            if made is not None:
                if made != version:
                    self._clear(bundle, version)
                return made
        self.create(f"{base}/{version}/{MANIFEST}", final.model_dump_json(indent=1).encode())
        return version

    def _clear(self, bundle: Bundle, version: int) -> None:
        """Delete the files of a version that will never be visible; its number stays taken."""
        for file in bundle.manifest.files:
            with suppress(OSError):
                self.fs.rm_file(f"{self.root}/{bundle.manifest.name}/{version}/{file}")

    def made_by(self, name: str, key: str) -> int | None:
        """The version that was published under `key`, made visible if its publisher did not get that far."""
        check_model_name(name)
        try:
            data: Any = self.fs.cat_file(f"{self.root}/{name}/made/{key}.json")
        except FileNotFoundError:
            return None
        version = Manifest.model_validate_json(data).version
        with suppress(FileExistsError):
            self.create(f"{self.root}/{name}/{version}/{MANIFEST}", data)
        return version

    def keep_comparison(self, name: str, version: int, comparison: Comparison) -> None:
        """Record how a version does beside a champion; the first record of a pair stays."""
        path = self._comparison_path(name, version, comparison.champion)
        self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        with suppress(FileExistsError):
            self.create(path, comparison.model_dump_json(indent=1).encode())

    def comparison(self, name: str, version: int, champion: int) -> Comparison | None:
        """How a version does beside a champion, from its training or from a comparison made since; None if unknown."""
        own = self.manifest(name, version).comparison
        if own is not None and own.champion == champion:
            return own
        with suppress(FileNotFoundError):
            return Comparison.model_validate_json(self.fs.cat_file(self._comparison_path(name, version, champion)))
        return None

    def comparisons(self, name: str, version: int) -> list[Comparison]:
        """Every comparison of a version, by the champion that it was measured beside."""
        own = self.manifest(name, version).comparison
        beside = {
            int(found[1])
            for entry in names_in(self.fs, f"{self.root}/{name}/comparisons")
            if (found := re.match(rf"{version}-(\d+)\.json\Z", entry))
        }
        if own is not None:
            beside.add(own.champion)
        found = (self.comparison(name, version, champion) for champion in sorted(beside))
        return [comparison for comparison in found if comparison is not None]

    def _comparison_path(self, name: str, version: int, champion: int) -> str:
        return f"{self.root}/{name}/comparisons/{version}-{champion}.json"

    def seed(self, folder: Path) -> None:
        """Make the bundle in `folder` version 1 and champion of its model, if the model is new.

        Idempotent and safe to race: every racer writes the same bytes, and only one creates the manifest.
        """
        bundle = Bundle.open(folder)
        name = bundle.manifest.name
        if not self.versions(name):
            final = self._place(bundle, 1, None)
            with suppress(FileExistsError):
                self.create(f"{self.root}/{name}/1/{MANIFEST}", final.model_dump_json(indent=1).encode())
        if not self.aliases(name).aliases:
            with suppress(AliasConflict):
                self.set_alias(name, CHAMPION, 1, expected_generation=0, by="fourfold", reason="first start")

    def _place(self, bundle: Bundle, version: int, parent: int | None, job: str | None = None) -> Manifest:
        """Write the files of a version, verify them, and return the manifest that will make it visible."""
        target = f"{self.root}/{bundle.manifest.name}/{version}"
        self.fs.makedirs(target, exist_ok=True)
        for name in bundle.manifest.files:
            data = bundle.path(name).read_bytes()
            if self.local:
                write_atomically(Path(target) / name, data)
            else:
                self.fs.pipe_file(f"{target}/{name}", data)
        for name, entry in bundle.manifest.files.items():
            if self._digest(f"{target}/{name}") != entry.sha256:
                raise BundleRejected(f"The file {name} changed while it was being published.")
        known = bundle.manifest
        return known.model_copy(update={"version": version, "parent": parent or known.parent, "job": job or known.job})

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
        generations = self.numbers(f"{self.root}/{name}/aliases")
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
        return [self._alias_table(name, number) for number in self.numbers(f"{self.root}/{name}/aliases")]

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
        audits: Sequence[str] = (),
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
            audits=tuple(audits),
        )
        path = self._generation_path(name, table.generation)
        self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            self.create(path, table.model_dump_json(indent=1).encode())
        except FileExistsError:
            raise AliasConflict("Another change was made at the same moment; read the table and try again.") from None
        return table

    # -- storage

    def _generation_path(self, name: str, generation: int) -> str:
        return f"{self.root}/{name}/aliases/{generation}.json"

    def _alias_table(self, name: str, generation: int) -> AliasTable:
        return AliasTable.model_validate_json(self.fs.cat_file(self._generation_path(name, generation)))

    def numbers(self, folder: str) -> list[int]:
        """The numbers that are names of folders, or of .json files, in `folder`, ascending."""
        return sorted(int(stem) for name in names_in(self.fs, folder) if (stem := name.removesuffix(".json")).isdigit())

    def _digest(self, path: str) -> str:
        stored: Any = self.fs.cat_file(path)
        return hashlib.sha256(stored).hexdigest()

    def create(self, path: str, data: bytes) -> None:
        """Create `path` whole, or raise FileExistsError."""
        if self.local:
            write_atomically(Path(path), data, exclusive=True)
        else:
            self.fs.pipe_file(path, data, mode="create")
