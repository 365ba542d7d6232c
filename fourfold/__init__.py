"""What users of Fourfold import: the client and its errors."""

from fourfold.client import AsyncClient, Client
from fourfold.errors import ApiError, ConnectionFailed

__all__ = ["ApiError", "AsyncClient", "Client", "ConnectionFailed"]
