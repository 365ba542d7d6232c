"""The routes that accept a domain's jobs: each checks the configuration and the data set, and commits the job."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Request
from pydantic import BaseModel, ConfigDict, Field, create_model
from starlette.responses import JSONResponse

from shared.about import PRINCIPAL_HEADER
from shared.database import connect
from shared.datasets import Dataset, Datasets, DatasetUnusable, Finding, Report
from shared.jobs.config import ConfigInvalid, RecipeConfig, read_config
from shared.jobs.model import IdempotencyConflict, Job, new_job_id
from shared.jobs.store import JobStore, SqlJobStore
from shared.problems import Conflict, NotFound, Unprocessable, problem_responses
from shared.settings import Settings


class DatasetNotReady(Conflict):
    code = "dataset-not-ready"
    title = "The data set is still being validated"
    advice = "Wait for Retry-After seconds and repeat it."


class Accepted(BaseModel):
    """A job that will be run, whatever fails from now on."""

    id: str
    state: str
    links: dict[str, str] = Field(description="Where to look: `self`, `events`, `logs`.")


def accepted(job: Job) -> JSONResponse:
    """202 with the job's place."""
    here = f"/v1/jobs/{job.id}"
    body = Accepted(
        id=job.id, state=job.state, links={"self": here, "events": f"{here}/events", "logs": f"{here}/logs"}
    )
    return JSONResponse(body.model_dump(), status_code=202, headers={"Location": here})


def judged(datasets: Datasets, store: JobStore, dataset: Dataset) -> Dataset:
    """`dataset`, invalid if it waits for a validation that failed, was cancelled or was given up."""
    if dataset.state == "validating" and not store.refers_to(dataset.digest):
        dataset = datasets.get(dataset.digest)  # the job may have ended in between, with a report
        if dataset.state == "validating":
            told = "its validation ended without a report; the job says why. Add it again to repeat it"
            report = Report(state="invalid", findings=[Finding(file=".", problem=told)])
            return dataset.model_copy(update={"state": "invalid", "report": report.model_dump(exclude_none=True)})
    return dataset


def check_dataset(dataset: Dataset, kind: str, config: RecipeConfig) -> None:
    """Raise DatasetUnusable or DatasetNotReady unless a training of `kind` may start on the data set."""
    if dataset.kind != kind:
        raise DatasetUnusable(f"{dataset.name} is a data set of the kind {dataset.kind}, not {kind}.")
    findings = dataset.report.get("findings", [])[:20]
    match dataset.state:
        case "validating":
            raise DatasetNotReady(f"{dataset.name} is being validated; try again shortly.", retry_after=1)
        case "invalid":
            raise DatasetUnusable(_sentence(dataset.name, "is not valid", findings), findings=findings)
        case "flawed" if config.bad_files == "refuse":
            what = "has bad files; mend them, or set bad_files to 'exclude'"
            raise DatasetUnusable(_sentence(dataset.name, what, findings), findings=findings)
        case _:
            pass


def _sentence(name: str, what: str, findings: list[dict[str, Any]]) -> str:
    if not findings:
        return f"{name} {what}."
    first = findings[0]
    place = first["file"] + (f" line {first['line']}" if first.get("line") else "")
    return f"{name} {what}. First of {len(findings)}: {place}: {first['problem']}"


def training_router(name: str, config_type: type[RecipeConfig], settings: Settings) -> APIRouter:
    """`POST /v1/<name>/training-jobs`."""
    return job_router(name, "training-jobs", "train", config_type, settings)


def job_router(name: str, path: str, kind: str, config_type: type[RecipeConfig], settings: Settings) -> APIRouter:
    """`POST /v1/<name>/<path>`: a job of `kind` on a data set of the domain; a training goes to a training's queue."""
    engine = connect(settings.database_location)
    store: JobStore = SqlJobStore(engine)
    datasets = Datasets(engine, settings)
    router = APIRouter(prefix=f"/v1/{name}", tags=[name])
    schema = config_type.model_json_schema()
    request_type: Any = create_model(
        "TrainingRequest" if kind == "train" else f"{kind.title()}Request",
        __config__=ConfigDict(extra="forbid"),
        dataset=(str, Field(min_length=1, max_length=80, description="Name, digest, or the digest's first digits.")),
        config=(
            dict[str, Any],
            Field(default={}, description="The settings.", json_schema_extra={"properties": schema["properties"]}),
        ),
    )

    async def submit(
        request: Request,
        asked: Any,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
    ) -> JSONResponse:
        """Accept a job; the same Idempotency-Key with the same body answers with the same job."""
        by = request.headers.get(PRINCIPAL_HEADER, "")
        config = read_config(config_type, asked.config)
        fingerprint = hashlib.sha256(
            orjson.dumps([name, kind, asked.model_dump()], option=orjson.OPT_SORT_KEYS)
        ).hexdigest()

        def commit() -> Job:
            dataset = judged(datasets, store, datasets.resolve(asked.dataset))
            check_dataset(dataset, name, config)
            job = Job(
                id=new_job_id(),
                kind=kind,
                domain=name,
                queue=queue_for(config, settings) if kind == "train" else "batch",
                config=config.model_dump(),
                created_at=time.time(),
                dataset=dataset.digest,
                created_by=by,
                time_limit=settings.job_time_limit_seconds,
            )
            return store.submit(job, idempotency_key=idempotency_key, fingerprint=fingerprint)[0]

        return accepted(await asyncio.to_thread(commit))

    submit.__annotations__["asked"] = request_type  # so that the document shows this domain's settings
    errors = (ConfigInvalid, DatasetUnusable, Unprocessable, DatasetNotReady, IdempotencyConflict, NotFound)
    router.post(f"/{path}", status_code=202, response_model=Accepted, responses=problem_responses(*errors))(submit)
    return router


def queue_for(config: RecipeConfig, settings: Settings) -> str:
    """By the device that the configuration asks for."""
    return {"cpu": "train.cpu", "cuda": "train.gpu"}.get(config.device, settings.default_train_queue)
