"""The correlation metrics against their definitions, and what intervals and shares promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.iqa.datasets import BadDataset
from services.iqa.evaluate import bootstrap, krcc, monotone_share, plcc, read_pixels, srcc, summary, widened


def ranks(values: np.ndarray) -> np.ndarray:
    return np.array([(values < value).sum() + ((values == value).sum() + 1) / 2 for value in values])


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(5)
    labels = random.uniform(0, 100, 60)
    return np.round(labels + random.normal(0, 25, 60)), labels


def test_srcc_is_pearson_of_ranks(pair: tuple[np.ndarray, np.ndarray]):
    predicted, labels = pair
    assert srcc(predicted, labels) == pytest.approx(np.corrcoef(ranks(predicted), ranks(labels))[0, 1])


def test_krcc_counts_pairs():
    predicted, labels = np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4])
    assert krcc(predicted, labels) == pytest.approx((5 - 1) / 6)


def test_plcc_is_after_the_logistic():
    quality = np.linspace(0, 10, 80)
    labels = 20 + 60 / (1 + np.exp(-(quality - 4) / 0.7))
    assert np.corrcoef(quality, labels)[0, 1] < 0.95
    assert plcc(quality, labels) == pytest.approx(1, abs=1e-6)
    assert plcc(-quality, labels) == pytest.approx(1, abs=1e-3), "the fit turns a falling scale round"


def test_plcc_without_enough_points_is_plain():
    predicted, labels = np.array([1.0, 2, 4]), np.array([1.0, 3, 4])
    assert plcc(predicted, labels) == pytest.approx(np.corrcoef(predicted, labels)[0, 1])


@given(st.lists(st.integers(-1000, 1000), min_size=5, max_size=40, unique=True), st.randoms(use_true_random=False))
def test_rank_correlations_ignore_monotone_maps_and_order(values: list[int], random):
    predicted = np.array(values, float)
    labels = np.array(random.sample(range(10_000), len(values)), float)
    order = np.array(random.sample(range(len(values)), len(values)))
    for metric in (srcc, krcc):
        expected = metric(predicted, labels)
        assert metric(predicted**3 + 5 * predicted, labels) == pytest.approx(expected)
        assert metric(predicted[order], labels[order]) == pytest.approx(expected)
        assert metric(-predicted, labels) == pytest.approx(-expected)


def test_the_interval_holds_the_value_and_is_repeatable(pair: tuple[np.ndarray, np.ndarray]):
    predicted, labels = pair
    low, high = bootstrap(srcc, predicted, labels)
    assert low < srcc(predicted, labels) < high
    assert (low, high) == bootstrap(srcc, predicted, labels)


def test_drawing_whole_groups_widens_the_interval():
    random = np.random.default_rng(0)
    group = np.repeat(np.arange(6), 40)
    labels = random.uniform(0, 100, 240)
    predicted = labels + random.normal(0, 40, 6)[group] + random.normal(0, 5, 240)
    alone, together = bootstrap(srcc, predicted, labels), bootstrap(srcc, predicted, labels, group.tolist())
    assert together[1] - together[0] > 1.5 * (alone[1] - alone[0])


def test_the_monotone_share_counts_neighbouring_strengths():
    series = ["a"] * 3 + ["b"] * 3
    strength = [1, 2, 3, 3, 1, 2]
    assert monotone_share(np.array([9.0, 5, 1, 1, 9, 5]), series, strength) == 1
    assert monotone_share(np.array([9.0, 5, 6, 1, 9, 9]), series, strength) == pytest.approx(2 / 4)
    assert np.isnan(monotone_share(np.array([1.0]), ["a"], [1]))


def test_the_summary_has_value_and_interval(pair: tuple[np.ndarray, np.ndarray]):
    result = summary(*pair)
    assert set(result) == {"srcc", "plcc", "krcc"}
    assert result["srcc"]["value"] == srcc(*pair)
    assert all(item["low"] <= item["value"] <= item["high"] and item["n"] == 60 for item in result.values())


def test_a_constant_score_correlates_with_nothing():
    flat, labels = np.full(10, 5.0), np.arange(10.0)
    assert all(np.isnan(metric(flat, labels)) for metric in (srcc, krcc, plcc))


def test_an_unreadable_image_is_named(tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(BadDataset, match=r"broken\.png"):
        read_pixels(tmp_path / "broken.png")


def test_an_interval_over_few_photographs_covers_what_it_says():
    """95 % of intervals should hold the true mean; the plain bootstrap over four groups holds it far more seldom."""
    random = np.random.default_rng(0)
    plain, wide = 0, 0
    for seed in range(200):
        groups = np.repeat(np.arange(4), 5)
        values = random.normal(0, 1, 4)[groups] + random.normal(0, 0.2, 20)
        low, high = bootstrap(lambda chosen, _: float(chosen.mean()), values, values, list(groups), seed=seed)
        plain += low <= 0 <= high
        low, high = widened(float(values.mean()), low, high, 4)
        wide += low <= 0 <= high
    assert plain < 0.86 * 200
    assert wide > 0.92 * 200
    assert widened(0.0, -1.0, 1.0, 1) == (-1.0, 1.0)
    assert widened(0.0, -1.0, 1.0, 10_000) == pytest.approx((-1, 1), abs=1e-3)
