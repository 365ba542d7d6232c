"""Jobs over HTTP: list, look, follow, cancel, read the log and the curves. Needs the scope train."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import orjson
from fastapi import Depends, Header, Path, Query, Request
from pydantic import BaseModel, Field
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response, StreamingResponse

from gateway.control.access import control_router
from shared.jobs.events import START, EventLog
from shared.jobs.files import JobFile, JobFiles
from shared.jobs.model import ENDED, IllegalTransition, Job, JobState
from shared.jobs.store import JobStore, cancel
from shared.problems import (
    NotFound,
    problem_responses,
)

LOOK_SECONDS = 1.0  # how often a followed job's row is looked at
router = control_router("jobs", "train")


class JobInfo(BaseModel):
    """One job; times are seconds since 1970. `metrics` are those of the last reported step."""

    id: str
    kind: str
    domain: str
    queue: str
    state: JobState
    config: dict[str, Any]
    dataset: str | None
    created_at: float
    created_by: str
    started_at: float | None
    finished_at: float | None
    cancel_requested_at: float | None
    attempt: int
    lost_leases: int = Field(description="Attempts that ended because their worker was not heard of any more.")
    max_attempts: int = Field(description="At so many lost leases the job fails.")
    worker: str | None
    step: int
    total: int
    metrics: dict[str, float]
    result: dict[str, Any] | None
    problem: dict[str, Any] | None


class JobPage(BaseModel):
    jobs: list[JobInfo]
    next_cursor: str | None


class PointInfo(BaseModel):
    step: int
    time: float
    metrics: dict[str, float]


class Curves(BaseModel):
    points: list[PointInfo]


class FilePage(BaseModel):
    files: list[JobFile]


def info_of(job: Job) -> JobInfo:
    return JobInfo.model_validate({name: getattr(job, name) for name in JobInfo.model_fields})


def _store(request: Request) -> JobStore:
    return request.app.state.jobs


Store = Annotated[JobStore, Depends(_store)]
JobId = Annotated[str, Path(max_length=64)]


@router.get("")
async def listing(
    store: Store,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    state: JobState | None = None,
    domain: Annotated[str | None, Query(max_length=64)] = None,
) -> JobPage:
    """Jobs, newest first."""
    jobs = await asyncio.to_thread(lambda: store.page(before=cursor, limit=limit, state=state, domain=domain))
    return JobPage(jobs=[info_of(job) for job in jobs], next_cursor=jobs[-1].id if len(jobs) == limit else None)


@router.get("/{job_id}", responses=problem_responses(NotFound))
async def get(job_id: JobId, store: Store) -> JobInfo:
    """One job."""
    return info_of(await asyncio.to_thread(store.get, job_id))


@router.get("/{job_id}/points", responses=problem_responses(NotFound))
async def points(job_id: JobId, store: Store) -> Curves:
    """The job's curves: the metrics of every reported step."""
    await asyncio.to_thread(store.get, job_id)
    found = await asyncio.to_thread(store.points, job_id)
    return Curves(points=[PointInfo(step=point.step, time=point.time, metrics=point.metrics) for point in found])


@router.post("/{job_id}/cancel", responses=problem_responses(NotFound, IllegalTransition))
async def stop(job_id: JobId, store: Store) -> JobInfo:
    """Ask a job to end: at once if it waits, at its next step if it runs. Repeating it changes nothing."""
    return info_of(await asyncio.to_thread(cancel, store, job_id))


@router.get(
    "/{job_id}/logs",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problem_responses(NotFound)},
)
async def logs(
    job_id: JobId, request: Request, store: Store, start: Annotated[int, Query(ge=0, lt=2**62)] = 0
) -> Response:
    """The log from byte `start` on, up to a mebibyte; ask again with what you have to follow it."""
    await asyncio.to_thread(store.get, job_id)
    files: JobFiles = request.app.state.job_files
    text = await asyncio.to_thread(files.log, job_id, start)
    return Response(text, media_type="text/plain; charset=utf-8")


@router.get("/{job_id}/files", responses=problem_responses(NotFound))
async def files(job_id: JobId, request: Request, store: Store) -> FilePage:
    """What the job has left so far: results, checkpoints, logs."""
    await asyncio.to_thread(store.get, job_id)
    kept: JobFiles = request.app.state.job_files
    return FilePage(files=await asyncio.to_thread(kept.listing, job_id))


@router.get(
    "/{job_id}/files/{name}",
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
        **problem_responses(NotFound),
    },
)
async def result_file(
    job_id: JobId, name: Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")], request: Request, store: Store
) -> StreamingResponse:
    """A file that the job made; its `result` names it."""
    await asyncio.to_thread(store.get, job_id)
    files: JobFiles = request.app.state.job_files
    chunks = await asyncio.to_thread(files.result, job_id, name)
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(chunks, media_type="application/octet-stream", headers=headers)


@router.get(
    "/{job_id}/events",
    response_class=EventSourceResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}, **problem_responses(NotFound)},
)
async def events(
    job_id: JobId,
    request: Request,
    store: Store,
    last_event_id: Annotated[str | None, Header(pattern=r"^\d{1,20}-\d{1,20}$")] = None,
) -> EventSourceResponse:
    """Server-sent events until the job has ended: `state` (the job, at every change) and `progress` (each step).

    A reader that names the last `progress` it saw in Last-Event-ID goes on after it.
    """
    await asyncio.to_thread(store.get, job_id)
    follow = _follow(job_id, last_event_id or START, store, request.app.state.events)
    return EventSourceResponse(follow, ping=15)


async def _follow(job_id: str, after: str, store: JobStore, log: EventLog) -> AsyncIterator[ServerSentEvent]:
    seen: tuple[Any, ...] | None = None
    while True:
        job = await asyncio.to_thread(store.get, job_id)
        ended = job.state in ENDED
        try:
            found = await log.read(job_id, after, 0.001 if ended or seen is None else LOOK_SECONDS)
        except OSError:
            # The broker is away: the row still tells of states, and the last step.
            found = []
            await asyncio.sleep(0 if ended else LOOK_SECONDS)
        for event in found:
            after = event.id
            yield ServerSentEvent(data=orjson.dumps(event.data).decode(), event=event.kind, id=event.id)
        if ended and found:
            continue
        now = (job.state, job.attempt, job.cancel_requested_at)
        if now != seen:
            seen = now
            yield ServerSentEvent(data=info_of(job).model_dump_json(), event="state")
        if ended:
            return
