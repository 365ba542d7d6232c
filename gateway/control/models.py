"""Models over HTTP: versions, aliases and their history; promotion (gated), rollback and canary."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from fastapi import Depends, Path, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import JSONResponse

from gateway.auth import Principal
from gateway.control.access import control_router, needs
from gateway.control.policy import AuditFailed, AuditRequired, check_audit
from gateway.control.promotion import NotComparable, WorseThanChampion, check_promotion
from shared.audit_records import ReportDamaged
from shared.bundles import Comparison, Manifest
from shared.datasets import Datasets
from shared.jobs.model import Job, new_job_id
from shared.jobs.store import JobStore
from shared.jobs.submission import Accepted, accepted
from shared.problems import (
    NotFound,
    Unprocessable,
    problem_responses,
)
from shared.repository import CHAMPION, AliasConflict, AliasTable, ModelRepository

router = control_router("models")


class ModelInfo(BaseModel):
    name: str
    versions: list[int]
    aliases: AliasTable


class ModelHistory(ModelInfo):
    history: list[AliasTable] = Field(description="Every alias table there was, oldest first.")


class Comparisons(BaseModel):
    comparisons: list[Comparison]


class ModelList(BaseModel):
    models: list[ModelInfo]


class AliasRequest(BaseModel):
    """Where an alias is to point. Only the champion is gated; `weight` is the canary's share of the requests."""

    model_config = ConfigDict(extra="forbid")
    version: int | None = Field(ge=1, description="null takes the alias away.")
    weight: float = Field(default=1.0, gt=0, le=1)
    expected_generation: int | None = Field(default=None, ge=0, description="Refuse if the table has changed since.")
    force: bool = Field(default=False, description="Promote against the gate's word; needs a reason.")
    reason: str = Field(default="", max_length=500, description="Kept in the history.")

    @model_validator(mode="after")
    def _forced_with_a_reason(self) -> AliasRequest:
        if self.force and not self.reason.strip():
            raise ValueError("force needs a reason")
        return self


def _models(request: Request) -> ModelRepository:
    return request.app.state.models


Models = Annotated[ModelRepository, Depends(_models)]
Reader = Annotated[Principal, Depends(needs("predict"))]
Name = Annotated[str, Path(max_length=64)]
Alias = Annotated[str, Path(pattern=r"^[a-z][a-z0-9-]{0,39}$")]


def _info(models: ModelRepository, name: str) -> ModelInfo:
    versions = models.versions(name)
    if not versions:
        raise NotFound(f"There is no model named {name!r}.")
    return ModelInfo(name=name, versions=versions, aliases=models.aliases(name))


@router.get("")
async def listing(models: Models, _: Reader) -> ModelList:
    """Every model with its versions and aliases."""
    return ModelList(models=await asyncio.to_thread(lambda: [_info(models, name) for name in models.names()]))


@router.get("/{name}", responses=problem_responses(NotFound))
async def get(name: Name, models: Models, _: Reader) -> ModelHistory:
    """One model, with the history of its aliases."""

    def read() -> ModelHistory:
        return ModelHistory(**_info(models, name).model_dump(), history=models.alias_history(name))

    return await asyncio.to_thread(read)


@router.get("/{name}/versions/{version}", responses=problem_responses(NotFound))
async def manifest(name: Name, version: Annotated[int, Path(ge=1, lt=2**31)], models: Models, _: Reader) -> Manifest:
    """What a version is, how good it was on its held-out split, and what it was made from."""
    return await asyncio.to_thread(models.manifest, name, version)


@router.get("/{name}/versions/{version}/comparisons", responses=problem_responses(NotFound))
async def comparisons(
    name: Name, version: Annotated[int, Path(ge=1, lt=2**31)], models: Models, _: Reader
) -> Comparisons:
    """How a version did beside champions of its time: in its training, and in the comparisons asked for since."""
    return Comparisons(comparisons=await asyncio.to_thread(models.comparisons, name, version))


@router.post(
    "/{name}/versions/{version}/comparisons",
    status_code=202,
    response_model=Accepted,
    responses=problem_responses(NotFound, NotComparable),
)
async def compare(
    name: Name,
    version: Annotated[int, Path(ge=1, lt=2**31)],
    request: Request,
    models: Models,
    who: Annotated[Principal, Depends(needs("train"))],
) -> JSONResponse:
    """Measure a version beside the champion of now, on the version's own held-out data: a job, whose result the gate
    takes into account."""
    jobs: JobStore = request.app.state.jobs

    def commit() -> Job:
        digest = models.manifest(name, version).dataset_digest
        champion = models.aliases(name).champion
        if champion is None or champion == version:
            raise NotComparable("There is no other champion to compare it with.")
        if digest is None:
            raise NotComparable("The version does not say what it was trained on.")
        datasets: Datasets = request.app.state.datasets
        try:
            datasets.get(digest)
        except NotFound:
            raise NotComparable(f"The data set {digest[:12]}, which it was trained on, is not here.") from None
        job = Job(
            id=new_job_id(),
            kind="compare",
            domain=name,
            queue="batch",
            config={"version": version, "champion": champion},
            created_at=time.time(),
            dataset=digest,
            created_by=who.id,
        )
        return jobs.submit(job)[0]

    return accepted(await asyncio.to_thread(commit))


@router.put(
    "/{name}/aliases/{alias}",
    responses=problem_responses(
        NotFound, AliasConflict, WorseThanChampion, NotComparable, AuditRequired, AuditFailed, ReportDamaged
    ),
)
async def set_alias(
    name: Name,
    alias: Alias,
    asked: AliasRequest,
    models: Models,
    who: Annotated[Principal, Depends(needs("admin"))],
) -> AliasTable:
    """Promote, roll back or set the canary; services follow within their poll of the aliases, half a second.

    A champion must not be worse than the one it replaces, and must have passed the audits that the model's policy asks
    for; see the problem's text for what was compared.
    """

    def change() -> AliasTable:
        # What the gate looks at must still hold when the alias moves.
        generation = models.aliases(name).generation if asked.expected_generation is None else asked.expected_generation
        audits: tuple[str, ...] = ()
        if alias == CHAMPION:
            if asked.version is None:
                raise Unprocessable("A model keeps its champion; name a version.")
            if not asked.force:
                audits = check_audit(models, name, asked.version)
                check_promotion(models, name, asked.version)
        reason = f"forced: {asked.reason}" if asked.force else asked.reason
        return models.set_alias(
            name,
            alias,
            asked.version,
            weight=1.0 if alias == CHAMPION else asked.weight,
            expected_generation=generation,
            by=who.id,
            reason=reason,
            audits=audits,
        )

    return await asyncio.to_thread(change)
