"""Audits over HTTP: submit, list, read the report as JSON or as a page. Needs the scope train."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Annotated, Any

import orjson
from fastapi import Depends, Header, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from gateway.auth import Principal
from gateway.control.access import control_router, needs
from gateway.routes import AUDITS
from shared.audit_records import AuditRecord, AuditRecords, ReportDamaged
from shared.audit_report import CHECK_NAMES, Budget, CheckName, Report, Study, Verdict
from shared.bundles import Manifest
from shared.datasets import Datasets, DatasetUnusable
from shared.jobs.config import RecipeConfig
from shared.jobs.model import IdempotencyConflict, Job, JobState, new_job_id
from shared.jobs.store import JobStore
from shared.jobs.submission import Accepted, DatasetNotReady, accepted, check_dataset, judged
from shared.problems import Conflict, NotFound, Unprocessable, problem_responses
from shared.repository import ModelRepository

router = control_router("audits", "train")
# A page that was made from what people uploaded: it runs nothing, fetches nothing, and sits in no frame.
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'; sandbox"


class AuditNotReady(Conflict):
    code = "audit-not-ready"
    title = "The audit has not ended yet"


class AuditRequest(BaseModel):
    """Which version to examine, and how."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(max_length=64)
    version: int = Field(ge=1, lt=2**31)
    checks: list[CheckName] = Field(default=list(CHECK_NAMES), min_length=1, max_length=len(CHECK_NAMES))
    baseline: int | None = Field(default=None, ge=1, lt=2**31, description="A version to compare with.")
    dataset: str | None = Field(
        default=None, max_length=80, description="Name or digest; what the version was trained on if unset."
    )
    seed: int = Field(default=0, ge=0, lt=2**31)
    budget: Budget = "quick"


class AuditInfo(BaseModel):
    """One audit. `verdict`, `checks` and `digest` (SHA-256 of the report) are there once it has succeeded."""

    id: str
    model: str
    version: int
    baseline: int | None
    state: JobState
    verdict: Verdict | None = None
    checks: dict[str, Verdict] = {}
    created_at: float
    digest: str | None = None
    page_digest: str | None = None


class AuditPage(BaseModel):
    audits: list[AuditInfo]
    next: str | None = Field(description="The cursor of the next page.")


AuditId = Annotated[str, Path(pattern=r"^[0-9a-f]{1,64}$")]


@router.post(
    "",
    status_code=202,
    response_model=Accepted,
    responses=problem_responses(NotFound, DatasetUnusable, Unprocessable, DatasetNotReady, IdempotencyConflict),
)
async def submit(
    asked: AuditRequest,
    request: Request,
    who: Annotated[Principal, Depends(needs("train"))],
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
) -> JSONResponse:
    """Examine a version: a job, with progress, that can be cancelled; its id is the audit's."""
    models: ModelRepository = request.app.state.models
    jobs: JobStore = request.app.state.jobs
    given = asked.model_dump()
    fingerprint = hashlib.sha256(orjson.dumps(["audit", given], option=orjson.OPT_SORT_KEYS)).hexdigest()

    def commit() -> Job:
        manifest = models.manifest(asked.model, asked.version)
        if asked.baseline is not None:
            if asked.baseline == asked.version:
                raise Unprocessable("The baseline is another version than the one audited.")
            models.manifest(asked.model, asked.baseline)
        name, digest = _data(request, asked.dataset, manifest)
        job = Job(
            id=new_job_id(),
            kind="audit",
            domain=asked.model,
            queue="batch",
            config={**given, "checks": list(dict.fromkeys(asked.checks)), "dataset": name},
            created_at=time.time(),
            dataset=digest,
            created_by=who.id,
            time_limit=request.app.state.settings.job_time_limit_seconds,
        )
        return jobs.submit(job, idempotency_key=idempotency_key, fingerprint=fingerprint)[0]

    return accepted(await asyncio.to_thread(commit))


class StudyRequest(BaseModel):
    """An experiment over a set of images: worst groups by size, a phase diagram, a set distilled to a few images, or
    attacks on that distillation."""

    model_config = ConfigDict(extra="forbid")
    config: dict[str, Any] = Field(default={}, description="The settings; the job's problem says which is wrong.")
    dataset: str | None = Field(
        default=None, max_length=80, description="An image set of the kind audits; handwritten digits if unset."
    )


@router.post(
    "/{study}",
    status_code=202,
    response_model=Accepted,
    responses=problem_responses(NotFound, DatasetUnusable, Unprocessable, DatasetNotReady, IdempotencyConflict),
)
async def study(
    study: Study,
    asked: StudyRequest,
    request: Request,
    who: Annotated[Principal, Depends(needs("train"))],
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
) -> JSONResponse:
    """Run an experiment: a job, whose file holds the figures (of `distil`, the images). It makes no version and no data
    set, and nothing of a poisoned set leaves it."""
    fingerprint = hashlib.sha256(orjson.dumps([study, asked.model_dump()], option=orjson.OPT_SORT_KEYS)).hexdigest()

    def commit() -> Job:
        datasets: Datasets = request.app.state.datasets
        dataset = None
        if asked.dataset is not None:
            dataset = judged(datasets, request.app.state.jobs, datasets.resolve(asked.dataset))
            check_dataset(dataset, AUDITS, RecipeConfig())
        job = Job(
            id=new_job_id(),
            kind=study,
            domain=AUDITS,
            queue="train.cpu",
            config=asked.config,
            created_at=time.time(),
            dataset=None if dataset is None else dataset.digest,
            created_by=who.id,
            time_limit=request.app.state.settings.job_time_limit_seconds,
        )
        return request.app.state.jobs.submit(job, idempotency_key=idempotency_key, fingerprint=fingerprint)[0]

    return accepted(await asyncio.to_thread(commit))


def _data(request: Request, reference: str | None, manifest: Manifest) -> tuple[str | None, str | None]:
    """(name, digest) of the data set to examine with: the one asked for, else the training's; None if that is gone."""
    datasets: Datasets = request.app.state.datasets
    if reference is None:
        try:
            dataset = datasets.get(manifest.dataset_digest or "")
        except NotFound:
            return None, None
    else:
        dataset = judged(datasets, request.app.state.jobs, datasets.resolve(reference))
    bad_files: Any = manifest.config.get("bad_files", "refuse")
    check_dataset(dataset, manifest.domain, RecipeConfig(bad_files=bad_files))
    return dataset.name, dataset.digest


@router.get("")
async def listing(
    request: Request,
    model: Annotated[str | None, Query(max_length=64)] = None,
    version: Annotated[int | None, Query(ge=1, lt=2**31)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
) -> AuditPage:
    """Audits, newest first; of one model, or one version, if asked."""
    jobs: JobStore = request.app.state.jobs

    def read() -> AuditPage:
        found: list[Job] = []
        before = cursor
        while len(found) <= limit:
            page = jobs.page(before=before, limit=200, domain=model, kind="audit")
            found += [job for job in page if version in (None, job.config.get("version"))]
            if len(page) < 200:
                break
            before = page[-1].id
        shown = found[:limit]
        return AuditPage(audits=[_info(job) for job in shown], next=shown[-1].id if len(found) > limit else None)

    return await asyncio.to_thread(read)


def _info(job: Job) -> AuditInfo:
    result = job.result or {}
    known = {name: result[name] for name in ("verdict", "checks", "digest", "page_digest") if name in result}
    return AuditInfo(
        id=job.id,
        model=job.domain,
        version=job.config["version"],
        baseline=job.config.get("baseline"),
        state=job.state,
        created_at=job.created_at,
        **known,
    )


def _records(request: Request) -> AuditRecords:
    return AuditRecords(request.app.state.models)


def _record(request: Request, audit_id: str) -> AuditRecord:
    job: Job = request.app.state.jobs.get(audit_id)
    if job.kind != "audit":
        raise NotFound(f"There is no audit {audit_id!r}; that job is of the kind {job.kind}.")
    record = _records(request).get(job.domain, job.config["version"], job.id)
    if record is not None:
        return record
    if job.state in (JobState.QUEUED, JobState.RUNNING):
        done = f", {job.step} of {job.total} done" if job.total else ""
        raise AuditNotReady(f"The audit is {job.state}{done}; its job tells when it ends.", retry_after=2)
    why = f": {job.problem.get('title', '')}" if job.problem else ""
    raise NotFound(f"The audit left no report; its job was {job.state}{why}.")


_READ = problem_responses(NotFound, AuditNotReady, ReportDamaged)


@router.get("/{audit_id}", response_model=Report, responses=_READ)
async def report(audit_id: AuditId, request: Request) -> Response:
    """The report; its bytes have the SHA-256 that the record names."""

    def read() -> tuple[bytes, str]:
        record = _record(request, audit_id)
        return _records(request).report(record), record.digest

    data, digest = await asyncio.to_thread(read)
    return Response(data, media_type="application/json", headers={"ETag": f'"{digest}"'})


@router.get(
    "/{audit_id}/report.html",
    response_class=Response,
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}, **_READ},
)
async def page(audit_id: AuditId, request: Request) -> Response:
    """The report as one page that fetches nothing: fit to be saved, mailed or printed."""

    def read() -> bytes:
        return _records(request).page(_record(request, audit_id))

    headers = {"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff"}
    return Response(await asyncio.to_thread(read), media_type="text/html; charset=utf-8", headers=headers)
