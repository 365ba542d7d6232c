"""Data sets over HTTP: upload as an archive or file by file, look, remove. Needs the scope train."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Query, Request
from fastapi import Path as PathParameter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from gateway.auth import Principal
from gateway.control.access import control_router, needs
from gateway.routes import AUDITS, SERVICES
from shared.bodies import spool_body
from shared.datasets import Dataset, DatasetBusy, Datasets, FileOf, MissingFiles
from shared.jobs.model import Job, new_job_id
from shared.jobs.store import JobStore
from shared.jobs.submission import judged
from shared.problems import (
    NotFound,
    PayloadTooLarge,
    Unprocessable,
    problem_responses,
)
from shared.repository import ModelRepository
from shared.settings import Settings
from shared.unpacking import ArchiveTooLarge, BadArchive

router = control_router("datasets")
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Trainer = Annotated[Principal, Depends(needs("train"))]
_ARCHIVE = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_MADE = {200: {"model": Dataset, "description": "These files were a data set before; the name refers to it now."}}


class Listing(BaseModel):
    """A data set by its files, which were uploaded before."""

    model_config = ConfigDict(extra="forbid")
    kind: str = Field(max_length=64, description="The domain that it is for.")
    name: str = Field(pattern=NAME)
    files: list[FileOf] = Field(min_length=1)


class DatasetPage(BaseModel):
    datasets: list[Dataset]
    next_cursor: float | None


def _datasets(request: Request) -> Datasets:
    return request.app.state.datasets


Store = Annotated[Datasets, Depends(_datasets)]


@router.post(
    "",
    status_code=201,
    response_model=Dataset,
    openapi_extra=_ARCHIVE,
    responses={**_MADE, **problem_responses(PayloadTooLarge, ArchiveTooLarge, Unprocessable, BadArchive)},
)
async def upload(
    request: Request,
    response: Response,
    store: Store,
    who: Trainer,
    kind: Annotated[str, Query(max_length=64, description="The domain that it is for.")],
    name: Annotated[str, Query(pattern=NAME)],
) -> Dataset:
    """Make a data set from the zip or tar archive in the body. Its domain validates it; look at `state`."""
    _check_kind(kind)
    settings: Settings = request.app.state.settings
    archive = await spool_body(request, _spool(settings), settings.max_dataset_bytes)
    try:
        with tempfile.TemporaryDirectory(dir=_spool(settings)) as scratch:
            made = await asyncio.to_thread(store.add_archive, kind, name, archive, Path(scratch), who.id)
    finally:
        archive.unlink()
    return await _made(request, response, *made, who)


@router.put("/files/{sha256}", status_code=204, responses=problem_responses(PayloadTooLarge), response_class=Response)
async def upload_file(
    request: Request,
    store: Store,
    who: Trainer,
    sha256: Annotated[str, PathParameter(pattern=r"^[0-9a-f]{64}$")],
) -> Response:
    """Upload one file under the SHA-256 of its bytes. Repeating it does no harm."""
    settings: Settings = request.app.state.settings
    draft = await spool_body(request, _spool(settings), settings.max_dataset_bytes)
    try:
        await asyncio.to_thread(store.put_file, draft, sha256)
    finally:
        draft.unlink(missing_ok=True)
    return Response(status_code=204)


class Parts(BaseModel):
    """The parts of a large file, in order, each uploaded before as a file of its own."""

    model_config = ConfigDict(extra="forbid")
    parts: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(min_length=1, max_length=10_000)


@router.post(
    "/files/{sha256}/parts",
    status_code=204,
    responses=problem_responses(MissingFiles, ArchiveTooLarge, Unprocessable),
    response_class=Response,
)
async def join_parts(
    asked: Parts,
    request: Request,
    store: Store,
    _: Trainer,
    sha256: Annotated[str, PathParameter(pattern=r"^[0-9a-f]{64}$")],
) -> Response:
    """Make one file of uploaded parts. The problem `missing-files` names what to upload first: so the upload of one
    large file, too, goes on where it was."""
    with tempfile.TemporaryDirectory(dir=_spool(request.app.state.settings)) as scratch:
        await asyncio.to_thread(store.join_parts, sha256, asked.parts, Path(scratch) / "whole")
    return Response(status_code=204)


@router.post(
    "/listings",
    status_code=201,
    response_model=Dataset,
    responses={**_MADE, **problem_responses(ArchiveTooLarge, Unprocessable, BadArchive, MissingFiles)},
)
async def from_files(asked: Listing, request: Request, response: Response, store: Store, who: Trainer) -> Dataset:
    """Make a data set of uploaded files. The problem `missing-files` names what to upload first: so an upload that
    broke off goes on where it was."""
    _check_kind(asked.kind)
    made = await asyncio.to_thread(store.add, asked.kind, asked.name, asked.files, who.id)
    return await _made(request, response, *made, who)


@router.get("")
async def listing(
    store: Store,
    _: Trainer,
    cursor: float | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    kind: Annotated[str | None, Query(max_length=64)] = None,
) -> DatasetPage:
    """Data sets, newest first."""
    found = await asyncio.to_thread(lambda: store.page(before=cursor, limit=limit, kind=kind))
    return DatasetPage(datasets=found, next_cursor=found[-1].created_at if len(found) == limit else None)


@router.get("/{reference}", responses=problem_responses(NotFound))
async def get(reference: str, request: Request, store: Store, _: Trainer) -> Dataset:
    """A data set by its name, its digest, or the digest's first eight digits or more."""
    jobs: JobStore = request.app.state.jobs
    return await asyncio.to_thread(lambda: judged(store, jobs, store.resolve(reference)))


@router.delete(
    "/{digest}", status_code=204, responses=problem_responses(NotFound, DatasetBusy), response_class=Response
)
async def remove(digest: str, request: Request, store: Store, _: Trainer) -> Response:
    """Forget a data set that no job works on and no model was made of; its files go when nothing else holds them."""
    jobs: JobStore = request.app.state.jobs
    models: ModelRepository = request.app.state.models
    await asyncio.to_thread(lambda: store.remove(digest, used_by=users(jobs, models)))
    await asyncio.to_thread(store.collect)
    return Response(status_code=204)


def users(jobs: JobStore, models: ModelRepository) -> Callable[[str], str | None]:
    """Digest → what refers to the data set, or None."""

    def used_by(digest: str) -> str | None:
        if jobs.refers_to(digest):
            return "a job that has not ended"
        for name in models.names():
            for version in models.versions(name):
                if models.manifest(name, version).dataset_digest == digest:
                    return f"the model {name}/{version}"
        return None

    return used_by


def _check_kind(kind: str) -> None:
    if kind not in (*SERVICES, AUDITS):
        raise Unprocessable(f"There is no kind {kind[:64]!r}; there is {', '.join((*SERVICES, AUDITS))}.")


def _spool(settings: Settings) -> Path:
    folder = settings.home / "spool"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


async def _made(request: Request, response: Response, dataset: Dataset, new: bool, who: Principal) -> Dataset:
    """Answer with the data set, and see that its domain validates it."""
    if dataset.state == "validating":
        jobs: JobStore = request.app.state.jobs
        job = Job(
            id=new_job_id(),
            kind="validate",
            domain=dataset.kind,
            queue="batch",
            config={},
            created_at=time.time(),
            dataset=dataset.digest,
            created_by=who.id,
        )
        if not await asyncio.to_thread(jobs.refers_to, dataset.digest):
            await asyncio.to_thread(jobs.submit, job)
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"/v1/datasets/{dataset.digest}"
    return dataset
