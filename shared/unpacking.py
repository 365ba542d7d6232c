"""Reads the files of an archive that somebody sent, and nothing else: no path outside, no link, no bomb."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from shared.problems import PayloadTooLarge, Unprocessable

MOST_EXPANSION = 200  # unpacked bytes for each packed one, beyond the first 16 MiB
FREE_EXPANSION = 16 << 20
_IGNORED = {"__MACOSX", ".DS_Store", "Thumbs.db"}


class BadArchive(Unprocessable):
    """An archive that is damaged, of no known kind, or holds what is never unpacked."""

    code = "bad-archive"
    title = "The archive cannot be unpacked"
    advice = "Pack plain files under relative paths anew, as zip or tar; or upload the folder."


class ArchiveTooLarge(PayloadTooLarge):
    code = "archive-too-large"
    title = "The archive unpacks to more than is taken"
    advice = "Send less, or raise FOURFOLD_MAX_DATASET_BYTES or FOURFOLD_MAX_DATASET_FILES."


def check_path(path: str) -> str:
    """`path` as a plain relative path with forward slashes; raises BadArchive for anything else."""
    parts = PurePosixPath(path).parts
    odd = not parts or path.startswith("/") or "\\" in path or any(ord(letter) < 32 for letter in path)
    if odd or ".." in parts or ":" in parts[0] or len(path.encode()) > 500 or any(len(p.encode()) > 255 for p in parts):
        raise BadArchive(f"The path {path[:100]!r} is not a plain relative one.", file=path[:500])
    return "/".join(parts)


@contextmanager
def _told() -> Iterator[None]:
    """What the archive modules raise for bad archives becomes BadArchive; a disk's own errors stay as they are."""
    try:
        yield
    except tarfile.ReadError:
        raise BadArchive("It is neither a zip nor a tar archive, or it is cut short.") from None
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BadArchive("It is damaged.") from None


class _Counted:
    """A stream of one packed file that counts what is read from it against the whole archive's limits."""

    def __init__(self, stream: IO[bytes], budget: list[int]) -> None:
        self._stream = stream
        self._budget = budget

    def read(self, size: int) -> bytes:
        with _told():
            data = self._stream.read(size)
        self._budget[0] -= len(data)
        if self._budget[0] < 0:
            raise ArchiveTooLarge("It unpacks to more bytes than are taken, or than its size lets expect.")
        return data


def unpack(archive: Path, *, most_bytes: int, most_files: int) -> Generator[tuple[str, _Counted]]:
    """(path, stream with `read(size)`) of each file in a zip or tar archive; read each stream before the next.

    Raises BadArchive or ArchiveTooLarge, also while a stream is read.
    """
    budget = [min(most_bytes, FREE_EXPANSION + MOST_EXPANSION * archive.stat().st_size)]
    seen: set[str] = set()

    def admitted(path: str) -> str | None:
        if _IGNORED & set(PurePosixPath(path).parts):
            return None
        path = check_path(path)
        if path in seen:
            raise BadArchive(f"It holds {path!r} twice.", file=path)
        seen.add(path)
        if len(seen) > most_files:
            raise ArchiveTooLarge(f"It holds more than the {most_files} files that are taken.")
        return path

    with _told():
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                for item in packed.infolist():
                    if item.is_dir():
                        continue
                    if item.flag_bits & 1:
                        raise BadArchive(f"{item.filename[:100]!r} is encrypted.", file=item.filename[:500])
                    if (item.external_attr >> 16) & 0o170000 == 0o120000:
                        raise BadArchive(f"{item.filename[:100]!r} is a link.", file=item.filename[:500])
                    if (path := admitted(item.filename)) is not None:
                        with packed.open(item) as stream:
                            yield path, _Counted(stream, budget)
            return
        with tarfile.open(archive) as packed:
            for item in packed:
                if item.isdir():
                    continue
                if not item.isreg():
                    raise BadArchive(f"{item.name[:100]!r} is a link or a device.", file=item.name[:500])
                if (path := admitted(item.name.removeprefix("./"))) is not None:
                    stream = packed.extractfile(item)
                    if stream is not None:
                        yield path, _Counted(stream, budget)


def without_common_folder(paths: list[str]) -> dict[str, str]:
    """Path → path without the one folder that everything lies in, if there is one."""
    tops = {path.partition("/")[0] for path in paths}
    common = len(tops) == 1 and all("/" in path for path in paths)
    return {path: path.partition("/")[2] if common else path for path in paths}
