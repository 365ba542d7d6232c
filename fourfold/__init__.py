"""What users of Fourfold import: the client and its errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fourfold.errors import ApiError, ConnectionFailed

if TYPE_CHECKING:
    from fourfold.client import AsyncClient, Client

__all__ = ["ApiError", "AsyncClient", "Client", "ConnectionFailed"]


def __getattr__(name: str) -> Any:
    # The client brings aiohttp along, which the command's --help can do without.
    if name in ("AsyncClient", "Client"):
        from fourfold import client

        return getattr(client, name)
    raise AttributeError(name)
