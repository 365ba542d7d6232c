"""How much one key may ask for: requests over time, and requests under way at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from limits import parse
from limits.aio.storage import MemoryStorage, RedisStorage, Storage
from limits.aio.strategies import FixedWindowRateLimiter

from gateway.settings import GatewaySettings
from shared.problems import RateLimited


class Limits:
    """Admission by principal. Belongs to one event loop."""

    def __init__(self, settings: GatewaySettings) -> None:
        storage: Storage = MemoryStorage()
        if settings.rate_limit_storage == "redis":
            if not settings.redis_url:
                raise ValueError("FOURFOLD_RATE_LIMIT_STORAGE=redis needs FOURFOLD_REDIS_URL")
            storage = RedisStorage(f"async+{settings.redis_url}", implementation="redispy")
        self._rate = parse(settings.rate_limit)
        self._limiter = FixedWindowRateLimiter(storage)
        self._most = settings.max_concurrency
        self._under_way: Counter[str] = Counter()

    @asynccontextmanager
    async def admit(self, principal_id: str) -> AsyncIterator[None]:
        """Hold a place for one request; raises RateLimited with the time to wait."""
        if not await self._limiter.hit(self._rate, principal_id):
            raise RateLimited(f"This key may make {self._rate} requests.", retry_after=1)
        if self._under_way[principal_id] >= self._most:
            raise RateLimited(f"This key has {self._most} requests under way, the most it may.", retry_after=1)
        self._under_way[principal_id] += 1
        try:
            yield
        finally:
            self._under_way[principal_id] -= 1
            if not self._under_way[principal_id]:
                del self._under_way[principal_id]
