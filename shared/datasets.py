"""Data sets: immutable, named by their content, on any fsspec file system; what is known of them is in the database.

    <root>/blobs/<2 digits>/<SHA-256>     each file once, however many data sets hold it
    <root>/sets/<digest>.json             which files, under which paths, make the data set

A data set's digest is the SHA-256 of its kind and of the sorted lines `<file's SHA-256> <size> <path>`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from sqlalchemy import JSON, Engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from shared.bundles import file_digest, write_atomically
from shared.database import Base
from shared.problems import Conflict, NotFound, Unprocessable
from shared.settings import Settings
from shared.storage import names_in, open_location
from shared.unpacking import ArchiveTooLarge, BadArchive, check_path, unpack, without_common_folder

CHUNK = 1 << 20
YOUNG_SECONDS = 86_400.0  # files that no data set names yet may belong to one that is being uploaded
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")

State = Literal["validating", "valid", "flawed", "invalid"]


class MissingFiles(Conflict):
    """Some files of a listing were never uploaded; `missing` has their SHA-256."""

    code = "missing-files"
    title = "Upload these files first"
    advice = "PUT the files whose SHA-256 `missing` has, then repeat it. `fourfold datasets add` does both."


class DatasetUnusable(Unprocessable):
    """A data set that a training cannot use: of another kind, invalid, or with bad files that were not excluded."""

    code = "dataset-unusable"
    title = "The data set cannot be used"
    advice = "Mend the files in `findings` and add the set again, or set `bad_files` to `exclude`."


class DatasetBusy(Conflict):
    code = "dataset-busy"
    title = "The data set is in use"
    advice = "Wait for the job that the detail names; a set that a version was made of stays."


class Finding(BaseModel):
    """One thing that is wrong, and where."""

    file: str
    line: int | None = None
    problem: str


class Report(BaseModel):
    """What a domain found in a data set. `flawed`: usable without the files of the findings."""

    state: Literal["valid", "flawed", "invalid"]
    findings: list[Finding] = Field(default=[], description="The first hundred.")
    counts: dict[str, int] = Field(default={}, description="What there is, for example images in each split.")


class FileOf(BaseModel):
    """One file of a data set."""

    model_config = ConfigDict(extra="forbid")
    path: str = Field(min_length=1, max_length=500)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Dataset(BaseModel):
    """What is known of a data set; `created_at` is seconds since 1970."""

    digest: str
    name: str
    kind: str
    files: int
    bytes: int
    created_at: float
    created_by: str
    state: State
    report: dict[str, Any]


class DatasetRow(Base):
    __tablename__ = "datasets"

    digest: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    kind: Mapped[str]
    files: Mapped[int]
    bytes: Mapped[int]
    created_at: Mapped[float]
    created_by: Mapped[str]
    state: Mapped[str]
    report: Mapped[dict[str, Any]] = mapped_column(JSON)

    def as_dataset(self) -> Dataset:
        return Dataset.model_validate({name: getattr(self, name) for name in Dataset.model_fields})


_LISTING = TypeAdapter(list[FileOf])


def digest_of(kind: str, files: Iterable[FileOf]) -> str:
    """The data set's digest, 64 hex digits."""
    lines = sorted(f"{item.sha256} {item.size} {item.path}" for item in files)
    return hashlib.sha256("\n".join([kind, *lines]).encode()).hexdigest()


def folder_digest(kind: str, folder: Path) -> str:
    """The digest that the files below `folder` have as a data set of `kind`."""
    files: list[FileOf] = []
    for path in folder.rglob("*"):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            files.append(FileOf(path=name, sha256=file_digest(path), size=path.stat().st_size))
    return digest_of(kind, files)


class Datasets:
    """All data sets. Safe for many readers and writers at once."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.fs, self.root = open_location(settings.datasets_location)
        self.local = isinstance(self.fs, LocalFileSystem)
        self._engine = engine
        self._most_bytes = settings.max_dataset_bytes
        self._most_files = settings.max_dataset_files

    # -- files

    def put_file(self, draft: Path, sha256: str) -> None:
        """Keep the file at `draft`, which is gone afterwards, under its SHA-256; raises Unprocessable if it differs."""
        found = file_digest(draft)
        if found != sha256:
            raise Unprocessable(f"The bytes have the SHA-256 {found}, not the one named.")
        self._keep(draft, sha256)

    def join_parts(self, sha256: str, parts: list[str], draft: Path) -> None:
        """Keep the file that the uploaded `parts` (their SHA-256, in order) make up, put together at `draft`.

        Raises MissingFiles for parts that were never uploaded, ArchiveTooLarge, and as `put_file`.
        """
        missing = sorted({part for part in parts if not self.fs.exists(self._blob(part))})
        if missing:
            raise MissingFiles(f"{len(missing)} of {len(parts)} parts are not here yet.", missing=missing)
        size = 0
        with draft.open("wb") as target:
            for part in parts:
                with self.fs.open(self._blob(part), "rb") as source:
                    while data := source.read(CHUNK):
                        size += len(data)
                        if size > self._most_bytes:
                            raise ArchiveTooLarge(f"A data set may have {self._most_bytes} bytes.")
                        target.write(data)  # pyright: ignore[reportArgumentType] - fsspec's read is untyped
        self.put_file(draft, sha256)

    def _keep(self, draft: Path, sha256: str) -> None:
        """`put_file` for a digest that is known to be right."""
        target = self._blob(sha256)
        self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        if not self.local:
            self.fs.put_file(str(draft), target)  # also if it is there: that makes it young again
        elif self.fs.exists(target):
            os.utime(target)  # young again: it belongs to an upload under way
        else:
            self._install(draft, target)
        with suppress(FileNotFoundError):
            draft.unlink()

    def _install(self, draft: Path, target: str) -> None:
        beside = Path(f"{target}.{uuid4().hex}")
        shutil.move(draft, beside)
        with beside.open("rb") as stream:
            os.fsync(stream.fileno())
        beside.replace(target)

    def missing(self, files: Iterable[FileOf]) -> list[str]:
        """SHA-256 of the files that have yet to be uploaded."""
        return sorted({item.sha256 for item in files if not self.fs.exists(self._blob(item.sha256))})

    def _blob(self, sha256: str) -> str:
        return f"{self.root}/blobs/{sha256[:2]}/{sha256}"

    # -- making one

    def add(self, kind: str, name: str, files: list[FileOf], by: str) -> tuple[Dataset, bool]:
        """The data set of these files, and whether it is new; the name refers to it from now on.

        Raises MissingFiles, Unprocessable for no file or a bad path, ArchiveTooLarge beyond the limits.
        """
        if not files:
            raise Unprocessable("A data set has at least one file.")
        if len(files) > self._most_files or sum(item.size for item in files) > self._most_bytes:
            raise ArchiveTooLarge(
                f"A data set may have {self._most_files} files and {self._most_bytes} bytes; this one has "
                f"{len(files)} and {sum(item.size for item in files)}."
            )
        paths = [check_path(item.path) for item in files]
        if len(set(paths)) < len(paths):
            raise BadArchive("Two files have the same path.")
        files = [item.model_copy(update={"path": path}) for item, path in zip(files, paths, strict=True)]
        if missing := self.missing(files):
            raise MissingFiles(f"{len(missing)} of {len(files)} files are not here yet.", missing=missing)
        digest = digest_of(kind, files)
        self.fs.makedirs(f"{self.root}/sets", exist_ok=True)
        listing = _LISTING.dump_json(files)
        if self.local:
            write_atomically(Path(self._listing(digest)), listing)
        else:
            self.fs.pipe_file(self._listing(digest), listing)
        if missing := self.missing(files):  # collected before the listing was there to hold them
            raise MissingFiles(f"{len(missing)} of {len(files)} files are not here any more.", missing=missing)
        try:
            return self._known(digest, kind, name, files, by)
        except IntegrityError:  # somebody added the same one at the same moment
            return self._known(digest, kind, name, files, by)

    def _known(self, digest: str, kind: str, name: str, files: list[FileOf], by: str) -> tuple[Dataset, bool]:
        with Session(self._engine) as session, session.begin():
            row = session.get(DatasetRow, digest)
            new = row is None
            if row is None:
                row = DatasetRow(digest=digest, kind=kind, files=len(files), bytes=sum(item.size for item in files))
                row.state, row.report, row.created_by = "validating", {}, by
                session.add(row)
            elif row.state == "invalid":
                row.state, row.report = "validating", {}  # added again: perhaps the judgement was at fault
            row.name, row.created_at = name, time.time()  # the newest of a name is what the name means
            return row.as_dataset(), new

    def add_archive(self, kind: str, name: str, archive: Path, scratch: Path, by: str) -> tuple[Dataset, bool]:
        """`add` for the files of a zip or tar archive; raises BadArchive or ArchiveTooLarge too."""
        found: list[FileOf] = []
        for path, stream in unpack(archive, most_bytes=self._most_bytes, most_files=self._most_files):
            draft = scratch / uuid4().hex
            digest = hashlib.sha256()
            size = 0
            try:
                with draft.open("wb") as target:
                    while data := stream.read(CHUNK):
                        target.write(data)
                        digest.update(data)
                        size += len(data)
                self._keep(draft, digest.hexdigest())
            finally:
                with suppress(FileNotFoundError):
                    draft.unlink()
            found.append(FileOf(path=path, sha256=digest.hexdigest(), size=size))
        shorter = without_common_folder([item.path for item in found])
        return self.add(kind, name, [item.model_copy(update={"path": shorter[item.path]}) for item in found], by)

    def judge(self, digest: str, report: Report) -> None:
        """Record the domain's report."""
        with Session(self._engine) as session, session.begin():
            row = self._row(session, digest)
            row.state, row.report = report.state, report.model_dump(exclude_none=True)

    # -- use

    def get(self, digest: str) -> Dataset:
        """Raises NotFound."""
        with Session(self._engine) as session:
            return self._row(session, digest).as_dataset()

    def resolve(self, reference: str) -> Dataset:
        """The data set of a digest, of the beginning of one (8 digits or more), or the newest of a name; NotFound."""
        with Session(self._engine) as session:
            asked = select(DatasetRow).where(DatasetRow.name == reference).order_by(DatasetRow.created_at.desc())
            row = session.scalars(asked.limit(1)).first()
            if row is None and re.fullmatch(r"[0-9a-f]{8,64}", reference):
                found = list(
                    session.scalars(select(DatasetRow).where(DatasetRow.digest.startswith(reference)).limit(2))
                )
                row = found[0] if len(found) == 1 else None
            if row is None:
                raise NotFound(f"There is no data set {reference[:80]!r}.")
            return row.as_dataset()

    def page(self, *, before: float | None = None, limit: int = 50, kind: str | None = None) -> list[Dataset]:
        """Newest first, made before the time given."""
        asked = select(DatasetRow).order_by(DatasetRow.created_at.desc()).limit(limit)
        if before is not None:
            asked = asked.where(DatasetRow.created_at < before)
        if kind is not None:
            asked = asked.where(DatasetRow.kind == kind)
        with Session(self._engine) as session:
            return [row.as_dataset() for row in session.scalars(asked)]

    def files(self, digest: str) -> list[FileOf]:
        """Every file of a data set; raises NotFound."""
        try:
            return _LISTING.validate_json(self.fs.cat_file(self._listing(digest)))
        except FileNotFoundError:
            raise NotFound(f"There is no data set {digest[:80]!r}.") from None

    def fetch(self, digest: str, folder: Path) -> None:
        """Write the data set's files below `folder`, each verified; raises NotFound or DatasetUnusable."""
        folder.mkdir(parents=True, exist_ok=True)
        for item in self.files(digest):
            target = folder / check_path(item.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            self.fs.get_file(self._blob(item.sha256), str(target))
            if file_digest(target) != item.sha256:
                raise DatasetUnusable(f"The stored file {item.path!r} is damaged.", file=item.path)

    # -- ending

    def remove(self, digest: str, *, used_by: Callable[[str], str | None]) -> None:
        """Forget a data set unless `used_by` names what refers to it; raises DatasetBusy or NotFound."""
        with Session(self._engine) as session, session.begin():
            row = self._row(session, digest)
            if (user := used_by(digest)) is not None:
                raise DatasetBusy(f"The data set is used by {user}.")
            session.delete(row)
        with suppress(FileNotFoundError):
            self.fs.rm_file(self._listing(digest))

    def collect(self, now: float | None = None) -> int:
        """Delete files that no data set holds and that are a day old; how many."""
        now = time.time() if now is None else now
        blobs: Any = self.fs.find(f"{self.root}/blobs", detail=True)
        # In this order: a data set that is added meanwhile is seen, or looks for its files after they have gone.
        held = {item.sha256 for digest in self._digests() for item in self.files(digest)}
        doomed = [
            path
            for path, about in blobs.items()
            if path.rpartition("/")[2] not in held and _age(about, now) > YOUNG_SECONDS
        ]
        for path in doomed:
            with suppress(FileNotFoundError):
                self.fs.rm_file(path)
        return len(doomed)

    def _digests(self) -> list[str]:
        stems = [name.removesuffix(".json") for name in names_in(self.fs, f"{self.root}/sets")]
        return [stem for stem in stems if _DIGEST.match(stem)]

    def _listing(self, digest: str) -> str:
        if not _DIGEST.match(digest):
            raise NotFound(f"There is no data set {digest[:80]!r}.")
        return f"{self.root}/sets/{digest}.json"

    def _row(self, session: Session, digest: str) -> DatasetRow:
        row = session.get(DatasetRow, digest)
        if row is None:
            raise NotFound(f"There is no data set {digest[:80]!r}.")
        return row


def _age(about: Any, now: float) -> float:
    """Seconds since a stored file was written, from whichever member the file system gives."""
    written = about.get("mtime") or about.get("LastModified") or about.get("created") or now
    return now - (written if isinstance(written, int | float) else written.timestamp())
