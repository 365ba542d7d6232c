"""A training from a corpus of C source to a bundle, each method; stopped and resumed; what a corpus may not be."""

import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from services.inlining import evaluate
from services.inlining.aims import SPEED
from services.inlining.datasets import BadCorpus, load, modules, split_programs, validate
from services.inlining.policy import load_policy
from services.inlining.predict import load as load_predictor
from services.inlining.rollouts import MILLION, Roller, stock_decision
from services.inlining.schemas import TrainConfig
from services.inlining.source import to_bitcode
from services.inlining.train import compare, train
from shared.bundles import Bundle
from shared.jobs.context import JobStopped, LocalContext, StopReason
from shared.settings import ServiceSettings
from tests.unit.inlining.making import PROGRAMS, SCALED, policy_bundle

SMALL: dict[str, Any] = {
    "clone_epochs": 5,
    "label_runs": 12,
    "label_epochs": 3,
    "anchors": (0.5,),
    "generations": 2,
    "pairs": 1,
    "iterations": 2,
    "modules_per_step": 1,
}


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, text in PROGRAMS.items():
        (folder / f"{name}.c").write_text(text)
    return folder


@pytest.mark.parametrize("method", ["clone", "imitate", "evolution", "ppo"])
def test_every_method_makes_a_bundle_that_serves(corpus, tmp_path, method):
    config = TrainConfig(method=method, start="clone", **SMALL)
    bundle = Bundle.open(train(config, corpus, LocalContext(tmp_path / "run")))
    assert bundle.manifest.config["method"] == method
    assert bundle.manifest.metrics["text_saved_percent"].n == 1
    policy = load_policy(bundle.folder)
    predictor = load_predictor(bundle, ServiceSettings())
    predictor.warm_up()
    rows = np.random.default_rng(0).integers(-50, 200, (20, 38))
    (served,) = predictor.predict([rows])
    assert not isinstance(served, Exception)
    np.testing.assert_allclose(served, policy.probabilities(rows), atol=1e-5)


@pytest.mark.parametrize("method", ["evolution", "ppo"])
def test_a_policy_is_retargeted_to_speed(corpus, tmp_path, method):
    """IR2Perf pays it; what it is better by is a prediction and named so."""
    (corpus / "scaled.c").write_text(SCALED)
    config = TrainConfig(goal="speed", method=method, start="clone", **SMALL)
    bundle = Bundle.open(train(config, corpus, LocalContext(tmp_path / "run")))
    metrics = bundle.manifest.metrics
    assert "predicts" in metrics["instructions_saved_percent"].description
    assert "text_saved_percent" not in metrics
    assert load_predictor(bundle, ServiceSettings()).goal == "speed"


def test_a_roll_for_speed_costs_what_is_predicted():
    code = to_bitcode(SCALED, level="3")
    roll = Roller(SPEED)
    rolled = [roll(code, decide) for decide in (stock_decision, lambda _: 1, lambda _: 0)]
    stock, all_, none = (one.cost for one in rolled if one is not None)
    assert stock == MILLION
    assert all_ < MILLION <= none


def test_speed_is_not_learnt_from_bytes(corpus, tmp_path):
    for method in ("imitate", "ppo"):
        with pytest.raises(ValueError, match="imitate learns bytes"):
            TrainConfig(goal="speed", method=method)
    (corpus / "small.bc").write_bytes(to_bitcode(SCALED))
    with pytest.raises(BadCorpus, match=r"small\.bc was compiled for size"):
        train(TrainConfig(goal="speed", method="clone", **SMALL), corpus, LocalContext(tmp_path / "run"))


class Stopping(LocalContext):
    """Asks to stop at the `after`-th question."""

    def __init__(self, folder, after):
        super().__init__(folder)
        self.left = after

    def should_stop(self):
        self.left -= 1
        return StopReason.SHUTDOWN if self.left < 0 else None


@pytest.mark.parametrize("method", ["evolution", "ppo"])
def test_a_stopped_training_goes_on_to_the_same_weights(corpus, tmp_path, method):
    config = TrainConfig(method=method, start="clone", **SMALL)
    whole = train(config, corpus, LocalContext(tmp_path / "whole"))
    with pytest.raises(JobStopped):
        train(config, corpus, Stopping(tmp_path / "parts", after=6))
    resumed = train(config, corpus, LocalContext(tmp_path / "parts"))
    first, second = (load_file(folder / "weights.safetensors") for folder in (whole, resumed))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])


def test_compared_with_a_champion_on_the_same_programs(corpus, tmp_path):
    config = TrainConfig(method="clone", **SMALL)
    candidate = train(config, corpus, LocalContext(tmp_path / "run"))
    champion = policy_bundle(tmp_path / "champion", inverted=True)
    found = compare(candidate, champion, corpus, LocalContext(tmp_path / "other"))
    assert found.metric == "text_saved_percent"
    assert found.difference.n == 1
    assert found.difference.low is not None


def test_a_broken_module_is_named_and_can_be_excluded(corpus, tmp_path):
    (corpus / "broken.bc").write_bytes(b"BC\xc0\xde" + b"\x00" * 60)
    report = validate(corpus)
    assert report.state == "flawed"
    assert [finding.file for finding in report.findings] == ["broken.bc"]
    assert report.findings[0].problem
    config = TrainConfig(method="clone", bad_files="exclude", **SMALL)
    splits = {"queue": "train", "parser": "validation", "checksums": "test", "broken": "train"}
    rows = [f"{name}.{'bc' if name == 'broken' else 'c'},{name},{split}" for name, split in splits.items()]
    (corpus / "splits.csv").write_text("\n".join(["file,program,split", *rows]))
    assert Bundle.open(train(config, corpus, LocalContext(tmp_path / "run"))).manifest.metrics


@pytest.mark.parametrize(
    ("table", "line", "says"),
    [
        ("file,program\nqueue.c,queue", 1, "'split'"),
        ("file,program,split\nqueue.c,queue,exam", 2, "'exam'"),
        ("file,program,split\n../queue.c,queue,train", 2, "no module"),
        ("file,program,split\nqueue.c,one,train\nparser.c,one,test", 3, "two splits"),
    ],
)
def test_a_wrong_table_is_told_by_line(corpus, table, line, says):
    (corpus / "splits.csv").write_text(table)
    finding = validate(corpus).findings[0 if "no module" not in says else -1]
    assert says in " ".join(item.problem for item in validate(corpus).findings)
    assert line in {finding.line, *(item.line for item in validate(corpus).findings)}
    with pytest.raises(BadCorpus) as caught:
        load(corpus)
    assert caught.value.extra["line"] == line


def test_too_few_programs_train_nothing_but_one_can_be_tuned(tmp_path):
    (tmp_path / "only.c").write_text(PROGRAMS["queue"])
    report = validate(tmp_path)
    assert (report.state, report.counts["programs"]) == ("valid", 1)
    assert [path.name for path in modules(tmp_path)] == ["only.c"]
    with pytest.raises(BadCorpus, match="split"):
        load(tmp_path)


def test_source_that_includes_what_is_not_its_own_is_a_finding(tmp_path):
    (tmp_path / "a.c").write_text('#include "/etc/passwd"\nint f(void) { return 0; }\n')
    report = validate(tmp_path)
    assert report.state == "invalid"
    assert "/etc/passwd" in " ".join(finding.problem for finding in report.findings)


def test_headers_of_the_programs_folder_are_found(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "twice.h").write_text("static int twice(int x) { return 2 * x; }\n")
    (tmp_path / "one" / "a.c").write_text('#include "twice.h"\nint f(int x) { return twice(x) + twice(x + 1); }\n')
    assert validate(tmp_path).state == "valid"


def test_programs_are_split_whole_and_no_split_is_empty():
    for count in (3, 10, 100):
        splits = split_programs({f"program{number}" for number in range(count)})
        assert set(splits.values()) == {"train", "validation", "test"}
        assert len(splits) == count


def test_savings_are_weighted_by_size_and_the_worst_is_named():
    stock = {"big": {"a": 900, "b": 100}, "small": {"c": 100}}
    mine = {"big": {"a": 880, "b": 100}, "small": {"c": 110}}
    found = evaluate.metrics(stock, mine)
    assert found["text_saved_percent"].value == pytest.approx(100 * 10 / 1100)
    assert found["worst_saved_percent"].value == pytest.approx(-10)
    assert found["worst_saved_percent"].description == "of small"
    best = evaluate.smallest([stock, mine])
    assert best == {"big": {"a": 880, "b": 100}, "small": {"c": 100}}
    difference = evaluate.paired(stock, mine, stock)
    assert difference.value == pytest.approx(100 * 10 / 1100)
    assert json.loads(difference.model_dump_json())["n"] == 2
