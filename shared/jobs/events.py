"""The progress stream of each job: appended by its worker, read from any place in it, in Redis or in memory.

What must not be lost (state, curves) is in the job store; the stream is what makes it live.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

KEPT = 10_000  # events of one job
KEPT_SECONDS = 7 * 86_400
START = "0-0"


@dataclass(frozen=True)
class Event:
    """`id` is what a reader gives to go on after it."""

    id: str
    kind: str
    data: dict[str, Any]


class EventLog(Protocol):
    def add(self, job_id: str, kind: str, data: Mapping[str, Any]) -> None:
        """Append an event. Raises OSError (ConnectionError) when the broker is away."""
        ...

    async def read(self, job_id: str, after: str = START, seconds: float = 1.0) -> list[Event]:
        """The events after the one named, waiting up to `seconds` for the first; raises as `add`."""
        ...

    async def close(self) -> None: ...


class RedisEvents:
    """An EventLog on Redis streams."""

    def __init__(self, url: str) -> None:
        self._url = url
        # The client is imported at first use: it weighs 19 MB, and most gateways follow no job.
        self._writer: Any = None
        self._reader: Any = None

    def add(self, job_id: str, kind: str, data: Mapping[str, Any]) -> None:
        import redis

        if self._writer is None:
            self._writer = redis.Redis.from_url(self._url, socket_timeout=5, socket_connect_timeout=1)
        entry: dict[Any, Any] = {"kind": kind, "data": orjson.dumps(data)}
        try:
            pipeline = self._writer.pipeline(transaction=False)
            pipeline.xadd(_key(job_id), entry, maxlen=KEPT, approximate=True)
            pipeline.expire(_key(job_id), KEPT_SECONDS)
            pipeline.execute()
        except redis.RedisError as error:
            raise ConnectionError(str(error)) from error

    async def read(self, job_id: str, after: str = START, seconds: float = 1.0) -> list[Event]:
        import redis.asyncio

        if self._reader is None:
            self._reader = redis.asyncio.Redis.from_url(self._url, socket_timeout=seconds + 5, socket_connect_timeout=1)
        try:
            found: Any = await self._reader.xread({_key(job_id): after}, count=500, block=max(1, int(seconds * 1000)))
        except redis.RedisError as error:
            raise ConnectionError(str(error)) from error
        # One stream was asked for: [[name, entries]].
        entries: list[Any] = found[0][1] if found else []
        return [
            Event(number.decode(), fields[b"kind"].decode(), orjson.loads(fields[b"data"]))
            for number, fields in entries
        ]

    async def close(self) -> None:
        if self._reader is not None:
            await self._reader.aclose()
        if self._writer is not None:
            self._writer.close()


def _key(job_id: str) -> str:
    return f"fourfold:job:{job_id}"


class MemoryEvents:
    """An EventLog in a list, for tests and for a gateway without a broker."""

    def __init__(self) -> None:
        self._events: dict[str, list[Event]] = {}

    def add(self, job_id: str, kind: str, data: Mapping[str, Any]) -> None:
        events = self._events.setdefault(job_id, [])
        events.append(Event(f"{len(events) + 1}-0", kind, dict(data)))

    async def read(self, job_id: str, after: str = START, seconds: float = 1.0) -> list[Event]:
        seen = int(after.partition("-")[0])
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        while len(self._events.get(job_id, [])) <= seen and loop.time() < ends:  # noqa: ASYNC110 - any thread adds
            await asyncio.sleep(0.01)
        return self._events.get(job_id, [])[seen:]

    async def close(self) -> None:
        pass


def event_log(redis_url: str | None) -> EventLog:
    """The log at `redis_url`; one of this process alone without a URL."""
    return RedisEvents(redis_url) if redis_url else MemoryEvents()
