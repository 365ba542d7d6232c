"""The queue's promises: order, bounds, deadlines, and failures that hit only their own request."""

import asyncio
import threading
import time

import pytest

from shared.batching import Batcher
from shared.problems import DeadlineExceeded, InternalError, NotReady, Overloaded


def batcher(max_size=4, max_delay=0.0, capacity=8):
    return Batcher(max_size=max_size, max_delay=max_delay, capacity=capacity)


class Recorder:
    """A run that doubles, remembers its batches, and can be held."""

    def __init__(self) -> None:
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items):
        self.gate.wait(5)
        self.batches.append(list(items))
        return [item * 2 for item in items]


async def test_a_lone_request_runs_at_once():
    queue, run = batcher(max_delay=10.0), Recorder()
    started = time.monotonic()
    assert await queue.submit(run, 21) == 42
    assert time.monotonic() - started < 5


async def test_requests_gather_while_a_batch_runs_and_never_exceed_the_size():
    queue, run = batcher(), Recorder()
    run.gate.clear()
    waiting = [asyncio.create_task(queue.submit(run, number)) for number in range(8)]
    await asyncio.sleep(0.05)
    run.gate.set()
    assert await asyncio.gather(*waiting) == [number * 2 for number in range(8)]
    assert max(len(batch) for batch in run.batches) == 4
    assert [item for batch in run.batches for item in batch] == list(range(8))
    assert len(run.batches) < 8


async def test_a_busy_queue_waits_to_fill_but_not_longer_than_its_delay():
    queue, run = batcher(max_delay=0.2), Recorder()
    run.gate.clear()
    first = asyncio.create_task(queue.submit(run, 1))
    await asyncio.sleep(0.02)
    second = asyncio.create_task(queue.submit(run, 2))
    run.gate.set()
    await first
    third = asyncio.create_task(queue.submit(run, 3))
    assert await asyncio.wait_for(asyncio.gather(second, third), 2) == [4, 6]
    assert run.batches == [[1], [2, 3]]


async def test_one_failure_spares_the_others():
    def run(items):
        if 3 in items:
            raise ValueError("three")
        return items

    queue = batcher()
    hold = Recorder()
    hold.gate.clear()
    first = asyncio.create_task(queue.submit(hold, 0))
    await asyncio.sleep(0.02)
    waiting = [asyncio.create_task(queue.submit(run, number)) for number in (1, 2, 3, 4)]
    hold.gate.set()
    await first
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert results[:2] == [1, 2]
    assert results[3] == 4
    assert isinstance(results[2], ValueError)
    assert queue.statistics.failures == 1


async def test_an_answer_may_be_an_exception_for_one_item():
    queue = batcher()
    with pytest.raises(KeyError):
        await queue.submit(lambda items: [KeyError("x") for _ in items], 1)


async def test_a_wrong_number_of_answers_is_our_defect():
    with pytest.raises(InternalError):
        await batcher().submit(lambda items: [], 1)


async def test_a_full_queue_refuses_at_once_with_a_time_to_retry():
    queue, run = batcher(capacity=2, max_size=1), Recorder()
    run.gate.clear()
    running = asyncio.create_task(queue.submit(run, 0))
    await asyncio.sleep(0.02)
    waiting = [asyncio.create_task(queue.submit(run, number)) for number in (1, 2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as caught:
        await queue.submit(run, 3)
    assert caught.value.retry_after is not None
    run.gate.set()
    assert await asyncio.gather(running, *waiting) == [0, 2, 4]


async def test_cancelled_and_expired_requests_leave_the_queue():
    queue, run = batcher(max_size=1), Recorder()
    run.gate.clear()
    running = asyncio.create_task(queue.submit(run, 0))
    await asyncio.sleep(0.02)
    cancelled = asyncio.create_task(queue.submit(run, 1))
    expiring = asyncio.create_task(queue.submit(run, 2, deadline=asyncio.get_running_loop().time() + 0.05))
    await asyncio.sleep(0)
    assert queue.depth == 2
    cancelled.cancel()
    with pytest.raises(DeadlineExceeded):
        await expiring
    assert queue.depth == 0
    run.gate.set()
    await running
    assert run.batches == [[0]]


async def test_a_deadline_in_the_past_is_not_queued():
    run = Recorder()
    with pytest.raises(DeadlineExceeded):
        await batcher().submit(run, 1, deadline=asyncio.get_running_loop().time() - 1)
    assert run.batches == []


async def test_small_fast_runs_stay_on_the_event_loop():
    threads = []

    def run(items):
        threads.append(threading.current_thread() is threading.main_thread())
        return items

    queue = batcher()
    for _ in range(50):
        await queue.submit(run, 1, small=True)
    assert threads[0] is False
    assert threads[-1] is True


async def test_closing_finishes_what_waits_and_takes_nothing_more():
    queue, run = batcher(max_size=1), Recorder()
    waiting = [asyncio.create_task(queue.submit(run, number)) for number in range(3)]
    await asyncio.sleep(0)
    await queue.close()
    assert await asyncio.gather(*waiting) == [0, 2, 4]
    with pytest.raises(NotReady):
        await queue.submit(run, 1)
