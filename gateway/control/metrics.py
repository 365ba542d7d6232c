"""What /metrics tells of jobs: counted in the database at each look, since no process of ours sees them all."""

from __future__ import annotations

import time

import structlog
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from sqlalchemy import Engine, func, select
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from shared.jobs.model import JobState
from shared.jobs.store import JobRow

log = structlog.get_logger(__name__)


def jobs_text(engine: Engine) -> bytes:
    """Prometheus' text form; nothing while the database is away, so that the rest is still told.

    Every gateway tells the same. Rows of jobs are never deleted, so the ended states only grow.
    """
    registry = CollectorRegistry()
    count = Gauge("fourfold_jobs", "Jobs, by what became of them.", ["domain", "kind", "state"], registry=registry)
    oldest = Gauge(
        "fourfold_jobs_oldest_queued_seconds", "Age of the oldest job that waits; 0 if none.", registry=registry
    )
    grouped = select(JobRow.domain, JobRow.kind, JobRow.state, func.count())
    try:
        with Session(engine) as session:
            for domain, kind, state, number in session.execute(
                grouped.group_by(JobRow.domain, JobRow.kind, JobRow.state)
            ):
                count.labels(domain, kind, state).set(number)
            queued = select(func.min(JobRow.created_at)).where(JobRow.state == JobState.QUEUED.value)
            since = session.scalar(queued)
    except (OperationalError, InterfaceError) as error:
        log.warning("jobs cannot be counted", error=type(error).__name__)
        return b""
    oldest.set(0 if since is None else max(0.0, time.time() - since))
    return generate_latest(registry)
