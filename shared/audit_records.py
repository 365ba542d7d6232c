"""Audit reports beside the versions that they are about, and what a model's policy asks of them.

    <root>/<name>/audits/<version>/<id>/report-<digest>.json, report-<digest>.html
    <root>/<name>/audits/<version>/<id>/record.json    written last, exclusively: with it the audit exists
    <root>/<name>/policies/<generation>.json           the highest generation is in force

The bundle itself stays as it was published. A record holds the digests of both files, and a report that does not match
its digest is not shown and not believed.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from shared.audit_report import CHECK_NAMES, CheckName, Report, Verdict
from shared.bundles import Frozen
from shared.problems import Conflict, InternalError, NotFound
from shared.repository import ModelRepository, check_model_name
from shared.storage import names_in

REPORT, PAGE, RECORD = "report.json", "report.html", "record.json"


class ReportDamaged(InternalError):
    code = "audit-damaged"
    title = "The audit's report is not what was recorded"


class PolicyConflict(Conflict):
    code = "policy-conflict"
    title = "The policy was changed by somebody else in the meantime"


class AuditRecord(Frozen):
    """An audit in short, with the digests of what it left. `id` is its job's."""

    id: str
    model: str
    version: int
    baseline: int | None = None
    verdict: Verdict
    checks: dict[str, Verdict]
    created_at: datetime
    digest: str = Field(description="SHA-256 of the report as JSON.")
    page_digest: str = Field(description="SHA-256 of the report as a page.")
    dataset: str | None = None


class AuditPolicy(Frozen):
    """What must have been audited before a version becomes champion, and which verdicts will do."""

    required: bool = False
    checks: tuple[CheckName, ...] = Field(default=CHECK_NAMES, min_length=1)
    accept: tuple[Verdict, ...] = Field(default=(Verdict.PASSES, Verdict.LOOK), min_length=1)


class ModelPolicy(Frozen):
    """A model's policy at one generation; generation 0 asks for nothing."""

    generation: int = 0
    audit: AuditPolicy = AuditPolicy()
    changed_at: datetime | None = None
    changed_by: str = ""


class AuditRecords:
    """Audits and policies in a model repository. Safe for many readers and writers at once."""

    def __init__(self, models: ModelRepository) -> None:
        self._models = models

    def keep(self, report: Report, page: bytes) -> AuditRecord:
        """Store a report and its page; the first one of an id stays, and is returned."""
        data = report.model_dump_json(indent=1).encode()
        folder = self._folder(report.model, report.version, report.id)
        self._models.fs.makedirs(folder, exist_ok=True)
        record = AuditRecord(
            id=report.id,
            model=report.model,
            version=report.version,
            baseline=report.baseline,
            verdict=report.verdict,
            checks={check.name: check.verdict for check in report.checks},
            created_at=report.created_at,
            digest=hashlib.sha256(data).hexdigest(),
            page_digest=hashlib.sha256(page).hexdigest(),
            dataset=None if report.dataset is None else report.dataset.digest,
        )
        # Two attempts of one job may both get here: files are named by their digest, so neither spoils the other's.
        for name, content in ((_named(REPORT, record.digest), data), (_named(PAGE, record.page_digest), page)):
            with suppress(FileExistsError):
                self._models.create(f"{folder}/{name}", content)
        with suppress(FileExistsError):
            self._models.create(f"{folder}/{RECORD}", record.model_dump_json(indent=1).encode())
        kept = self.get(report.model, report.version, report.id)
        return record if kept is None else kept

    def get(self, name: str, version: int, audit_id: str) -> AuditRecord | None:
        try:
            return AuditRecord.model_validate_json(self._read(f"{self._folder(name, version, audit_id)}/{RECORD}"))
        except FileNotFoundError:
            return None

    def of_version(self, name: str, version: int) -> list[AuditRecord]:
        """Newest first."""
        check_model_name(name)
        ids = sorted(names_in(self._models.fs, f"{self._models.root}/{name}/audits/{version}"), reverse=True)
        return [record for one in ids if (record := self.get(name, version, one)) is not None]

    def report(self, record: AuditRecord) -> bytes:
        """The report as JSON, verified; raises ReportDamaged."""
        return self._verified(record, _named(REPORT, record.digest), record.digest)

    def page(self, record: AuditRecord) -> bytes:
        """The report as HTML, verified; raises ReportDamaged."""
        return self._verified(record, _named(PAGE, record.page_digest), record.page_digest)

    def policy(self, name: str) -> ModelPolicy:
        """The policy in force."""
        check_model_name(name)
        generations = self._models.numbers(self._policies(name))
        if not generations:
            return ModelPolicy()
        return ModelPolicy.model_validate_json(self._read(f"{self._policies(name)}/{generations[-1]}.json"))

    def set_policy(self, name: str, audit: AuditPolicy, *, by: str) -> ModelPolicy:
        """Put a policy in force; raises NotFound for an unknown model, PolicyConflict where two did at once."""
        if not self._models.versions(name):
            raise NotFound(f"There is no model named {name!r}.")
        policy = ModelPolicy(
            generation=self.policy(name).generation + 1, audit=audit, changed_at=datetime.now(UTC), changed_by=by
        )
        self._models.fs.makedirs(self._policies(name), exist_ok=True)
        try:
            path = f"{self._policies(name)}/{policy.generation}.json"
            self._models.create(path, policy.model_dump_json(indent=1).encode())
        except FileExistsError:
            raise PolicyConflict("Another change was made at the same moment; read the policy and try again.") from None
        return policy

    def _verified(self, record: AuditRecord, name: str, digest: str) -> bytes:
        try:
            data = self._read(f"{self._folder(record.model, record.version, record.id)}/{name}")
        except FileNotFoundError:
            raise ReportDamaged("The report's file is gone; audit the version again.") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise ReportDamaged("The report was changed after it was made; audit the version again.")
        return data

    def _read(self, path: str) -> bytes:
        data: Any = self._models.fs.cat_file(path)
        return data

    def _folder(self, name: str, version: int, audit_id: str) -> str:
        check_model_name(name)
        return f"{self._models.root}/{name}/audits/{version}/{audit_id}"

    def _policies(self, name: str) -> str:
        return f"{self._models.root}/{name}/policies"


def _named(name: str, digest: str) -> str:
    stem, _, suffix = name.partition(".")
    return f"{stem}-{digest[:16]}.{suffix}"
