"""Audits and the policy over HTTP: what is accepted, what is answered while there is no report, and the gate."""

import asyncio
import hashlib
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from gateway.app import create_app
from gateway.settings import GatewaySettings
from shared.audit_records import AuditRecords
from shared.audit_report import Check, Report
from shared.datasets import FileOf
from shared.datasets import Report as Validation
from shared.jobs.model import JobState
from shared.testing import running, toy_bundle


@pytest.fixture
async def app(tmp_path):
    app = create_app(GatewaySettings(home=tmp_path / "home"))
    models = app.state.models
    for factor in (1.0, 2.0, 3.0):
        models.publish(toy_bundle(tmp_path / f"bundle{factor}", factor=factor))
    models.set_alias("toy", "champion", 1)
    return app


@pytest.fixture
async def client(app, tmp_path):
    async with running(app) as client:
        client.headers["Authorization"] = f"Bearer {(tmp_path / 'home' / 'key').read_text().strip()}"
        yield client


def kept(app, version=2, audit_id="a1", **verdicts):
    """An audit's report, stored as a worker stores it."""
    checks = tuple(Check(name=name, verdict=verdict, summary="<b>what</b>") for name, verdict in verdicts.items())
    report = Report(
        id=audit_id,
        model="toy",
        version=version,
        verdict="passes",
        created_at=datetime.now(UTC),
        seconds=1,
        command="python -m services.audits",
        seed=0,
        budget="quick",
        checks=checks,
    )
    return AuditRecords(app.state.models).keep(report, b"<!doctype html>page")


def problem(answer):
    return answer.status_code, answer.json()["type"].rpartition(":")[2]


async def submitted(client, **asked):
    answer = await client.post("/v1/audits", json={"model": "toy", "version": 2, **asked})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def dataset(app, kind="toy", state="valid"):
    data = b"row"
    sha256 = hashlib.sha256(data).hexdigest()
    draft = app.state.settings.home / "draft"
    draft.write_bytes(data)
    app.state.datasets.put_file(draft, sha256)
    made, _ = app.state.datasets.add(kind, "mine", [FileOf(path="a", sha256=sha256, size=3)], by="me")
    app.state.datasets.judge(made.digest, Validation(state=state))
    return made.digest


async def test_an_audit_is_a_job_of_its_model(app, client):
    first = await submitted(client, checks=["groups", "groups"], baseline=1, seed=4)
    job = app.state.jobs.get(first)
    assert (job.kind, job.domain, job.queue, job.dataset) == ("audit", "toy", "batch", None)
    assert job.config == {
        "model": "toy",
        "version": 2,
        "checks": ["groups"],
        "baseline": 1,
        "dataset": None,
        "seed": 4,
        "budget": "quick",
    }


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"version": 9}, (404, "not-found")),
        ({"model": "cats"}, (404, "not-found")),
        ({"model": "../x"}, (404, "not-found")),
        ({"baseline": 9}, (404, "not-found")),
        ({"baseline": 2}, (422, "unprocessable")),
        ({"checks": ["colour"]}, (422, "unprocessable")),
        ({"checks": []}, (422, "unprocessable")),
        ({"budget": "endless"}, (422, "unprocessable")),
        ({"dataset": "nothing"}, (404, "not-found")),
        ({"colour": 1}, (422, "unprocessable")),
    ],
)
async def test_what_is_refused(client, asked, told):
    assert problem(await client.post("/v1/audits", json={"model": "toy", "version": 2, **asked})) == told


async def test_the_data_set_is_checked(app, client):
    digest = dataset(app)
    audit = await submitted(client, dataset="mine")
    job = app.state.jobs.get(audit)
    assert (job.dataset, job.config["dataset"]) == (digest, "mine")
    dataset(app, kind="other")
    answer = await client.post("/v1/audits", json={"model": "toy", "version": 2, "dataset": "mine"})
    assert problem(answer) == (422, "dataset-unusable")


async def test_a_key_makes_one_audit_and_two_keys_make_two(app, client):
    asked = {"model": "toy", "version": 2}
    answers = [await client.post("/v1/audits", json=asked, headers={"Idempotency-Key": key}) for key in "aab"]
    ids = [answer.json()["id"] for answer in answers]
    assert ids[0] == ids[1] != ids[2]
    other = await client.post("/v1/audits", json=asked | {"seed": 1}, headers={"Idempotency-Key": "a"})
    assert problem(other) == (409, "idempotency-conflict")


async def test_the_list_is_paged_and_filtered(app, client):
    ids = [await submitted(client, version=version) for version in (2, 3, 2, 2)]
    await client.post("/v1/models/toy/versions/2/comparisons")  # a job of another kind
    page = (await client.get("/v1/audits?limit=3")).json()
    assert [item["id"] for item in page["audits"]] == ids[:0:-1]
    rest = (await client.get(f"/v1/audits?limit=3&cursor={page['next']}")).json()
    assert ([item["id"] for item in rest["audits"]], rest["next"]) == (ids[:1], None)
    of_two = (await client.get("/v1/audits?model=toy&version=2")).json()["audits"]
    assert [item["id"] for item in of_two] == [ids[3], ids[2], ids[0]]
    assert (await client.get("/v1/audits?model=cats")).json()["audits"] == []


async def test_a_report_that_is_not_there_yet_or_never_will_be(app, client):
    audit = await submitted(client)
    for path in ("", "/report.html"):
        assert problem(await client.get(f"/v1/audits/{audit}{path}")) == (409, "audit-not-ready")
    await client.post(f"/v1/jobs/{audit}/cancel")
    answer = await client.get(f"/v1/audits/{audit}")
    assert problem(answer) == (404, "not-found")
    assert "cancelled" in answer.json()["detail"]
    assert problem(await client.get("/v1/audits/abc")) == (404, "not-found")


async def test_the_report_and_its_page(app, client):
    audit = await submitted(client)
    record = kept(app, audit_id=audit, groups="passes")
    done = {"verdict": "passes", "checks": {"groups": "passes"}, "digest": record.digest}
    app.state.jobs.change(audit, lambda job: replace(job, state=JobState.SUCCEEDED, result=done))
    answer = await client.get(f"/v1/audits/{audit}")
    assert hashlib.sha256(answer.content).hexdigest() == record.digest
    assert Report.model_validate_json(answer.content).checks[0].name == "groups"
    page = await client.get(f"/v1/audits/{audit}/report.html")
    assert page.content == b"<!doctype html>page"
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    [listed] = (await client.get("/v1/audits")).json()["audits"]
    assert (listed["verdict"], listed["digest"]) == ("passes", record.digest)


async def test_a_report_that_was_changed_is_not_shown_and_not_believed(app, client):
    audit = await submitted(client)
    kept(app, audit_id=audit, groups="do-not-promote")
    [path] = (app.state.settings.home / "models" / "toy" / "audits" / "2" / audit).glob("report-*.json")
    path.write_text(path.read_text().replace("do-not-promote", "passes"))
    assert problem(await client.get(f"/v1/audits/{audit}")) == (500, "audit-damaged")
    await client.put("/v1/models/toy/policy", json={"audit": {"required": True, "checks": ["groups"]}})
    answer = await client.put("/v1/models/toy/aliases/champion", json={"version": 2})
    assert problem(answer) == (500, "audit-damaged")


def test_the_first_report_of_an_audit_stays(app):
    first = kept(app, groups="passes")
    assert kept(app, groups="do-not-promote") == first
    assert AuditRecords(app.state.models).of_version("toy", 2) == [first]
    assert app.state.models.versions("toy") == [1, 2, 3]


# -- the gate


async def promote(client, version=2, **asked):
    return await client.put("/v1/models/toy/aliases/champion", json={"version": version, **asked})


async def demand(client, **audit):
    answer = await client.put("/v1/models/toy/policy", json={"audit": {"required": True, **audit}})
    assert answer.status_code == 200, answer.text


async def test_a_policy_is_typed_and_kept(client):
    assert (await client.get("/v1/models/toy/policy")).json()["audit"]["required"] is False
    await demand(client, checks=["groups", "backdoor"], accept=["passes"])
    found = (await client.get("/v1/models/toy/policy")).json()
    assert found["generation"] == 1
    assert found["audit"] == {"required": True, "checks": ["groups", "backdoor"], "accept": ["passes"]}
    for wrong in ({"required": "perhaps"}, {"checks": ["colour"]}, {"checks": []}, {"accept": ["fine"]}, {"x": 1}):
        answer = await client.put("/v1/models/toy/policy", json={"audit": wrong})
        assert problem(answer) == (422, "unprocessable"), wrong
    assert problem(await client.put("/v1/models/cats/policy", json={"audit": {}})) == (404, "not-found")
    assert problem(await client.get("/v1/models/cats/policy")) == (404, "not-found")


async def test_only_an_admin_sets_a_policy(client):
    made = (await client.post("/v1/keys", json={"name": "trainer", "scopes": ["train", "predict"]})).json()
    headers = {"Authorization": f"Bearer {made['secret']}"}
    answer = await client.put("/v1/models/toy/policy", json={"audit": {}}, headers=headers)
    assert problem(answer) == (403, "forbidden")
    assert (await client.get("/v1/models/toy/policy", headers=headers)).status_code == 200


async def test_without_a_policy_nothing_changes(app, client):
    kept(app, groups="do-not-promote")
    assert problem(await promote(client)) == (409, "not-comparable")  # the gate that was there before


async def test_promotion_needs_the_audit_that_the_policy_asks_for(app, client):
    await demand(client, checks=["groups", "backdoor"])
    missing = await promote(client)
    assert problem(missing) == (409, "audit-required")
    assert missing.json()["missing"] == ["groups", "backdoor"]
    kept(app, audit_id="a1", groups="passes", landscape="do-not-promote")  # not asked for
    assert (await promote(client)).json()["missing"] == ["backdoor"]
    kept(app, audit_id="a2", backdoor="do-not-promote")
    failed = await promote(client)
    assert problem(failed) == (409, "audit-failed")
    assert (failed.json()["audit"], failed.json()["check"]) == ("a2", "backdoor")
    record = kept(app, audit_id="a3", backdoor="look-at-this")  # the newest counts
    assert problem(await promote(client)) == (409, "not-comparable")  # past this gate, at the other
    forced = await promote(client, force=True, reason="trial")
    assert forced.json()["audits"] == []
    await promote(client, version=1)
    again = (await promote(client)).json()  # it was champion before
    assert record.digest in again["audits"]
    assert len(again["audits"]) == 2


async def test_not_assessed_is_no_pass_unless_accepted(app, client):
    await demand(client, checks=["landscape"])
    kept(app, landscape="not-assessed")
    answer = await promote(client)
    assert problem(answer) == (409, "audit-required")
    assert "Take the check out of the policy" in answer.json()["detail"]
    await demand(client, checks=["landscape"], accept=["passes", "not-assessed"])
    assert problem(await promote(client)) == (409, "not-comparable")


async def test_a_rollback_is_never_late(app, client):
    await promote(client, force=True, reason="before the policy")
    await demand(client)
    assert (await promote(client, version=1)).status_code == 200  # never audited
    kept(app, audit_id="a9", version=2, groups="do-not-promote")
    assert problem(await promote(client)) == (409, "audit-failed")


async def test_two_policies_at_once_do_not_overwrite_each_other(client):
    asked = [{"audit": {"required": True, "checks": [name]}} for name in ("groups", "backdoor", "landscape")]
    answers = await asyncio.gather(*(client.put("/v1/models/toy/policy", json=one) for one in asked))
    good = [answer for answer in answers if answer.status_code == 200]
    assert all(problem(answer) == (409, "policy-conflict") for answer in answers if answer not in good)
    assert sorted(answer.json()["generation"] for answer in good) == list(range(1, len(good) + 1))
