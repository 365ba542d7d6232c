"""Groups and robustness on answers that are known, and what becomes of a check that fails."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from services.audits import audit as audits
from services.audits import found
from services.audits.audit import CHECKS, audit
from services.audits.intervals import kept, mean, paired
from services.audits.report import Verdict
from shared.audit_report import CHECK_NAMES, Check, Evidence
from shared.auditing import Assessment, NotAssessed
from shared.jobs.context import JobStopped, LocalContext, StopReason
from shared.problems import Unprocessable
from tests.unit.audits.telling import Telling


def checked(name, subject, tmp_path, baseline=None):
    [check] = audit(subject, baseline, LocalContext(tmp_path), checks=[name])
    return check


def value(check, name):
    return next(item for item in check.evidence if item.name == name)


def test_the_table_of_checks_is_the_one_that_the_api_knows():
    assert set(CHECKS) == set(CHECK_NAMES)


def test_intervals_are_those_of_scipy():
    wrong = np.array([1.0] * 7 + [0.0] * 33)
    theirs = binomtest(7, 40).proportion_ci(method="wilson")
    assert (mean(wrong).low, mean(wrong).high) == pytest.approx((theirs.low, theirs.high))
    random = np.random.default_rng(0)
    errors = random.exponential(size=25)
    theirs = ttest_1samp(errors, 0).confidence_interval()
    assert (mean(errors).low, mean(errors).high) == pytest.approx((theirs.low, theirs.high))
    assert mean(errors, unit_N=np.arange(25)).high == pytest.approx(theirs.high)
    other = errors + random.normal(size=25)
    theirs = ttest_1samp(errors - other, 0).confidence_interval()
    assert paired(errors, other).low == pytest.approx(theirs.low)


def test_examples_of_few_units_have_wide_intervals():
    random = np.random.default_rng(0)
    by_unit = np.repeat(random.normal(size=8), 50)
    unit = np.repeat(np.arange(8), 50)
    alone, together = mean(by_unit), mean(by_unit, unit_N=unit)
    assert together.high - together.low > 5 * (alone.high - alone.low)
    assert math.isinf(mean(by_unit[:50], unit_N=unit[:50]).high)


def test_kept_skill():
    assert kept(mean(np.full(10, 0.3)), 0.1, 0.5).value == pytest.approx(0.5)
    assert math.isnan(kept(mean(np.full(10, 0.3)), 0.6, 0.5).value)


# -- groups


def named(count, sizes):
    """Groups of the sizes given, in order."""
    return {"place": np.repeat(list(sizes), list(sizes.values()))[:count]}


def test_a_version_that_is_right_everywhere_passes(tmp_path):
    check = checked("groups", Telling(groups=named(400, {"north": 200, "south": 200})), tmp_path)
    assert check.verdict is Verdict.PASSES
    assert "of 4" in check.summary  # two places and two classes


def test_a_group_without_skill_stops_and_is_named(tmp_path):
    subject = Telling(groups=named(400, {"north": 300, "south": 100}))
    south = set(subject.held_out.inputs[300:360])
    subject._wrong = lambda x: x in south
    check = checked("groups", subject, tmp_path)
    assert check.verdict is Verdict.STOP
    assert "place: south" in check.summary
    item = value(check, "error, place: south")
    assert (item.value, item.n) == (0.6, 100)
    assert item.low < 0.6 < item.high
    assert item.threshold == pytest.approx(0.5 - 0.5 * (0.5 - 0.15))
    assert item.threshold_source


def test_a_small_group_is_shown_and_not_judged(tmp_path):
    subject = Telling(groups=named(400, {"north": 388, "south": 12}))
    south = set(subject.held_out.inputs[388:])
    subject._wrong = lambda x: x in south
    check = checked("groups", subject, tmp_path)
    assert not any("south" in item.name for item in check.evidence)
    assert any("south" in note and "too few" in note for note in check.notes)
    assert any("south" in name for figure in check.figures for name in map(str, figure.series[0].x))


def test_a_domain_without_groups_has_found_ones(tmp_path):
    subject = Telling(1200, wrong=lambda x: 0.2 < x < 0.35)
    subject.kind, subject.classes = "regression", ()
    subject.likely = 0.5
    check = checked("groups", subject, tmp_path)
    assert any("names no groups" in note for note in check.notes)
    assert check.verdict in (Verdict.LOOK, Verdict.STOP)
    assert "value" in check.summary


def test_found_groups_are_measured_where_they_were_not_found():
    random = np.random.default_rng(0)
    noise, half = (random.random(2000) < 0.1).astype(float), random.random(2000) < 0.5
    features = {"a": random.random(2000), "b": random.choice(["x", "y"], 2000)}
    rules = found.find(noise, None, features, half, 0)
    assert rules
    for rule in rules:  # pure chance: nothing is left of it on the other half
        assert noise[rule.member_N & ~half].mean() < 0.2


def test_a_group_that_got_worse_than_the_baselines(tmp_path):
    groups = named(400, {"north": 200, "south": 200})
    new = Telling(groups=groups)
    south = set(new.held_out.inputs[200:226])
    new._wrong = lambda x: x in south
    check = checked("groups", new, tmp_path, baseline=Telling(groups=groups))
    assert check.verdict is Verdict.LOOK
    assert "above the baseline's" in check.summary
    assert value(check, "error less the baseline's, place: south").value == pytest.approx(0.13)


def test_a_version_without_skill_is_told_so(tmp_path):
    subject = Telling(wrong=lambda x: int(1000 * x) % 2 == 0)
    assert checked("groups", subject, tmp_path).verdict is Verdict.STOP
    check = checked("robustness", subject, tmp_path)
    assert check.verdict is Verdict.STOP
    assert "no better than a guess" in check.summary


# -- robustness


def test_memory_is_told_from_skill(tmp_path):
    forgetful = Telling(wrong=lambda x: int(1000 * x) % 5 < 2, seen=lambda x: False, confidence=0.6)
    check = checked("robustness", forgetful, tmp_path)
    assert check.verdict is Verdict.STOP
    assert "memory" in check.summary
    assert "more data" in check.advice
    sound = checked("robustness", Telling(wrong=lambda x: int(1000 * x) % 20 == 0), tmp_path)
    assert sound.verdict is Verdict.PASSES


def test_probabilities_that_promise_too_much(tmp_path):
    proud = Telling(wrong=lambda x: int(1000 * x) % 4 == 0, confidence=0.99)
    check = checked("robustness", proud, tmp_path)
    assert check.verdict is Verdict.STOP
    assert "probabilities are off" in check.summary
    assert value(check, "calibration error, beyond chance").value == pytest.approx(0.24, abs=0.05)


def test_what_the_training_split_is_needed_for_is_left_out_without_it(tmp_path):
    class Elsewhere(Telling):
        @property
        def train(self):
            raise NotAssessed("The data set at hand is not the one that the version was trained on.")

    check = checked("robustness", Elsewhere(), tmp_path)
    assert check.verdict is Verdict.PASSES
    assert any(note.startswith("Not assessed, memory") for note in check.notes)


# -- checks that fail


def test_a_check_that_fails_is_not_assessed_and_the_others_go_on(tmp_path):
    class Broken(Telling):
        def uncertainty(self, examples):
            raise ZeroDivisionError("a secret path")

    groups, robustness = audit(Broken(), None, LocalContext(tmp_path), checks=["groups", "robustness"])
    assert groups.verdict is Verdict.PASSES
    assert robustness.verdict is Verdict.NOT_ASSESSED
    assert "ZeroDivisionError" in robustness.summary
    assert "secret" not in robustness.summary


def test_numbers_that_are_none_do_not_pass(tmp_path):
    class Diverged(Telling):
        def assess(self, examples):
            told = super().assess(examples)
            return Assessment(np.full(len(examples), np.nan), told.probability_NC, told.embedding_ND)

    for check in audit(Diverged(), None, LocalContext(tmp_path), checks=["groups", "robustness"]):
        assert check.verdict in (Verdict.NOT_ASSESSED, Verdict.LOOK), check
    passing = Check(name="x", verdict="passes", summary="", evidence=(Evidence(name="y", value=math.inf),))
    assert audits._believable(passing).verdict is Verdict.LOOK


def test_a_stop_goes_through_and_progress_ends_at_the_whole(tmp_path):
    context = LocalContext(tmp_path)
    audit(Telling(), None, context, checks=["groups", "robustness"])
    steps = [point["step"] for point in context.points]
    assert steps == sorted(steps)
    assert steps[-1] == 200
    context.should_stop = lambda: StopReason.USER
    with pytest.raises(JobStopped):
        audit(Telling(), None, context)


def test_an_unknown_check(tmp_path):
    with pytest.raises(Unprocessable, match="colour"):
        audit(Telling(), None, LocalContext(tmp_path), checks=["colour"])


def test_the_same_seed_gives_the_same_report(tmp_path):
    made = [
        [check.model_copy(update={"seconds": 0}) for check in audit(subject, None, LocalContext(tmp_path), seed=3)]
        for subject in (Telling(), Telling())
    ]
    assert made[0] == made[1]
