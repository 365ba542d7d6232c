"""An audit as the worker makes it: from a job's configuration, bundles and data to the report and its page."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.audits.audit import audit, report
from services.audits.render import page
from shared.audit_report import Report
from shared.auditing import open_subject
from shared.bundles import Bundle
from shared.jobs.context import TrainingContext

PACKAGE = "services"


def make(
    id: str,
    asked: Mapping[str, Any],
    bundle: Bundle,
    baseline: Bundle | None,
    data: Path | None,
    digest: str | None,
    context: TrainingContext,
) -> tuple[Report, bytes]:
    """The report and its page. `asked` is the job's configuration; `data` a folder with the data set `digest`."""
    started = time.monotonic()
    subject = open_subject(PACKAGE, bundle, data, context)
    before = None if baseline is None else open_subject(PACKAGE, baseline, data, context)
    seed, budget = asked["seed"], asked["budget"]
    checks = audit(subject, before, context, checks=asked["checks"], seed=seed, budget=budget)
    words = ["python", "-m", "services.audits", "--model", bundle.manifest.name, "--version", str(asked["version"])]
    words += [] if asked["baseline"] is None else ["--baseline", str(asked["baseline"])]
    words += [] if digest is None else ["--dataset", digest]
    words += ["--checks", *asked["checks"], "--seed", str(seed), "--budget", budget]
    made = report(
        bundle,
        subject,
        checks,
        id=id,
        baseline=asked["baseline"],
        command=shlex.join(words),
        seed=seed,
        budget=budget,
        seconds=time.monotonic() - started,
        dataset=(asked.get("dataset"), digest),
        at_hand=data is not None,
    )
    return made, page(made).encode()
