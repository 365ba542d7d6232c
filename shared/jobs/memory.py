"""Jobs in a dict, for tests and trials: a JobStore that passes the same tests as the database's."""

from __future__ import annotations

import threading

from shared.jobs.model import ENDED, Job, JobState, Point
from shared.jobs.store import Change, check_same_request
from shared.problems import NotFound


class MemoryJobStore:
    """See JobStore."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._keys: dict[tuple[str, str], tuple[str, str]] = {}  # (creator, key) → (job id, fingerprint)
        self._points: dict[str, dict[int, Point]] = {}
        self._lock = threading.Lock()

    def submit(self, job: Job, *, idempotency_key: str | None = None, fingerprint: str = "") -> tuple[Job, bool]:
        with self._lock:
            if idempotency_key is not None:
                earlier = self._keys.setdefault((job.created_by, idempotency_key), (job.id, fingerprint))
                check_same_request(earlier[1], fingerprint)
                if earlier[0] != job.id:
                    return self._jobs[earlier[0]], False
            self._jobs[job.id] = job
            return job, True

    def get(self, job_id: str) -> Job:
        if job_id not in self._jobs:
            raise NotFound(f"There is no job {job_id!r}.")
        return self._jobs[job_id]

    def page(
        self,
        *,
        before: str | None = None,
        limit: int = 50,
        state: JobState | None = None,
        domain: str | None = None,
        kind: str | None = None,
    ) -> list[Job]:
        with self._lock:
            chosen = [
                job
                for job_id, job in sorted(self._jobs.items(), reverse=True)
                if (before is None or job_id < before) and state in (None, job.state) and domain in (None, job.domain)
                if kind in (None, job.kind)
            ]
        return chosen[:limit]

    def change(self, job_id: str, change: Change) -> Job:
        with self._lock:
            self._jobs[job_id] = changed = change(self.get(job_id))
            return changed

    def add_point(self, job_id: str, point: Point) -> None:
        self._points.setdefault(job_id, {})[point.step] = point

    def points(self, job_id: str) -> list[Point]:
        return [point for _, point in sorted(self._points.get(job_id, {}).items())]

    def refers_to(self, dataset: str) -> bool:
        return any(job.dataset == dataset and job.state not in ENDED for job in list(self._jobs.values()))

    def lapsed(self, now: float) -> list[str]:
        running = (job for job in list(self._jobs.values()) if job.state is JobState.RUNNING)
        return sorted(job.id for job in running if job.lease_until is not None and job.lease_until <= now)

    def unpublished(self, before: float) -> list[str]:
        queued = (job for job in list(self._jobs.values()) if job.state is JobState.QUEUED)
        return sorted(job.id for job in queued if job.published_at is None or job.published_at < before)
