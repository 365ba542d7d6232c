"""Where jobs live: in the house's database (memory.py: in memory, for tests). Every change of state is one atomic step.

A worker owns a job from its claim until its lease ends. Whatever it then writes names the attempt of its claim, and is
refused (LeaseLost) once the job belongs to another attempt or to nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Protocol

from sqlalchemy import JSON, Engine, UniqueConstraint, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from shared.database import Base
from shared.jobs.model import (
    ENDED,
    IdempotencyConflict,
    IllegalTransition,
    Job,
    JobState,
    LeaseLost,
    Point,
    check_transition,
)
from shared.problems import NotFound

Change = Callable[[Job], Job]


class JobStore(Protocol):
    """Implementations are safe to call from several threads, and the database's from several machines."""

    def submit(self, job: Job, *, idempotency_key: str | None = None, fingerprint: str = "") -> tuple[Job, bool]:
        """Commit a new job; (job, True), or (the earlier job, False) when its creator used the key before.

        Raises IdempotencyConflict when the key was used with another `fingerprint` of the request.
        """
        ...

    def get(self, job_id: str) -> Job:
        """Raises NotFound."""
        ...

    def page(
        self,
        *,
        before: str | None = None,
        limit: int = 50,
        state: JobState | None = None,
        domain: str | None = None,
        kind: str | None = None,
    ) -> list[Job]:
        """Newest first, ids below `before`."""
        ...

    def change(self, job_id: str, change: Change) -> Job:
        """Replace a job by `change(job)` in one atomic step and return it; an exception of `change` leaves it alone.

        `change` may be called again when somebody else was faster. Raises NotFound.
        """
        ...

    def add_point(self, job_id: str, point: Point) -> None:
        """Keep a point of the job's curves; a step that comes again, after a resumption, replaces the earlier one."""
        ...

    def points(self, job_id: str) -> list[Point]:
        """The job's curves, in the order of their steps."""
        ...

    def refers_to(self, dataset: str) -> bool:
        """Whether a job that has not ended works on the data set."""
        ...

    def lapsed(self, now: float) -> list[str]:
        """Ids of RUNNING jobs whose lease has ended."""
        ...

    def unpublished(self, before: float) -> list[str]:
        """Ids of QUEUED jobs that the broker was never told of, or last told of earlier than `before`."""
        ...


# -- what happens to a job, over any store


def claim(store: JobStore, job_id: str, worker: str, lease_seconds: float) -> Job | None:
    """QUEUED → RUNNING for `worker`; None when somebody else has it or it has ended."""

    def change(job: Job) -> Job:
        check_transition(job.state, JobState.RUNNING)
        now = time.time()
        return replace(
            job,
            state=JobState.RUNNING,
            attempt=job.attempt + 1,
            worker=worker,
            lease_until=now + lease_seconds,
            started_at=job.started_at or now,
        )

    try:
        return store.change(job_id, change)
    except IllegalTransition:
        return None


def heartbeat(
    store: JobStore,
    job_id: str,
    attempt: int,
    lease_seconds: float,
    *,
    step: int | None = None,
    total: int | None = None,
    metrics: dict[str, float] | None = None,
) -> Job:
    """Prolong the lease and note progress; the answer's `cancel_requested_at` says whether to stop."""

    def change(job: Job) -> Job:
        _check_owner(job, attempt)
        return replace(
            job,
            lease_until=time.time() + lease_seconds,
            step=job.step if step is None else step,
            total=job.total if total is None else total,
            metrics=job.metrics if metrics is None else metrics,
        )

    return store.change(job_id, change)


def finish(
    store: JobStore,
    job_id: str,
    attempt: int,
    state: JobState,
    *,
    result: dict[str, Any] | None = None,
    problem: dict[str, Any] | None = None,
) -> Job:
    """RUNNING → SUCCEEDED, FAILED or CANCELLED by its owner."""

    def change(job: Job) -> Job:
        _check_owner(job, attempt)
        return replace(_ended(job, state), result=result, problem=problem)

    return store.change(job_id, change)


def release(store: JobStore, job_id: str, attempt: int) -> Job:
    """RUNNING → QUEUED by an owner that shuts down; a job whose cancellation was asked for is CANCELLED instead."""

    def change(job: Job) -> Job:
        _check_owner(job, attempt)
        return _ended(job, JobState.CANCELLED) if job.cancel_requested_at else _requeued(job)

    return store.change(job_id, change)


def cancel(store: JobStore, job_id: str) -> Job:
    """A QUEUED job is CANCELLED at once, a RUNNING one is asked to stop. Repeating it changes nothing.

    Raises IllegalTransition for a job that has ended otherwise.
    """

    def change(job: Job) -> Job:
        if job.state is JobState.CANCELLED:
            return job
        if job.state is JobState.RUNNING:
            return replace(job, cancel_requested_at=job.cancel_requested_at or time.time())
        return replace(_ended(job, JobState.CANCELLED), cancel_requested_at=time.time())

    return store.change(job_id, change)


def recover(store: JobStore, now: float | None = None) -> list[Job]:
    """Take jobs from owners whose lease has ended: back to QUEUED, or FAILED after `max_attempts`; the changed jobs."""
    now = time.time() if now is None else now

    def change(job: Job) -> Job:
        if job.state is not JobState.RUNNING or job.lease_until is None or job.lease_until > now:
            raise LeaseLost("The lease was prolonged in the meantime.")
        job = replace(job, lost_leases=job.lost_leases + 1)
        if job.cancel_requested_at:
            return _ended(job, JobState.CANCELLED)
        if job.lost_leases >= job.max_attempts:
            detail = (
                f"The worker was lost {job.lost_leases} times, at last after step {job.step}; the job is given up, its "
                "last checkpoint is kept. Mostly the machine has too little memory for it: try a smaller batch."
            )
            return replace(_ended(job, JobState.FAILED), problem={"title": "The worker was lost", "detail": detail})
        return _requeued(job)

    changed: list[Job] = []
    for job_id in store.lapsed(now):
        try:
            changed.append(store.change(job_id, change))
        except (LeaseLost, NotFound):
            continue
    return changed


def published(store: JobStore, job_id: str) -> Job:
    """Note that the broker was told of the job just now."""
    return store.change(job_id, lambda job: replace(job, published_at=time.time()))


def _check_owner(job: Job, attempt: int) -> None:
    if job.state is not JobState.RUNNING or job.attempt != attempt:
        raise LeaseLost(f"The job is {job.state} at attempt {job.attempt}; this is attempt {attempt}.")


def check_same_request(earlier: str, fingerprint: str) -> None:
    """Raise IdempotencyConflict unless both fingerprints are of one request."""
    if earlier != fingerprint:
        raise IdempotencyConflict("The key came with another request before.") from None


def _ended(job: Job, state: JobState) -> Job:
    check_transition(job.state, state)
    return replace(job, state=state, lease_until=None, finished_at=time.time())


def _requeued(job: Job) -> Job:
    check_transition(job.state, JobState.QUEUED)
    return replace(job, state=JobState.QUEUED, worker=None, lease_until=None, published_at=None)


class JobRow(Base):
    __tablename__ = "jobs"
    __table_args__ = (UniqueConstraint("created_by", "idempotency_key"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    domain: Mapped[str]
    queue: Mapped[str]
    config: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[float]
    dataset: Mapped[str | None]
    created_by: Mapped[str]
    state: Mapped[str]
    attempt: Mapped[int]
    lost_leases: Mapped[int]
    max_attempts: Mapped[int]
    time_limit: Mapped[float]
    published_at: Mapped[float | None]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    worker: Mapped[str | None]
    lease_until: Mapped[float | None]
    cancel_requested_at: Mapped[float | None]
    step: Mapped[int]
    total: Mapped[int]
    metrics: Mapped[dict[str, float]] = mapped_column(JSON)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    problem: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    idempotency_key: Mapped[str | None]
    fingerprint: Mapped[str]
    revision: Mapped[int] = mapped_column(default=0)  # counts changes: an update of an older revision finds no row

    __mapper_args__ = {"version_id_col": revision}  # noqa: RUF012 - SQLAlchemy's own form

    def as_job(self) -> Job:
        values: dict[str, Any] = {name: getattr(self, name) for name in _COLUMNS}
        values["state"] = JobState(self.state)
        return Job(**values)

    def take(self, job: Job) -> None:
        for name in _COLUMNS:
            setattr(self, name, getattr(job, name))


class PointRow(Base):
    __tablename__ = "job_points"

    job_id: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    time: Mapped[float]
    metrics: Mapped[dict[str, float]] = mapped_column(JSON)


_COLUMNS = tuple(item.name for item in fields(Job))


def _row(session: Session, job_id: str) -> JobRow:
    row = session.get(JobRow, job_id)
    if row is None:
        raise NotFound(f"There is no job {job_id!r}.")
    return row


class SqlJobStore:
    """A JobStore in the house's database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def submit(self, job: Job, *, idempotency_key: str | None = None, fingerprint: str = "") -> tuple[Job, bool]:
        row = JobRow(idempotency_key=idempotency_key, fingerprint=fingerprint)
        row.take(job)
        try:
            with Session(self._engine) as session, session.begin():
                session.add(row)
            return job, True
        except IntegrityError:
            asked = select(JobRow).where(JobRow.created_by == job.created_by, JobRow.idempotency_key == idempotency_key)
            with Session(self._engine) as session:
                earlier = session.scalar(asked)
                if earlier is None:
                    raise
                check_same_request(earlier.fingerprint, fingerprint)
                return earlier.as_job(), False

    def get(self, job_id: str) -> Job:
        with Session(self._engine) as session:
            return _row(session, job_id).as_job()

    def page(
        self,
        *,
        before: str | None = None,
        limit: int = 50,
        state: JobState | None = None,
        domain: str | None = None,
        kind: str | None = None,
    ) -> list[Job]:
        asked = select(JobRow).order_by(JobRow.id.desc()).limit(limit)
        if before is not None:
            asked = asked.where(JobRow.id < before)
        if state is not None:
            asked = asked.where(JobRow.state == state.value)
        if domain is not None:
            asked = asked.where(JobRow.domain == domain)
        if kind is not None:
            asked = asked.where(JobRow.kind == kind)
        with Session(self._engine) as session:
            return [row.as_job() for row in session.scalars(asked)]

    def change(self, job_id: str, change: Change) -> Job:
        while True:
            try:
                with Session(self._engine) as session, session.begin():
                    row = _row(session, job_id)
                    changed = change(row.as_job())
                    row.take(changed)
                return changed
            except StaleDataError:
                continue  # somebody else was faster: look again

    def add_point(self, job_id: str, point: Point) -> None:
        with Session(self._engine) as session, session.begin():
            session.merge(PointRow(job_id=job_id, step=point.step, time=point.time, metrics=point.metrics))

    def points(self, job_id: str) -> list[Point]:
        asked = select(PointRow).where(PointRow.job_id == job_id).order_by(PointRow.step)
        with Session(self._engine) as session:
            return [Point(row.step, row.time, row.metrics) for row in session.scalars(asked)]

    def refers_to(self, dataset: str) -> bool:
        live = [state.value for state in JobState if state not in ENDED]
        asked = select(JobRow.id).where(JobRow.dataset == dataset, JobRow.state.in_(live)).limit(1)
        with Session(self._engine) as session:
            return session.scalar(asked) is not None

    def lapsed(self, now: float) -> list[str]:
        asked = select(JobRow.id).where(JobRow.state == JobState.RUNNING.value, JobRow.lease_until <= now)
        with Session(self._engine) as session:
            return list(session.scalars(asked.order_by(JobRow.id)))

    def unpublished(self, before: float) -> list[str]:
        asked = select(JobRow.id).where(
            JobRow.state == JobState.QUEUED.value, or_(JobRow.published_at.is_(None), JobRow.published_at < before)
        )
        with Session(self._engine) as session:
            return list(session.scalars(asked.order_by(JobRow.id)))
