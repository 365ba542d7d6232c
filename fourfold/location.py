"""Where Fourfold lives on this machine: its home folder, the gateway's URL and the API key."""

from __future__ import annotations

import os
from pathlib import Path

from fourfold.errors import NoKey

DEFAULT_PORT = 8080


def home() -> Path:
    """FOURFOLD_HOME, or ~/.fourfold."""
    given = os.environ.get("FOURFOLD_HOME")
    return Path(given) if given else Path.home() / ".fourfold"


def url() -> str:
    """FOURFOLD_URL, else where the last `fourfold up` of this home listens."""
    given = os.environ.get("FOURFOLD_URL")
    if given:
        return given.rstrip("/")
    try:
        return (home() / "run" / "url").read_text().strip()
    except OSError:
        return f"http://127.0.0.1:{DEFAULT_PORT}"


def key() -> str:
    """FOURFOLD_KEY, else the key file that the first start wrote; raises NoKey."""
    given = os.environ.get("FOURFOLD_KEY")
    if given:
        return given
    path = home() / "key"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        raise NoKey(f"There is no API key: set FOURFOLD_KEY, or run `fourfold up` once to make {path}.") from None
    except OSError as error:
        raise NoKey(f"The API key in {path} cannot be read: {error.strerror}.") from None
