"""Runs one job in a worker's process: claim, heartbeat, checkpoint, publish, and a last word whatever happens."""

from __future__ import annotations

import logging
import math
import os
import platform
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import structlog
from numpy.typing import NDArray
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from shared.audit_records import AuditRecords
from shared.audit_report import STUDIES
from shared.bundles import Comparison
from shared.datasets import Datasets, Report
from shared.jobs.config import read_config
from shared.jobs.context import JobStopped, LocalContext, StopReason
from shared.jobs.distributed import RankFailed, run_recipe
from shared.jobs.events import EventLog
from shared.jobs.failures import failure_document
from shared.jobs.files import JobFiles
from shared.jobs.mirror import Mirror
from shared.jobs.model import Job, JobState, LeaseLost, Point
from shared.jobs.retention import scratch_folder
from shared.jobs.store import JobStore, claim, finish, heartbeat, release
from shared.problems import Unprocessable
from shared.repository import ModelRepository
from shared.settings import Settings

HEARTBEAT_SECONDS = 2.0
GRACE_SECONDS = 30.0  # a recipe that does not stop in this time is ended with its process
PERSIST_SECONDS = 600.0  # how long an ended job waits for the database to take its result
log = structlog.get_logger(__name__)
T = TypeVar("T")


def _abandon() -> None:
    os._exit(1)


@dataclass(frozen=True)
class Workplace:
    """What a worker's process works with."""

    settings: Settings
    store: JobStore
    events: EventLog
    files: JobFiles
    datasets: Datasets
    models: ModelRepository
    shutting_down: Callable[[], bool] = lambda: False
    abandon: Callable[[], None] = field(default=_abandon)  # ends this process at once
    recipes: str = "services"  # the package with a folder for each domain


def run_job(place: Workplace, job_id: str) -> None:
    """Run the job if it can be claimed; a second delivery of its task finds it taken and does nothing."""
    name = f"{platform.node()}:{os.getpid()}"
    job = persist(lambda: claim(place.store, job_id, name, place.settings.lease_seconds))
    if job is None:
        log.info("nothing to do: the job is taken or has ended", job=job_id)
        return
    log.info("job started", job=job.id, kind=job.kind, domain=job.domain, attempt=job.attempt)
    with scratch_folder() as scratch, ExitStack() as stack:
        heart = Heart(place, job, scratch)
        context = WorkerContext(place, job, scratch, heart, stack)
        stack.enter_context(heart)
        outcome, content = _attempt(place, job, context)
        _conclude(place, job, heart, outcome, content)
        if isinstance(outcome, JobState) or outcome is StopReason.USER:
            context.mirror.end(outcome is JobState.SUCCEEDED)
    log.info("job left", job=job.id, state=place.store.get(job.id).state)


def _attempt(place: Workplace, job: Job, context: WorkerContext) -> tuple[JobState | StopReason, dict[str, Any]]:
    """How it went: (SUCCEEDED, result), (FAILED, problem) or (why it was stopped, {})."""
    try:
        return JobState.SUCCEEDED, _KINDS.get(job.kind, _batch)(place, job, context)
    except JobStopped as stopped:
        return stopped.reason, {}
    except LeaseLost:
        return StopReason.LOST, {}
    except RankFailed as failed:
        return JobState.FAILED, failed.document
    except Exception as error:
        context.logger.error("%s", traceback.format_exc())
        return JobState.FAILED, failure_document(error)


def _conclude(
    place: Workplace, job: Job, heart: Heart, outcome: JobState | StopReason, content: dict[str, Any]
) -> None:
    heart.keep_log()

    def last_word() -> Job:
        match outcome:
            case StopReason.SHUTDOWN:
                return release(place.store, job.id, job.attempt)
            case StopReason.USER:
                return finish(place.store, job.id, job.attempt, JobState.CANCELLED)
            case StopReason.TIME_LIMIT:
                detail = f"It was stopped after {job.time_limit:g} s; its last checkpoint is kept."
                problem = {"title": "The job took longer than its time limit", "detail": detail}
                return finish(place.store, job.id, job.attempt, JobState.FAILED, problem=problem)
            case JobState.FAILED:
                return finish(place.store, job.id, job.attempt, JobState.FAILED, problem=content)
            case _:
                return finish(place.store, job.id, job.attempt, JobState.SUCCEEDED, result=content)

    if outcome is StopReason.LOST:
        return
    with suppress(LeaseLost):  # then it belongs to another attempt, which has the last word
        persist(last_word)
        if outcome in (JobState.SUCCEEDED, StopReason.USER):
            with suppress(OSError):
                place.files.drop_checkpoints(job.id)


def persist(call: Callable[[], T], seconds: float = PERSIST_SECONDS) -> T:
    """The call's result; while the database is away it is tried again, for `seconds`."""
    ends = time.monotonic() + seconds
    pause = 0.1
    while True:
        try:
            return call()
        except DBAPIError as error:
            away = error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
            if not away or time.monotonic() > ends:  # a value that it does not take, it never takes
                raise
            log.warning("the database is away", error=type(error.orig).__name__)
            time.sleep(pause)
            pause = min(pause * 2, 5.0)


class Heart:
    """Prolongs the lease and keeps the log from a thread of its own; learns there when to stop."""

    def __init__(self, place: Workplace, job: Job, scratch: Path) -> None:
        self.log_path = scratch / "log.txt"
        self._place = place
        self._job = job
        self._reason: StopReason | None = None
        self._started = time.monotonic()  # clocks that jump change nothing
        self._since = 0.0  # when there was a reason first, on the monotonic clock
        self._kept = -1
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._interval = min(HEARTBEAT_SECONDS, place.settings.lease_seconds / 4)

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def reason(self) -> StopReason | None:
        if self._reason is None and self._place.shutting_down():
            return StopReason.SHUTDOWN
        return self._reason

    def keep_log(self) -> None:
        """Copy the log to the job's files if it has grown."""
        size = self.log_path.stat().st_size if self.log_path.exists() else 0
        if size != self._kept and size:
            try:
                self._place.files.keep_log(self._job.id, self._job.attempt, self.log_path)
                self._kept = size
            except Exception as error:  # whatever a remote store raises: the log is not worth the job
                log.warning("the log cannot be kept now", job=self._job.id, error=type(error).__name__)

    def _beat(self) -> None:
        job, place = self._job, self._place
        while not self._over.wait(self._interval):
            try:
                now = heartbeat(place.store, job.id, job.attempt, place.settings.lease_seconds)
                if now.cancel_requested_at is not None:
                    self._stop(StopReason.USER)
                elif time.monotonic() > self._started + job.time_limit:
                    self._stop(StopReason.TIME_LIMIT)
            except LeaseLost:
                self._stop(StopReason.LOST)
            except Exception as error:  # the database is away; the lease may outlast that
                log.warning("no heartbeat", job=job.id, error=type(error).__name__)
            self.keep_log()
            if self._reason is not None and time.monotonic() > self._since + GRACE_SECONDS:
                log.error("the recipe does not stop; ending its process", job=job.id, reason=self._reason)
                _conclude(place, job, self, self._reason, {})
                place.abandon()
                return

    def _stop(self, reason: StopReason) -> None:
        if self._reason is None:
            self._reason, self._since = reason, time.monotonic()


class WorkerContext(LocalContext):
    """A TrainingContext whose progress, checkpoints and log outlive this process and machine."""

    def __init__(self, place: Workplace, job: Job, scratch: Path, heart: Heart, stack: ExitStack) -> None:
        super().__init__(scratch)
        self._place = place
        self._job = job
        self._heart = heart
        self._stack = stack
        self._started = time.monotonic()
        self.mirror = Mirror(place.settings.mlflow_url if job.kind == "train" else None, job)
        self._first: int | None = None  # the step of this attempt's first report
        self.logger = logging.getLogger(f"fourfold.job.{job.id}")
        self.logger.setLevel(logging.INFO)
        handler = logging.FileHandler(heart.log_path, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self.logger.addHandler(handler)
        stack.callback(self._close_log, handler)
        if job.attempt > 1:
            self.logger.info("attempt %d on %s", job.attempt, job.worker)

    def _close_log(self, handler: logging.Handler) -> None:
        self.logger.removeHandler(handler)
        handler.close()

    def report(self, *, step: int, total: int, **metrics: float) -> None:
        super().report(step=step, total=total, **metrics)
        place, job = self._place, self._job
        now = time.time()
        self._first = max(0, step - 1) if self._first is None else self._first
        taken = (time.monotonic() - self._started) / (step - self._first) if step > self._first else None
        left = None if taken is None else round(taken * (total - step), 1)  # unknown before a first step
        # JSON, and with it PostgreSQL, has no NaN and no infinity: the log has told of them.
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        point = Point(step, now, finite)
        persist(
            lambda: heartbeat(
                place.store,
                job.id,
                job.attempt,
                place.settings.lease_seconds,
                step=step,
                total=total,
                metrics=point.metrics,
            )
        )
        persist(lambda: place.store.add_point(job.id, point))
        self.mirror.point(step, point.metrics)
        event = {"step": step, "total": total, "time": now, "metrics": point.metrics, "seconds_left": left}
        with suppress(OSError):  # the store has the point; only the live stream misses it
            place.events.add(job.id, "progress", event)

    def checkpoint(self, state: Mapping[str, NDArray[Any]]) -> None:
        super().checkpoint(state)
        self._place.files.keep_checkpoint(self._job.id, self._job.attempt, self.folder / "checkpoint.safetensors")

    def restore(self) -> dict[str, NDArray[Any]] | None:
        self._place.files.fetch_checkpoint(self._job.id, self.folder / "checkpoint.safetensors")
        state = super().restore()
        if state is not None:
            self.logger.info("resuming from the last checkpoint")
        return state

    def should_stop(self) -> StopReason | None:
        return self._heart.reason

    def champion(self) -> Path | None:
        version = self._place.models.aliases(self._job.domain).champion
        if version is None:
            return None
        return self._stack.enter_context(self._place.models.fetch(self._job.domain, version)).folder


# -- the kinds of job


def _train(place: Workplace, job: Job, context: WorkerContext) -> dict[str, Any]:
    """`services.<domain>.train.train(config, data, context)` → the published version of its model."""
    version = place.models.made_by(job.domain, job.id)  # an earlier attempt got that far
    if version is None:
        recipe = f"{place.recipes}.{job.domain}.train"
        config = read_config(import_module(recipe).TrainConfig, job.config)
        data = context.folder / "data"
        if job.dataset is not None:
            place.datasets.fetch(job.dataset, data)
        folder = run_recipe(recipe, config, data, context)
        if (reason := context.should_stop()) is not None and reason is not StopReason.SHUTDOWN:
            raise JobStopped(reason)
        heartbeat(place.store, job.id, job.attempt, place.settings.lease_seconds)  # raises if it is not ours any more
        version = place.models.publish(folder, parent=place.models.aliases(job.domain).champion, key=job.id)
        context.mirror.bundle(folder)
        context.logger.info("published as %s/%d", job.domain, version)
    return {"model": job.domain, "version": version}


def _validate(place: Workplace, job: Job, context: WorkerContext) -> dict[str, Any]:
    """`services.<domain>.datasets.validate(folder)` → the report, also kept with the data set."""
    if job.dataset is None:
        raise Unprocessable("The job names no data set.")
    module = import_module(f"{place.recipes}.{job.domain}.datasets")
    place.datasets.fetch(job.dataset, context.folder / "data")
    report: Report = module.validate(context.folder / "data")
    persist(lambda: place.datasets.judge(job.dataset or "", report))
    return report.model_dump()


def _compare(place: Workplace, job: Job, context: WorkerContext) -> dict[str, Any]:
    """`services.<domain>.train.compare(candidate, champion, data, context)`, kept beside the version for the gate."""
    if job.dataset is None:
        raise Unprocessable("The version does not say what it was trained on.")
    module = import_module(f"{place.recipes}.{job.domain}.train")
    place.datasets.fetch(job.dataset, context.folder / "data")
    version, champion = job.config["version"], job.config["champion"]
    with place.models.fetch(job.domain, version) as new, place.models.fetch(job.domain, champion) as old:
        comparison: Comparison = module.compare(new.folder, old.folder, context.folder / "data", context)
    place.models.keep_comparison(job.domain, version, comparison)
    return {"model": job.domain, "version": version, "comparison": comparison.model_dump(exclude_none=True)}


def _audit(place: Workplace, job: Job, context: WorkerContext) -> dict[str, Any]:
    """`<recipes>.audits.job.make(...)` → the report and its page, kept beside the version that it is about."""
    records, asked = AuditRecords(place.models), job.config
    record = records.get(job.domain, asked["version"], job.id)  # an earlier attempt got that far
    if record is None:
        data = None
        if job.dataset is not None:
            data = context.folder / "data"
            place.datasets.fetch(job.dataset, data)
        with ExitStack() as stack:
            versions = (asked["version"], asked["baseline"])
            bundle, before = (
                None if number is None else stack.enter_context(place.models.fetch(job.domain, number))
                for number in versions
            )
            make = import_module(f"{place.recipes}.audits.job").make
            report, page = make(job.id, asked, bundle, before, data, job.dataset, context)
        if (reason := context.should_stop()) is not None and reason is not StopReason.SHUTDOWN:
            raise JobStopped(reason)
        heartbeat(place.store, job.id, job.attempt, place.settings.lease_seconds)  # raises if it is not ours any more
        record = records.keep(report, page)
    return record.model_dump(mode="json", exclude={"id", "created_at"})


def _batch(place: Workplace, job: Job, context: WorkerContext) -> dict[str, Any]:
    """A domain's own kind of job over a data set with the champion: `services.<domain>.batch.BATCHES[kind]` is its
    configuration's type and `run(config, data, bundle, context)` → (file, summary). The file is kept as a result."""
    config_type, run = import_module(f"{place.recipes}.{job.domain}.batch").BATCHES[job.kind]
    config = read_config(config_type, job.config)
    data = context.folder / "data"
    if job.dataset is not None:
        place.datasets.fetch(job.dataset, data)
    version = place.models.aliases(job.domain).champion
    if version is None:
        raise Unprocessable(f"There is no champion of {job.domain}.")
    with place.models.fetch(job.domain, version) as bundle:
        path, summary = run(config, data, bundle, context)
    place.files.keep_result(job.id, path)
    return {**summary, "file": path.name, "bytes": path.stat().st_size, "model": f"{job.domain}/{version}"}


def _study(place: Workplace, job: Job, context: WorkerContext) -> dict[str, Any]:
    """An experiment that belongs to no model: `<recipes>.audits.recipes.RECIPES[kind]` is its configuration's type and
    `run(config, data, context)` → (file, summary). The file is kept as a result."""
    config_type, run = import_module(f"{place.recipes}.{job.domain}.recipes").RECIPES[job.kind]
    config = read_config(config_type, job.config)
    data = None
    if job.dataset is not None:
        data = context.folder / "data"
        place.datasets.fetch(job.dataset, data)
    path, summary = run(config, data, context)
    place.files.keep_result(job.id, path)
    return {**summary, "file": path.name, "bytes": path.stat().st_size}


_KINDS: Mapping[str, Callable[[Workplace, Job, WorkerContext], dict[str, Any]]] = {
    "train": _train,
    "validate": _validate,
    "compare": _compare,
    "audit": _audit,
    **dict.fromkeys(STUDIES, _study),
}
