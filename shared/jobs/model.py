"""What a job is: its states, the transitions between them, and the record that everybody sees.

QUEUED → RUNNING → SUCCEEDED | FAILED | CANCELLED; QUEUED → CANCELLED; RUNNING → QUEUED when the worker goes away. No
other transition exists.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from shared.problems import Conflict


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.QUEUED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}
ENDED = frozenset(state for state, following in TRANSITIONS.items() if not following)


class IllegalTransition(Conflict):
    """A change of state that does not exist."""

    code = "illegal-transition"
    title = "The job cannot change that way"
    advice = "Look at the job: it has ended, or has not begun."


class LeaseLost(Conflict):
    """A worker speaks for a job that is no longer its own; it must stop and change nothing."""

    code = "lease-lost"
    title = "The job belongs to another attempt"
    advice = "Nothing: another attempt goes on. A worker's log has it, a client seldom sees it."


class IdempotencyConflict(Conflict):
    code = "idempotency-conflict"
    title = "The Idempotency-Key was used for another request"
    advice = "Use a new key for a new request."


@dataclass(frozen=True)
class Point:
    """Progress at one step, for curves: `time` is seconds since 1970."""

    step: int
    time: float
    metrics: dict[str, float]


def check_transition(old: JobState, new: JobState) -> None:
    """Raise IllegalTransition unless `old` may become `new`."""
    if new not in TRANSITIONS[old]:
        raise IllegalTransition(f"A {old} job cannot become {new}.")


def new_job_id() -> str:
    """22 hex digits: the time in ms, then 40 random bits. Ids sort by age."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(5)}"


@dataclass(frozen=True)
class Job:
    """One job; times are seconds since 1970. `attempt` counts claims and tells a worker from its successors."""

    id: str
    kind: str  # train, batch, …
    domain: str
    queue: str
    config: dict[str, Any]
    created_at: float
    dataset: str | None = None  # its digest
    created_by: str = ""
    state: JobState = JobState.QUEUED
    attempt: int = 0
    lost_leases: int = 0
    max_attempts: int = 3  # leases that may be lost before the job fails
    time_limit: float = 86_400.0  # seconds that one attempt may take
    published_at: float | None = None  # when the broker was last told of it
    started_at: float | None = None  # of the first attempt
    finished_at: float | None = None
    worker: str | None = None
    lease_until: float | None = None
    cancel_requested_at: float | None = None
    step: int = 0
    total: int = 0
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    result: dict[str, Any] | None = None  # what it made, for example {"model": …, "version": …}
    problem: dict[str, Any] | None = None  # why it failed, as a problem document
