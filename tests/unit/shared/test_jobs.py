"""Jobs: one suite for the store in memory and the store in the database."""

import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from shared.jobs import store as jobs
from shared.jobs.memory import MemoryJobStore
from shared.jobs.model import (
    ENDED,
    TRANSITIONS,
    IdempotencyConflict,
    IllegalTransition,
    Job,
    JobState,
    LeaseLost,
    Point,
    check_transition,
    new_job_id,
)
from shared.jobs.store import SqlJobStore, claim
from shared.problems import NotFound


@pytest.fixture(params=["memory", "engine", "postgres"])
def store(request):
    return MemoryJobStore() if request.param == "memory" else SqlJobStore(request.getfixturevalue(request.param))


def new(**values):
    return Job(new_job_id(), "train", "toy", "train.cpu", {"epochs": 3}, time.time(), created_by="me", **values)


def submitted(store, **values):
    return store.submit(new(**values))[0]


def together(*calls):
    """Results or exceptions of `calls`, started at the same moment."""
    barrier = threading.Barrier(len(calls))
    answers: list[Any] = [None] * len(calls)

    def run(index):
        barrier.wait()
        try:
            answers[index] = calls[index]()
        except Exception as error:
            answers[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_a_job_comes_back_as_it_was_submitted(store):
    job = submitted(store, dataset="ab" * 32)
    assert store.get(job.id) == job
    with pytest.raises(NotFound):
        store.get("none")


def test_ids_sort_by_age():
    ids = []
    for _ in range(5):
        ids.append(new_job_id())
        time.sleep(0.002)
    assert ids == sorted(ids)


@pytest.mark.parametrize("old", JobState)
@pytest.mark.parametrize("wanted", JobState)
def test_only_the_transitions_of_the_table_exist(old, wanted):
    if wanted in TRANSITIONS[old]:
        check_transition(old, wanted)
    else:
        with pytest.raises(IllegalTransition, match=f"A {old} job cannot become {wanted}"):
            check_transition(old, wanted)
    assert set(ENDED) == {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


def test_one_of_many_claims_wins(store):
    job = submitted(store)
    answers = together(*(lambda name=f"w{n}": claim(store, job.id, name, 30) for n in range(8)))
    [won] = [answer for answer in answers if answer is not None]
    assert isinstance(won, Job)
    assert (won.state, won.attempt) == (JobState.RUNNING, 1)
    assert store.get(job.id) == won


def test_a_second_delivery_finds_the_claim_taken(store):
    job = submitted(store)
    first = claim(store, job.id, "a", 30)
    assert first is not None
    assert claim(store, job.id, "b", 30) is None
    jobs.finish(store, job.id, 1, JobState.SUCCEEDED, result={"version": 2})
    assert claim(store, job.id, "b", 30) is None
    ended = store.get(job.id)
    assert ended.result == {"version": 2}
    assert ended.finished_at is not None
    assert ended.lease_until is None


def test_progress_prolongs_the_lease(store):
    job = submitted(store)
    first = claim(store, job.id, "a", 5)
    assert first is not None
    later = jobs.heartbeat(store, job.id, 1, 60, step=2, total=10, metrics={"loss": 0.5})
    assert (later.lease_until or 0) > (first.lease_until or 0) + 30
    assert (later.step, later.total, later.metrics) == (2, 10, {"loss": 0.5})
    assert jobs.heartbeat(store, job.id, 1, 60).metrics == {"loss": 0.5}


def test_a_lost_lease_requeues_and_the_old_owner_can_change_nothing(store):
    job = submitted(store)
    claim(store, job.id, "a", 0)
    [back] = jobs.recover(store)
    assert (back.state, back.lost_leases, back.worker) == (JobState.QUEUED, 1, None)
    assert store.unpublished(0) == [job.id], "the broker must be told again"
    second = claim(store, job.id, "b", 30)
    assert second is not None
    assert second.attempt == 2
    for late in (
        lambda: jobs.heartbeat(store, job.id, 1, 30),
        lambda: jobs.finish(store, job.id, 1, JobState.SUCCEEDED),
        lambda: jobs.release(store, job.id, 1),
    ):
        with pytest.raises(LeaseLost):
            late()
    assert store.get(job.id) == second
    assert jobs.recover(store) == [], "a living lease is left alone"


def test_a_job_that_loses_every_worker_fails(store):
    job = submitted(store, max_attempts=2)
    for _ in range(2):
        assert claim(store, job.id, "a", 0) is not None
        jobs.recover(store)
    changed = store.get(job.id)
    assert changed.state is JobState.FAILED
    assert changed.problem is not None
    assert "lost 2 times" in changed.problem["detail"]
    assert claim(store, job.id, "a", 0) is None


def test_a_worker_that_shuts_down_costs_no_attempt(store):
    job = submitted(store, max_attempts=1)
    for attempt in (1, 2, 3):
        assert claim(store, job.id, "a", 30) is not None
        assert jobs.release(store, job.id, attempt).state is JobState.QUEUED
    assert store.get(job.id).lost_leases == 0


def test_cancelling_a_waiting_job_ends_it_and_a_running_one_is_asked(store):
    waiting, running = submitted(store), submitted(store)
    assert jobs.cancel(store, waiting.id).state is JobState.CANCELLED
    assert jobs.cancel(store, waiting.id).state is JobState.CANCELLED
    assert claim(store, waiting.id, "a", 30) is None
    claim(store, running.id, "a", 30)
    asked = jobs.cancel(store, running.id)
    assert asked.state is JobState.RUNNING
    assert jobs.heartbeat(store, running.id, 1, 30).cancel_requested_at == asked.cancel_requested_at
    assert jobs.finish(store, running.id, 1, JobState.CANCELLED).state is JobState.CANCELLED
    done = submitted(store)
    claim(store, done.id, "a", 30)
    jobs.finish(store, done.id, 1, JobState.SUCCEEDED)
    with pytest.raises(IllegalTransition):
        jobs.cancel(store, done.id)


@pytest.mark.parametrize("goes", ["lost", "released"])
def test_a_cancelled_job_does_not_come_back_when_its_worker_goes(store, goes):
    job = submitted(store)
    claim(store, job.id, "a", 0)
    jobs.cancel(store, job.id)
    if goes == "lost":
        jobs.recover(store)
    else:
        jobs.release(store, job.id, 1)
    assert store.get(job.id).state is JobState.CANCELLED


def test_a_cancel_racing_a_claim_never_loses_both(store):
    for _ in range(10):
        job = submitted(store)
        together(lambda: claim(store, job.id, "a", 30), lambda: jobs.cancel(store, job.id))  # noqa: B023
        after = store.get(job.id)
        assert after.state is JobState.CANCELLED or after.cancel_requested_at is not None


def test_the_same_idempotency_key_gives_the_same_job(store):
    first, created = store.submit(new(), idempotency_key="k", fingerprint="f")
    assert created
    again, created = store.submit(new(), idempotency_key="k", fingerprint="f")
    assert (again, created) == (first, False)
    with pytest.raises(IdempotencyConflict):
        store.submit(new(), idempotency_key="k", fingerprint="other")
    _, created = store.submit(replace(new(), created_by="you"), idempotency_key="k", fingerprint="other")
    assert created, "another creator's keys are another matter"
    assert submitted(store).id != submitted(store).id, "without a key every request is a job"


def test_one_of_many_equal_submissions_becomes_the_job(store):
    calls = [lambda: store.submit(new(), idempotency_key="k", fingerprint="f") for _ in range(6)]
    answers = together(*calls)
    assert [created for _, created in answers].count(True) == 1
    assert len({job.id for job, _ in answers}) == 1


def test_pages_go_from_new_to_old(store):
    made = []
    for number in range(5):
        made.append(submitted(store, state=JobState.QUEUED).id)
        if number == 2:
            jobs.cancel(store, made[-1])
        time.sleep(0.002)
    first = store.page(limit=2)
    assert [job.id for job in first] == made[:2:-1]
    assert [job.id for job in store.page(before=first[-1].id, limit=9)] == made[2::-1]
    assert [job.id for job in store.page(state=JobState.CANCELLED)] == [made[2]]
    assert store.page(domain="other") == []


def test_what_the_broker_forgot_is_found(store):
    told, untold = submitted(store), submitted(store)
    jobs.published(store, told.id)
    assert store.unpublished(time.time() - 60) == [untold.id]
    assert store.unpublished(time.time() + 60) == sorted([told.id, untold.id])


def test_a_refused_change_leaves_the_job_alone(store):
    job = submitted(store)
    with pytest.raises(ZeroDivisionError):
        store.change(job.id, lambda _: 1 / 0)
    assert store.get(job.id) == job


def test_curves_keep_one_point_a_step(store):
    job = submitted(store)
    store.add_point(job.id, Point(2, 20.0, {"loss": 2.0}))
    store.add_point(job.id, Point(1, 10.0, {"loss": 3.0}))
    store.add_point(job.id, Point(2, 30.0, {"loss": 1.5}))
    assert store.points(job.id) == [Point(1, 10.0, {"loss": 3.0}), Point(2, 30.0, {"loss": 1.5})]
    assert store.points("none") == []


def test_a_dataset_is_referred_to_until_its_jobs_have_ended(store):
    job = submitted(store, dataset="ab" * 32)
    assert store.refers_to("ab" * 32)
    assert not store.refers_to("cd" * 32)
    jobs.cancel(store, job.id)
    assert not store.refers_to("ab" * 32)
