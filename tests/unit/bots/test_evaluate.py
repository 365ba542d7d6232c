"""The metrics against scikit-learn and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from services.bots.evaluate import (
    accuracy,
    calibration_error,
    coverage_curve,
    fit_temperature,
    interval,
    macro_f1,
    roc_auc,
    softmax,
    with_prior,
)


@pytest.mark.parametrize("classes", [2, 3])
def test_against_scikit_learn(classes):
    random = np.random.default_rng(0)
    probability = softmax(random.normal(size=(300, classes)).round(1))
    label = random.integers(0, classes, 300)
    chosen = probability.argmax(1)
    assert accuracy(probability, label) == pytest.approx(accuracy_score(label, chosen))
    assert macro_f1(probability, label) == pytest.approx(f1_score(label, chosen, average="macro"))
    if classes == 2:
        assert roc_auc(probability[:, 1], label) == pytest.approx(roc_auc_score(label, probability[:, 1]))


def test_calibration_error_by_hand():
    probability = np.array([[0.1, 0.9], [0.1, 0.9], [0.4, 0.6], [0.4, 0.6]])
    assert calibration_error(probability, np.array([1, 1, 1, 0])) == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)
    assert np.isnan(roc_auc(np.ones(3), np.ones(3, int)))


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_the_temperature_is_found(true):
    random = np.random.default_rng(1)
    logits = random.normal(size=(20_000, 2)) * 2
    label = (random.random(20_000) < softmax(logits)[:, 1]).astype(int)
    assert fit_temperature(logits * true, label) == pytest.approx(true, rel=0.1)
    assert fit_temperature(logits[:0], label[:0]) == 1


@given(st.floats(0.01, 0.99), st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_a_prior_can_be_taken_back(probability, trained, wanted):
    there = with_prior(np.array([probability]), trained, wanted)
    assert with_prior(there, wanted, trained)[0] == pytest.approx(probability, rel=1e-6)
    assert with_prior(np.array([trained]), trained, wanted)[0] == pytest.approx(wanted)


def test_abstention_trades_coverage():
    random = np.random.default_rng(2)
    logits = random.normal(size=(5000, 2)) * 2
    label = (random.random(5000) < softmax(logits)[:, 1]).astype(int)
    rows = coverage_curve(softmax(logits), label)
    assert rows[0]["coverage"] == 1
    assert [row["coverage"] for row in rows] == sorted((row["coverage"] for row in rows), reverse=True)
    assert rows[-1]["accuracy"] > rows[0]["accuracy"]
    low, high = interval(accuracy, softmax(logits), label)
    assert low < rows[0]["accuracy"] < high
