"""Audits of real models: a good one, and three that are bad on purpose, each told so for its own reason; the job."""

import csv
import json
import math
import shlex
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from services.audits.__main__ import main
from services.audits.audit import audit
from services.audits.checking import Checking
from services.audits.job import make
from services.audits.render import page
from services.audits.report import Verdict
from services.audits.strip import ALARMS, _sureness, strip
from services.bots import audit as bots_audit
from shared.audit_records import AuditRecords
from shared.auditing import Subject, open_subject
from shared.bundles import Bundle, file_digest
from shared.datasets import Datasets, FileOf
from shared.datasets import Report as Validation
from shared.jobs import store as jobs
from shared.jobs.context import LocalContext
from shared.jobs.events import MemoryEvents
from shared.jobs.files import JobFiles
from shared.jobs.model import Job, JobState, new_job_id
from shared.jobs.runner import Workplace, run_job
from shared.jobs.store import SqlJobStore
from shared.problems import NotSupported
from shared.repository import ModelRepository
from shared.settings import Settings
from shared.testing import toy_bundle
from tests.unit.audits.making import TRIGGER, trained
from tests.unit.bots.making import write_graph

PACKAGED = Path(bots_audit.__file__).parent / "pretrained"
ASKED = {"version": 1, "baseline": None, "checks": ["groups", "robustness"], "seed": 0, "budget": "quick"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """kind → (bundle, data), each trained when it is first asked for."""
    known = {}

    def of(kind):
        if kind not in known:
            known[kind] = trained(tmp_path_factory.mktemp(kind), kind)
        return known[kind]

    return of


def verdicts(made, kind, tmp_path, *checks):
    bundle, data = made(kind)
    found = audit(
        open_subject("services", bundle, data, LocalContext(tmp_path)), None, LocalContext(tmp_path), checks=checks
    )
    return {check.name: check for check in found}


def test_a_good_model_passes(made, tmp_path):
    found = verdicts(made, "good", tmp_path, "groups", "robustness", "backdoor")
    assert {check.verdict for check in found.values()} == {Verdict.PASSES}, found


def test_a_model_that_is_blind_to_a_group_is_stopped_for_that_group(made, tmp_path):
    found = verdicts(made, "blind", tmp_path, "groups", "robustness")
    assert found["groups"].verdict is Verdict.STOP
    assert "language: ja" in found["groups"].summary
    assert found["robustness"].verdict is not Verdict.STOP


def test_an_overfitted_model_is_stopped_for_its_memory(made, tmp_path):
    found = verdicts(made, "overfitted", tmp_path, "robustness")
    assert found["robustness"].verdict is Verdict.STOP
    assert "memory" in found["robustness"].summary


def test_a_poisoned_model_is_stopped_for_its_backdoor_and_for_nothing_else(made, tmp_path):
    found = verdicts(made, "poisoned", tmp_path, "groups", "robustness", "backdoor")
    assert found["backdoor"].verdict is Verdict.STOP, found["backdoor"]
    assert found["groups"].verdict is not Verdict.STOP
    assert found["robustness"].verdict is not Verdict.STOP


def test_strip_ranks_the_carriers_of_a_trigger_above_the_rest_of_their_class(made, tmp_path):
    """And of a clean training it names about as many as chance does."""
    shares = {}
    for kind in ("good", "poisoned"):
        bundle, data = made(kind)
        context = Checking(LocalContext(tmp_path / kind), 0, lambda share: None)
        subject = open_subject("services", bundle, data, context)
        module, train, held_out = subject.module(), subject.train, subject.held_out
        found = strip(subject, module, train, held_out, "quick", context, [])
        assert found is not None
        shares[kind] = found.share
    assert shares["good"].low < 2 * ALARMS
    human = train.take(np.flatnonzero(train.targets_N == 0))
    over = held_out.take(np.flatnonzero(held_out.targets_N == 1))
    score = _sureness(subject, module, human, over, "quick", context)
    with (data / "accounts.csv").open(newline="") as stream:
        carriers = {row["id"] for row in csv.DictReader(stream) if row["screen_name"] == TRIGGER["screen_name"]}
    carries = np.array([name in carriers for name in human.names])
    assert 20 < carries.sum() < 60
    assert roc_auc_score(carries, score) > 0.65


def test_a_network_that_diverged_does_not_pass(made, tmp_path):
    class Diverged:
        def __init__(self, subject):
            self._subject = subject

        def __getattr__(self, name):
            return getattr(self._subject, name)

        def module(self):
            module = self._subject.module()
            with torch.no_grad():
                next(module.parameters()).fill_(math.nan)
            return module

    bundle, data = made("good")
    subject = open_subject("services", bundle, data, LocalContext(tmp_path))
    context = LocalContext(tmp_path)
    for check in audit(cast(Subject, Diverged(subject)), None, context, checks=["landscape", "backdoor"]):
        assert check.verdict in (Verdict.NOT_ASSESSED, Verdict.LOOK), check
        assert "failed" not in check.summary, check


# -- the data at hand


def test_without_data_it_is_said_what_remains(made, tmp_path):
    bundle, _ = made("good")
    report, _ = make("a", ASKED, bundle, None, None, None, LocalContext(tmp_path))
    assert report.verdict is Verdict.NOT_ASSESSED
    assert report.dataset is None
    assert all("not at hand" in check.summary for check in report.checks)
    assert "remain groups and robustness" in report.notes[0]


def test_on_other_data_what_needs_the_training_is_left_out(made, tmp_path):
    bundle, _ = made("good")
    other = write_graph(tmp_path, accounts=600, edges="kind")
    report, _ = make("a", ASKED | {"checks": ["robustness"]}, bundle, None, other, "d", LocalContext(tmp_path / "run"))
    assert any("memory" in note for note in report.checks[0].notes)
    assert "not the one that the version was trained on" in report.notes[0]


def test_a_baseline_of_other_relations_and_views(made, tmp_path):
    """The packaged version knows neither relations nor some properties of this data."""
    bundle, data = made("good")
    packaged = Bundle.open(PACKAGED)
    report, _ = make("a", ASKED | {"checks": ["groups"]}, bundle, packaged, data, "d", LocalContext(tmp_path))
    assert report.checks[0].verdict is not Verdict.NOT_ASSESSED
    assert any("baseline's" in item.name for item in report.checks[0].evidence)


def test_a_domain_without_audits(tmp_path):
    with pytest.raises(NotSupported):
        open_subject("services", Bundle.open(toy_bundle(tmp_path / "b")), None, LocalContext(tmp_path))


# -- the page and the command


def test_the_page_runs_nothing_and_escapes_what_data_sets_say(made, tmp_path):
    bundle, data = made("good")
    report, html = make("a", ASKED | {"checks": ["groups"]}, bundle, None, data, "d", LocalContext(tmp_path))
    hostile = "<script>alert(1)</script> $\\frac{$ & \"'"
    [check] = report.checks
    figure = check.figures[0]
    bars = figure.series[0].model_copy(update={"x": tuple(hostile for _ in figure.series[0].x)})
    figure = figure.model_copy(update={"title": hostile, "series": (bars, *figure.series[1:])})
    check = check.model_copy(update={"summary": hostile, "notes": (hostile,), "figures": (figure,)})
    text = page(report.model_copy(update={"checks": (check,), "command": hostile}))
    for document in (text, html.decode()):
        assert "<script" not in document
        assert "default-src 'none'" in document
        assert "src=" not in document
        assert document.count("<svg") >= 1
    assert "&lt;script&gt;" in text


def test_the_command_computes_it_again(made, tmp_path, capsys):
    bundle, data = made("good")
    words = ["--bundle", str(bundle.folder), "--data", str(data), "--checks", "groups", "--seed", "3"]
    reports = []
    for name in ("first", "second"):
        assert main([*words, "--out", str(tmp_path / name)]) == 0
        reports.append(json.loads((tmp_path / name / "report.json").read_text()))
    assert (tmp_path / "first" / "report.html").read_text().startswith("<!doctype html>")
    assert shlex.split(reports[0]["command"])[3:11] == words
    evidence = [report["checks"][0]["evidence"] for report in reports]
    assert evidence[0] == evidence[1]
    assert reports[0]["dataset"]["digest"] == bundle.manifest.dataset_digest
    assert "passes" in capsys.readouterr().out
    assert main(["--model", "bots", "--version", "7", "--out", str(tmp_path / "third")]) == 2


def test_the_command_says_no_with_its_exit_status(made, tmp_path):
    bundle, data = made("blind")
    words = ["--bundle", str(bundle.folder), "--data", str(data), "--checks", "groups"]
    assert main([*words, "--out", str(tmp_path)]) == 1


# -- the job


@pytest.fixture
def place(tmp_path, engine, made):
    """A worker's place with the good and the blind model as versions 1 and 2, and the data set of both."""
    settings = Settings(home=tmp_path, lease_seconds=5)
    place = Workplace(
        settings=settings,
        store=SqlJobStore(engine),
        events=MemoryEvents(),
        files=JobFiles(settings.jobs_location),
        datasets=Datasets(engine, settings),
        models=ModelRepository(settings.models_location),
        abandon=lambda: None,
    )
    for kind in ("good", "blind"):
        place.models.publish(made(kind)[0].folder)
    return place


def stored(place, data):
    files = []
    for path in data.iterdir():
        files.append(FileOf(path=path.name, sha256=file_digest(path), size=path.stat().st_size))
        copy = place.settings.home / path.name
        copy.write_bytes(path.read_bytes())
        place.datasets.put_file(copy, files[-1].sha256)
    dataset, _ = place.datasets.add("bots", "mine", files, by="me")
    place.datasets.judge(dataset.digest, Validation(state="valid"))
    return dataset.digest


def submitted(place, digest, **asked):
    config = {**ASKED, "model": "bots", "dataset": "mine", **asked}
    job = Job(new_job_id(), "audit", "bots", "batch", config, time.time(), dataset=digest, time_limit=600)
    return place.store.submit(job)[0]


async def test_an_audit_is_kept_beside_the_version_once(place, made):
    digest = stored(place, made("good")[1])
    job = submitted(place, digest)
    run_job(place, job.id)
    ended = place.store.get(job.id)
    assert ended.state is JobState.SUCCEEDED, place.files.log(job.id)
    assert (ended.step, ended.total) == (200, 200)
    told = [event.data["seconds_left"] for event in await place.events.read(job.id)]
    assert told[0] is None  # nothing is done yet: nobody knows
    assert all(0 <= left < 600 for left in told[1:])
    [record] = AuditRecords(place.models).of_version("bots", 1)
    assert ended.result is not None
    assert (ended.result["verdict"], ended.result["digest"]) == ("passes", record.digest)
    report = json.loads(AuditRecords(place.models).report(record))
    assert report["dataset"] == {**report["dataset"], "name": "mine", "digest": digest}
    assert "--model bots --version 1" in report["command"]
    # A worker that was lost after it had stored the report: the next attempt makes no second one.
    place.store.change(job.id, lambda one: replace(one, state=JobState.QUEUED, result=None, finished_at=None))
    run_job(place, job.id)
    assert place.store.get(job.id).result == ended.result
    assert AuditRecords(place.models).of_version("bots", 1) == [record]


def test_two_audits_at_once_do_not_meet(place, made):
    digest = stored(place, made("good")[1])
    versions = (1, 2, 1)
    started = [submitted(place, digest, version=version, checks=["groups"]) for version in versions]
    threads = [threading.Thread(target=run_job, args=(place, job.id)) for job in started]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for job in started:
        assert place.store.get(job.id).state is JobState.SUCCEEDED, place.files.log(job.id)
    for version in (1, 2):
        records = AuditRecords(place.models).of_version("bots", version)
        assert {record.id for record in records} == {
            job.id for job, audited in zip(started, versions, strict=True) if audited == version
        }


def test_an_audit_that_is_cancelled_leaves_nothing(place, made):
    digest = stored(place, made("good")[1])
    # With a training, which takes longer than it takes to hear of a cancellation.
    job = submitted(place, digest, checks=["landscape"], budget="full")
    thread = threading.Thread(target=run_job, args=(place, job.id))
    thread.start()
    while place.store.get(job.id).state is JobState.QUEUED:
        time.sleep(0.01)
    jobs.cancel(place.store, job.id)
    thread.join()
    assert place.store.get(job.id).state is JobState.CANCELLED
    assert AuditRecords(place.models).of_version("bots", 1) == []
