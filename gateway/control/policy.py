"""A model's policy over HTTP, and the gate that it puts before a new champion: an audit that passed."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import Depends, Path, Request
from pydantic import BaseModel, ConfigDict

from gateway.auth import Principal
from gateway.control.access import control_router, needs
from shared.audit_records import AuditPolicy, AuditRecord, AuditRecords, ModelPolicy, PolicyConflict
from shared.audit_report import Report, Verdict
from shared.problems import Conflict, NotFound, problem_responses
from shared.repository import ModelRepository

router = control_router("models")
Name = Annotated[str, Path(max_length=64)]


class AuditRequired(Conflict):
    code = "audit-required"
    title = "The model's policy asks for an audit"


class AuditFailed(Conflict):
    code = "audit-failed"
    title = "The audit speaks against the version"


class PolicyRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    audit: AuditPolicy


@router.get("/{name}/policy", responses=problem_responses(NotFound))
async def read(name: Name, request: Request, _: Annotated[Principal, Depends(needs("predict"))]) -> ModelPolicy:
    """What a version of the model must have before it becomes champion."""
    models: ModelRepository = request.app.state.models

    def find() -> ModelPolicy:
        if not models.versions(name):
            raise NotFound(f"There is no model named {name!r}.")
        return AuditRecords(models).policy(name)

    return await asyncio.to_thread(find)


@router.put("/{name}/policy", responses=problem_responses(NotFound, PolicyConflict))
async def write(
    name: Name, asked: PolicyRequest, request: Request, who: Annotated[Principal, Depends(needs("admin"))]
) -> ModelPolicy:
    """Set it. The champion of now stays; every later promotion is asked for."""
    models: ModelRepository = request.app.state.models
    return await asyncio.to_thread(lambda: AuditRecords(models).set_policy(name, asked.audit, by=who.id))


def check_audit(models: ModelRepository, name: str, version: int) -> tuple[str, ...]:
    """The digests of the reports that let `version` become champion; none where the policy asks for none.

    Each check that the policy names must have been made, and its newest verdict be one that is accepted. Raises
    AuditRequired or AuditFailed. A version that was champion before may return without an audit, so that a rollback is
    never late, but not against one that failed.
    """
    records = AuditRecords(models)
    policy = records.policy(name).audit
    if not policy.required:
        return ()
    newest: dict[str, AuditRecord] = {}
    for record in records.of_version(name, version):
        for check in record.checks:
            newest.setdefault(check, record)
    missing = [check for check in policy.checks if check not in newest]
    looked: dict[str, None] = {}
    for check in policy.checks:
        record = newest.get(check)
        if record is None:
            continue
        # What counts is the report, whose digest is verified, and not the short record beside it.
        told = next(item for item in Report.model_validate_json(records.report(record)).checks if item.name == check)
        if told.verdict not in policy.accept:
            known = told.verdict is not Verdict.NOT_ASSESSED
            cure = (
                "" if known else "Take the check out of the policy, accept not-assessed there, or make it assessable. "
            )
            raise (AuditFailed if known else AuditRequired)(
                f"The audit {record.id} says {told.verdict} for {check}: {told.summary} {cure}"
                "Force it with a reason if you must.",
                audit=record.id,
                check=check,
                verdict=told.verdict,
            )
        looked[record.digest] = None
    if missing and not any(table.champion == version for table in models.alias_history(name)):
        raise AuditRequired(
            f"Version {version} was not audited for {', '.join(missing)}. Audit it (POST /v1/audits, fourfold audit "
            f"{name} {version}), or force it with a reason.",
            missing=missing,
        )
    return tuple(looked)
