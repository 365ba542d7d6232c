"""What can go wrong for a client.

FourfoldClientError
├── ConnectionFailed      nobody answers at the URL
├── NoKey                 no API key was given or found
├── NothingEarlier        there is no champion to go back to
└── ApiError              the gateway answered with a problem (RFC 9457)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class FourfoldClientError(Exception):
    """The root of the client's errors; its text is fit to be shown."""


class ConnectionFailed(FourfoldClientError):
    """Nobody answers at the URL, or the connection broke."""


class NoKey(FourfoldClientError):
    """No API key was given or found."""


class NothingEarlier(FourfoldClientError):
    """There is no champion to go back to."""


class ApiError(FourfoldClientError):
    """A problem document: `status`, `type`, `title`, `detail`, `request_id`, and any further members in `extra`."""

    def __init__(self, status: int, document: Mapping[str, Any]) -> None:
        self.status = status
        self.type = str(document.get("type", "about:blank"))
        self.title = str(document.get("title", f"HTTP {status}"))
        self.detail = str(document.get("detail") or document.get("error") or self.title)
        self.request_id: str | None = document.get("request_id")
        known = {"status", "type", "title", "detail", "request_id"}
        self.extra = {name: value for name, value in document.items() if name not in known}
        super().__init__(f"{self.title}: {self.detail}" if self.detail != self.title else self.title)

    @classmethod
    def from_answer(cls, status: int, body: bytes) -> ApiError:
        """The error of an answer, whatever its body is."""
        try:
            document = json.loads(body)
        except ValueError:
            document = {}
        return cls(status, document if isinstance(document, dict) else {})
