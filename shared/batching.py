"""One model session's queue: bounded, size-or-deadline, greedy when idle, one batch in flight.

A request that finds the session idle starts at once. While a batch runs, requests gather; when it ends, the next
batch takes up to `max_size` of them, waiting at most `max_delay` (counted from the oldest) for it to fill.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from shared.problems import DeadlineExceeded, InternalError, NotReady, Overloaded

# A run takes items and answers one result, or one exception to raise, for each of them, in order.
Run = Callable[[Sequence[Any]], Sequence[Any]]

# Below this, handing a run to the thread and back costs more than the run: do it on the event loop.
INLINE_SECONDS = 0.0005


@dataclass(slots=True, eq=False)
class _Waiting:
    run: Run
    item: Any
    future: asyncio.Future[Any]
    since: float
    deadline: float | None
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class BatchStatistics:
    """Totals since start: items, batches, and nanoseconds spent waiting and computing."""

    items: int = 0
    failures: int = 0
    batches: int = 0
    queue_ns: int = 0
    compute_ns: int = 0
    failure_ns: int = 0
    last_inference_ms: int = 0


class Batcher:
    """Runs submitted items in batches, one batch at a time, off the event loop. Belongs to one event loop."""

    def __init__(self, *, max_size: int, max_delay: float, capacity: int) -> None:
        """`max_delay` in seconds; `capacity` is the most waiting items."""
        self.max_size = max_size
        self.max_delay = max_delay
        self.capacity = capacity
        self.statistics = BatchStatistics()
        self._waiting: dict[_Waiting, None] = {}  # a dict: first in first out, and anything leaves in O(1)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._pump: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self._seconds_per_item: dict[Run, float] = {}
        self._closed = False

    @property
    def depth(self) -> int:
        """Items waiting now."""
        return len(self._waiting)

    async def submit(self, run: Run, item: Any, *, deadline: float | None = None, small: bool = False) -> Any:
        """The result of `item` from a batch of items that share `run`.

        `deadline` is a time of the loop's clock. `small` promises that the item is no heavier than those whose time
        was measured, so that a fast run may skip the thread. Raises Overloaded at once when the queue is full,
        DeadlineExceeded when the deadline passes first, and whatever `run` raises or answers for this item.
        """
        if self._closed:
            raise NotReady("The model is being replaced or shut down.", retry_after=1)
        loop = asyncio.get_running_loop()
        now = loop.time()
        if deadline is not None and deadline <= now:
            raise DeadlineExceeded()
        if small and self._pump is None and self._seconds_per_item.get(run, 1.0) < INLINE_SECONDS:
            result = self._execute(run, [item])[0]
            self._count(1, 0, isinstance(result, BaseException))
            if isinstance(result, BaseException):
                raise result
            return result
        if len(self._waiting) >= self.capacity:
            raise Overloaded(retry_after=self._estimated_wait(run))
        waiting = _Waiting(run, item, loop.create_future(), now, deadline)
        self._waiting[waiting] = None
        if deadline is not None:
            waiting.timer = loop.call_at(deadline, self._expire, waiting)
        self._arrived.set()
        if self._pump is None:
            self._pump = loop.create_task(self._run_batches())
        try:
            return await waiting.future
        finally:
            self._waiting.pop(waiting, None)
            if waiting.timer is not None:
                waiting.timer.cancel()

    async def close(self) -> None:
        """Finish what waits and runs, then take nothing more."""
        self._closed = True
        self._arrived.set()
        if self._pump is not None:
            await self._pump
        self._executor.shutdown(wait=False)

    def _expire(self, waiting: _Waiting) -> None:
        self._waiting.pop(waiting, None)
        if not waiting.future.done():
            waiting.future.set_exception(DeadlineExceeded())

    def _estimated_wait(self, run: Run) -> float:
        return max(1.0, len(self._waiting) * self._seconds_per_item.get(run, 0.0))

    async def _run_batches(self) -> None:
        loop = asyncio.get_running_loop()
        waited_for = False  # greedy when idle: the first batch of a burst does not wait to fill
        try:
            while self._waiting:
                if waited_for and self.max_delay > 0:
                    await self._fill(loop)
                batch = self._take()
                waited_for = True
                if not batch:
                    continue
                now = loop.time()
                queue_ns = int(sum(now - waiting.since for waiting in batch) * 1e9)
                items = [waiting.item for waiting in batch]
                results = await loop.run_in_executor(self._executor, self._execute, batch[0].run, items)
                failures = 0
                for waiting, result in zip(batch, results, strict=True):
                    failed = isinstance(result, BaseException)
                    failures += failed
                    if waiting.future.done():
                        continue
                    if failed:
                        waiting.future.set_exception(result)
                    else:
                        waiting.future.set_result(result)
                self._count(len(batch), queue_ns, failures)
        finally:
            self._pump = None

    async def _fill(self, loop: asyncio.AbstractEventLoop) -> None:
        until = next(iter(self._waiting)).since + self.max_delay
        while 0 < len(self._waiting) < self.max_size and not self._closed and (left := until - loop.time()) > 0:
            self._arrived.clear()
            try:
                async with asyncio.timeout(left):
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _take(self) -> list[_Waiting]:
        """The oldest waiting item and up to `max_size` − 1 others that share its run."""
        batch: list[_Waiting] = []
        run: Run | None = None
        for waiting in list(self._waiting):
            run = run or waiting.run
            if waiting.run == run:
                del self._waiting[waiting]
                if not waiting.future.done():
                    batch.append(waiting)
                if len(batch) == self.max_size:
                    break
        return batch

    def _execute(self, run: Run, items: list[Any]) -> Sequence[Any]:
        """Run a batch; when it fails as a whole, run its items one by one so that a failure hits only its own."""
        started = time.perf_counter_ns()
        try:
            results = run(items)
            if len(results) != len(items):
                raise InternalError("The model answered for a different number of items than it was asked.")
        except Exception as error:
            results = [error] if len(items) == 1 else [self._execute(run, [item])[0] for item in items]
            self.statistics.failure_ns += time.perf_counter_ns() - started
            return results
        spent = time.perf_counter_ns() - started
        self.statistics.compute_ns += spent
        per_item = spent / len(items) / 1e9
        # The slower of old and new counts for more: a run goes inline only once it is fast for good.
        known = self._seconds_per_item.get(run, per_item)
        self._seconds_per_item[run] = per_item if per_item > known else 0.9 * known + 0.1 * per_item
        return results

    def _count(self, items: int, queue_ns: int, failures: int) -> None:
        totals = self.statistics
        totals.items += items - failures
        totals.failures += failures
        totals.batches += 1
        totals.queue_ns += queue_ns
        totals.last_inference_ms = time.time_ns() // 1_000_000
