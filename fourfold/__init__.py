"""What users of Fourfold import: the client and its errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fourfold.errors import ApiError, ConnectionFailed

if TYPE_CHECKING:
    from fourfold.blocking import Client
    from fourfold.client import AsyncClient

__all__ = ["ApiError", "AsyncClient", "Client", "ConnectionFailed"]


def __getattr__(name: str) -> Any:
    # The client brings aiohttp along, which the command's --help can do without.
    if name == "AsyncClient":
        from fourfold.client import AsyncClient

        return AsyncClient
    if name == "Client":
        from fourfold.blocking import Client

        return Client
    raise AttributeError(name)
