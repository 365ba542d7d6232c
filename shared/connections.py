"""An HTTP protocol for uvicorn that does not let idle or dawdling connections pile up.

Use it as `--http shared.connections:GuardedProtocol`. A connection must deliver a request's whole header within
HEADER_SECONDS, and at most MOST_WAITING connections may be at that stage: one more closes the oldest of them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS = 15.0
MOST_WAITING = 1000


class GuardedProtocol(HttpToolsProtocol):
    """One connection; the class knows those that have yet to deliver a header, oldest first."""

    _waiting: dict[GuardedProtocol, asyncio.TimerHandle] = {}  # noqa: RUF012 - shared by the process's connections

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_header()

    def data_received(self, data: bytes) -> None:
        cycle: Any = self.cycle  # None before the first request, whatever the annotation says
        if cycle is None or cycle.response_complete:
            self._expect_header()
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._header_came()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._header_came()
        super().connection_lost(exc)

    def _expect_header(self) -> None:
        if self in self._waiting:
            return
        if len(self._waiting) >= MOST_WAITING:
            next(iter(self._waiting))._give_up()
        self._waiting[self] = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _header_came(self) -> None:
        timer = self._waiting.pop(self, None)
        if timer is not None:
            timer.cancel()

    def _give_up(self) -> None:
        self._header_came()
        if not self.transport.is_closing():
            self.transport.close()
