"""What users of Fourfold import: the client and its errors."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from fourfold.blocking import Client
    from fourfold.client import AsyncClient
    from fourfold.errors import ApiError, ConnectionFailed

__all__ = ["ApiError", "AsyncClient", "Client", "ConnectionFailed"]


def __getattr__(name: str) -> Any:
    # The client brings aiohttp along, which the command's --help can do without; `fourfold clang` wants none of it.
    if name == "AsyncClient":
        from fourfold.client import AsyncClient

        return AsyncClient
    if name == "Client":
        from fourfold.blocking import Client

        return Client
    if name in ("ApiError", "ConnectionFailed"):
        from fourfold import errors

        return getattr(errors, name)
    raise AttributeError(name)
