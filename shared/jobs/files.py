"""What a job leaves on disk, on any fsspec file system: checkpoints, logs and its other files.

<root>/<job>/checkpoint.<attempt>.safetensors    of the attempt that wrote it: a lost owner spoils nobody's
<root>/<job>/log.<attempt>.txt
<root>/<job>/results/<name>                      what a batch job was asked for
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from pydantic import BaseModel, Field

from shared.problems import NotFound
from shared.storage import names_in, open_location

CHUNK = 1 << 20
_OF_ATTEMPT = re.compile(r"(checkpoint|log)\.(\d+)\.(safetensors|txt)\Z")
_DRAFT = re.compile(r".*\.[0-9a-f]{32}\Z")


class JobFile(BaseModel):
    """A file of a job. Only results can be had; checkpoints are of those attempts that wrote one."""

    kind: Literal["checkpoint", "log", "result"]
    name: str
    attempt: int | None = Field(description="null for a result.")
    bytes: int


class JobFiles:
    """Files of all jobs below one fsspec URL."""

    def __init__(self, location: str) -> None:
        self.fs, self.root = open_location(location)

    def keep_checkpoint(self, job_id: str, attempt: int, path: Path) -> None:
        """Make the file at `path` the newest checkpoint, whole or not at all, and drop those of earlier attempts."""
        self._put(path, f"{self._folder(job_id)}/checkpoint.{attempt}.safetensors")
        for earlier in self._attempts(job_id, "checkpoint"):
            if earlier < attempt:
                with suppress(FileNotFoundError):
                    self.fs.rm_file(f"{self._folder(job_id)}/checkpoint.{earlier}.safetensors")

    def forget(self, job_id: str) -> None:
        """Delete all that a job left."""
        with suppress(FileNotFoundError):
            self.fs.rm(self._folder(job_id), recursive=True)

    def job_ids(self) -> list[str]:
        """The jobs that left something."""
        return names_in(self.fs, self.root)

    def drop_checkpoints(self, job_id: str) -> None:
        """Forget every checkpoint of a job that needs none any more."""
        for attempt in self._attempts(job_id, "checkpoint"):
            with suppress(FileNotFoundError):
                self.fs.rm_file(f"{self._folder(job_id)}/checkpoint.{attempt}.safetensors")

    def fetch_checkpoint(self, job_id: str, path: Path) -> bool:
        """Copy the newest checkpoint to `path`; False if there is none."""
        attempts = self._attempts(job_id, "checkpoint")
        if not attempts:
            return False
        self.fs.get_file(f"{self._folder(job_id)}/checkpoint.{attempts[-1]}.safetensors", str(path))
        return True

    def keep_result(self, job_id: str, path: Path) -> None:
        """Keep the file at `path` as a result of the job, under its name."""
        self._put(path, f"{self._folder(job_id)}/results/{path.name}")

    def result(self, job_id: str, name: str) -> Iterator[bytes]:
        """A result's bytes, a chunk at a time; raises NotFound at once."""
        place = f"{self._folder(job_id)}/results/{name}"
        if not self.fs.exists(place):
            raise NotFound(f"The job has no file {name!r}.")

        def chunks() -> Iterator[bytes]:
            with self.fs.open(place, "rb") as stream:
                while data := stream.read(CHUNK):
                    yield data  # pyright: ignore[reportReturnType] - fsspec's read is untyped

        return chunks()

    def listing(self, job_id: str) -> list[JobFile]:
        """What there is, in the order of names. Drafts of files that are being written are left out."""
        found: list[JobFile] = []
        for folder in (self._folder(job_id), f"{self._folder(job_id)}/results"):
            with suppress(FileNotFoundError):
                for entry in self.fs.ls(folder, detail=True, refresh=True):
                    described = _described(str(entry["name"]).rpartition("/")[2], results=folder.endswith("/results"))
                    if described is not None and entry["type"] == "file":
                        kind, name, attempt = described
                        found.append(JobFile(kind=kind, name=name, attempt=attempt, bytes=int(entry["size"])))
        return sorted(found, key=lambda item: item.name)

    def keep_log(self, job_id: str, attempt: int, path: Path) -> None:
        """Replace the attempt's log by the file at `path`."""
        self._put(path, f"{self._folder(job_id)}/log.{attempt}.txt")

    def log(self, job_id: str, start: int = 0, limit: int = 1 << 20) -> bytes:
        """Up to `limit` bytes of the logs of all attempts, one after the other, from byte `start` on."""
        text = b""
        for attempt in self._attempts(job_id, "log"):
            path = f"{self._folder(job_id)}/log.{attempt}.txt"
            with suppress(FileNotFoundError):
                size = int(self.fs.size(path) or 0)
                if start < size and len(text) < limit:
                    part: Any = self.fs.cat_file(path, start=start, end=min(size, start + limit - len(text)))
                    text += part
                start = max(0, start - size)
        return text

    def _folder(self, job_id: str) -> str:
        return f"{self.root}/{job_id}"

    def _attempts(self, job_id: str, kind: str) -> list[int]:
        names = [name.split(".") for name in names_in(self.fs, self._folder(job_id))]
        return sorted(int(parts[1]) for parts in names if parts[0] == kind and len(parts) == 3 and parts[1].isdigit())

    def _put(self, path: Path, target: str) -> None:
        self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        draft = f"{target}.{uuid4().hex}"
        try:
            self.fs.put_file(str(path), draft)
            self.fs.mv(draft, target)
        except BaseException:
            with suppress(OSError):
                self.fs.rm_file(draft)
            raise


def _described(name: str, *, results: bool) -> tuple[Literal["checkpoint", "log", "result"], str, int | None] | None:
    if results:
        return None if _DRAFT.match(name) else ("result", name, None)
    found = _OF_ATTEMPT.match(name)
    if found is None:
        return None
    return ("log" if found[1] == "log" else "checkpoint"), name, int(found[2])
