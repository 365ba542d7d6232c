"""What every store on an fsspec file system begins with: opening its location, and the names in a folder."""

from __future__ import annotations

import fsspec
from fsspec import AbstractFileSystem


def open_location(location: str) -> tuple[AbstractFileSystem, str]:
    """(file system, root) of a folder or an fsspec URL; listings are never cached, since others write too."""
    fs, root = fsspec.core.url_to_fs(location, use_listings_cache=False)
    return fs, root


def names_in(fs: AbstractFileSystem, folder: str) -> list[str]:
    """The names of what lies in `folder`; none if it does not exist."""
    try:
        return [str(entry).rstrip("/").rpartition("/")[2] for entry in fs.ls(folder, detail=False)]
    except FileNotFoundError:
        return []
