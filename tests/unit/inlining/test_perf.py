"""IR2Perf on made measurements, and the benchmark's tables."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from services.inlining import benchmark
from services.inlining.corpus import Package, look, split_of, without_copies
from services.inlining.datasets import Unit
from services.inlining.features import STOCK, WIDTH
from services.inlining.perf import INPUTS, IR2Perf, Sample, held_out, report, spearman, summary, variants
from services.inlining.source import to_bitcode
from tests.unit.inlining.making import QUEUE


def made(programs=4, each=12, seed=0):
    random = np.random.default_rng(seed)
    truth_X = np.zeros(len(INPUTS))
    truth_X[:2] = -0.4, 0.5
    found = []
    for program in range(programs):
        for variant in range(each):
            inputs_X = random.random(len(INPUTS))
            ratio = np.exp(inputs_X @ truth_X + random.normal(0, 0.02))
            found.append(Sample(f"p{program}", f"v{variant}", inputs_X, float(ratio), True))
    return found


def test_spearman_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(1)
    for _ in range(5):
        one, other = random.integers(0, 6, 30).astype(float), random.random(30)
        assert spearman(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)
    assert spearman(np.ones(4), np.arange(4.0)) == 0


def test_a_program_is_predicted_by_the_others():
    each, predicted, together = held_out(made())
    assert set(each) == {"p0", "p1", "p2", "p3"}
    assert min(each.values()) > 0.5
    assert together > 0.6
    assert len(predicted) == 48
    text = report(made())
    assert "Spearman of all variants together" in text
    assert "48 of 48" in text


def test_noise_is_not_predicted():
    random = np.random.default_rng(3)
    noise = [Sample(s.program, s.variant, s.inputs_X, float(np.exp(random.normal())), True) for s in made(6, 20)]
    assert abs(held_out(noise)[2]) < 0.35


def test_no_changed_decision_changes_nothing():
    random = np.random.default_rng(0)
    features_SF = random.integers(0, 50, (10, WIDTH + 1))
    stock_S = random.integers(0, 2, 10)
    features_SF[:, STOCK] = stock_S
    same: Any = SimpleNamespace(features_SF=features_SF, decisions_S=stock_S, stock_S=stock_S)
    other: Any = SimpleNamespace(features_SF=features_SF, decisions_S=1 - stock_S, stock_S=stock_S)
    assert not summary([same]).any()
    assert summary([other])[:2].sum() == pytest.approx(1)
    model = IR2Perf.fit(random.random((20, len(INPUTS))), random.random(20), 1.0)
    assert model.predict(summary([same])[None])[0] == 0


def test_variants_repeat():
    row = np.zeros(WIDTH + 1, np.int64)
    first, second = ([decide(row) for decide in variants(9).values() for _ in range(20)] for _ in range(2))
    assert first == second
    assert len(variants(9)) == 9
    assert set(first) == {0, 1}


def test_the_benchmark_keeps_what_it_measured(tmp_path):
    units = [Unit("a/x.bc", "a", "test", tmp_path), Unit("a/y.bc", "a", "test", tmp_path)]
    asked = []

    def size(unit):
        asked.append(unit.name)
        return 100 if unit.name == "a/x.bc" else None

    record = benchmark.Record(tmp_path / "sizes.json")
    record.rows["stock -Oz"] = {"a/x.bc": 110, "a/y.bc": 50}
    assert record.sizes("mine", units, size) == {"a": {"a/x.bc": 100, "a/y.bc": 50}}  # stock's where it fails
    again = benchmark.Record(tmp_path / "sizes.json")
    assert again.sizes("mine", units, size) == {"a": {"a/x.bc": 100, "a/y.bc": 50}}
    assert asked == ["a/x.bc", "a/y.bc"]
    line = benchmark.row("mine", {"a": {"x": 110, "y": 50}}, {"a": {"x": 100, "y": 52}})
    assert "| 5.00 (" in line
    assert line.endswith("| 6.25 |")
    assert json.loads((tmp_path / "sizes.json").read_text())["mine"]["a/x.bc"] == 100


def test_copies_go_and_test_programs_keep_theirs():
    def program(name, split, functions):
        module = {"file": "m.bc", "calls": 30, "bytes": 1000, "functions": functions}
        return {"program": name, "split": split, "modules": [module]}

    kept = without_copies(
        [
            program("mine", "train", ["inflate", "crc32", "deflate"]),
            program("theirs", "test", ["inflate", "crc32", "deflate"]),
            program("own", "train", ["a", "b", "crc32"]),
        ]
    )
    assert [record["program"] for record in kept] == ["own", "theirs"]


def test_splits_come_from_names():
    assert split_of("lua5.4") == split_of("lua5.4")
    parts = [split_of(f"program{number}") for number in range(400)]
    assert 0.5 < parts.count("train") / 400 < 0.7
    assert Package("npm", "@scope/Name", "", "").name == "name"


def test_calls_of_own_functions_are_counted():
    calls, names = look(to_bitcode(QUEUE))
    assert {"push", "pop", "wrap", "clamp"} <= set(names)
    assert 6 <= calls <= 9
