"""IR2Perf on made measurements, and the benchmark's tables."""

import json

import numpy as np
import pytest

from services.inlining import benchmark
from services.inlining.corpus import Package, look, split_of, without_copies
from services.inlining.datasets import Unit
from services.inlining.features import WIDTH
from services.inlining.perf import Sample, fit, held_out, report, spearman, variants
from services.inlining.source import to_bitcode
from services.inlining.speed import INPUTS, IR2Perf, ir2perf
from tests.unit.inlining.making import QUEUE


def made(programs=4, each=12, seed=0):
    random = np.random.default_rng(seed)
    truth_X = np.zeros(len(INPUTS))
    truth_X[0] = 0.5
    found = []
    for program in range(programs):
        for variant in range(each):
            inputs_X = random.normal(0, 0.2, len(INPUTS))
            ratio = np.exp(inputs_X @ truth_X + random.normal(0, 0.02))
            name = f"inline-threshold={variant}" if variant < 3 else f"v{variant}"
            found.append(Sample(f"p{program}", name, inputs_X, float(ratio), True))
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
    assert "Spearman of all builds together" in text
    assert "48 of 48" in text


def test_noise_is_not_predicted():
    random = np.random.default_rng(3)
    noise = [Sample(s.program, s.variant, s.inputs_X, float(np.exp(random.normal())), True) for s in made(6, 20)]
    assert abs(held_out(noise)[2]) < 0.35


def test_the_model_of_all_programs_is_kept(tmp_path):
    model = fit(made())
    model.save(tmp_path / "model.json")
    kept = json.loads((tmp_path / "model.json").read_text())
    assert kept["about"] == {**model.about, "programs": 4, "builds": 48}
    assert IR2Perf(np.array(kept["scale"]), np.array(kept["weights"])).predict(np.zeros((1, len(INPUTS))))[0] == 0
    assert model.weights_X[0] > 0
    assert model.about["chosen_on_unseen_programs_percent"][0] < 0


def test_the_model_that_is_shipped_knows_its_inputs():
    assert ir2perf().weights_X.shape == (len(INPUTS),)
    assert ir2perf().weights_X[INPUTS.index("calls")] > 0  # executed calls cost instructions


def test_variants_repeat():
    row = np.zeros(WIDTH + 1, np.int64)
    deciders = [[one["decide"] for one in variants().values() if "decide" in one] for _ in range(2)]
    first, second = ([decide(row) for decide in all_ for _ in range(20)] for all_ in deciders)
    assert first == second
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
