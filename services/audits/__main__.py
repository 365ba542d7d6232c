"""Audits a version from a shell, without any server.

python -m services.audits --bundle DIR --data DIR [--baseline DIR] [--checks groups robustness] --out DIR
python -m services.audits --model iqa --version 3 [--baseline 2] [--dataset DIGEST]    of this installation's stores
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from services.audits.audit import CHECKS, audit, report
from services.audits.render import page
from services.audits.report import Verdict
from shared.auditing import open_subject
from shared.bundles import Bundle
from shared.database import connect
from shared.datasets import Datasets, folder_digest
from shared.jobs.context import LocalContext
from shared.problems import FourfoldError, Unprocessable
from shared.repository import ModelRepository
from shared.settings import Settings, load_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where the version passes or is to be looked at, 1 where it must not be promoted, 2 for a bad request."""
    parser = argparse.ArgumentParser(prog="python -m services.audits", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bundle", type=Path, help="the version's folder")
    parser.add_argument("--data", type=Path, help="the data set's folder")
    parser.add_argument("--model", help="a model of this installation")
    parser.add_argument("--version", type=int)
    parser.add_argument("--dataset", help="name or digest; what the version was trained on, if left out")
    parser.add_argument("--baseline", help="a folder, or a version of the model")
    parser.add_argument("--checks", nargs="+", default=list(CHECKS), choices=list(CHECKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", choices=["quick", "full"], default="quick")
    parser.add_argument("--out", type=Path, help="where report.json and report.html go; a new folder if left out")
    given = parser.parse_args(arguments)
    if (given.bundle is None) == (given.model is None) or (given.model is not None and given.version is None):
        parser.error("name either --bundle, or --model and --version")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        with ExitStack() as stack:
            return _run(given, stack, list(sys.argv[1:] if arguments is None else arguments))
    except FourfoldError as error:
        print(f"services.audits: {error.detail}", file=sys.stderr)
        return 2


def _run(given: argparse.Namespace, stack: ExitStack, words: list[str]) -> int:
    out = given.out or Path(tempfile.mkdtemp(prefix="fourfold-audit-"))
    context = LocalContext(out)
    bundle, baseline, data, dataset = _folders(given, stack, out) if given.bundle else _stored(given, stack, out)
    started = time.monotonic()
    subject = open_subject("services", bundle, data, context)
    before = None if baseline is None else open_subject("services", baseline, data, context)
    checks = audit(subject, before, context, checks=given.checks, seed=given.seed, budget=given.budget)
    made = report(
        bundle,
        subject,
        checks,
        id="shell",
        baseline=None if baseline is None else baseline.manifest.version or 0,
        command=shlex.join(["python", "-m", "services.audits", *words]),
        seed=given.seed,
        budget=given.budget,
        seconds=time.monotonic() - started,
        dataset=dataset,
        at_hand=data is not None,
    )
    (out / "report.json").write_text(made.model_dump_json(indent=1))
    (out / "report.html").write_text(page(made), encoding="utf-8")
    for check in made.checks:
        print(f"{check.name:12} {check.verdict:16} {check.summary}")
    print(f"{made.verdict}: {out / 'report.html'}")
    return 1 if made.verdict is Verdict.STOP else 0


Found = tuple[Bundle, Bundle | None, Path | None, tuple[str | None, str | None]]


def _folders(given: argparse.Namespace, _: ExitStack, out: Path) -> Found:
    bundle = Bundle.open(given.bundle)
    baseline = None if given.baseline is None else Bundle.open(Path(given.baseline))
    digest = folder_digest(bundle.manifest.domain, given.data) if given.data and given.data.is_dir() else None
    return bundle, baseline, given.data, (given.data.name if given.data else None, digest)


def _stored(given: argparse.Namespace, stack: ExitStack, out: Path) -> Found:
    settings = load_settings(Settings)
    models = ModelRepository(settings.models_location)
    bundle = stack.enter_context(models.fetch(given.model, given.version))
    baseline = None
    if given.baseline is not None:
        if not given.baseline.isdigit():
            raise Unprocessable("--baseline is a version's number where --model names the model.")
        baseline = stack.enter_context(models.fetch(given.model, int(given.baseline)))
    wanted = given.dataset or bundle.manifest.dataset_digest
    if wanted is None:
        return bundle, baseline, None, (None, None)
    datasets = Datasets(connect(settings.database_location), settings)
    dataset = datasets.resolve(wanted)
    datasets.fetch(dataset.digest, out / "data")
    return bundle, baseline, out / "data", (dataset.name, dataset.digest)


if __name__ == "__main__":
    raise SystemExit(main())
