"""The gate: what may become champion."""

import pytest

from gateway.control.promotion import NotComparable, WorseThanChampion, check_promotion
from shared.bundles import Comparison, Metric
from shared.problems import NotFound
from shared.repository import ModelRepository
from shared.testing import toy_bundle


@pytest.fixture
def models(tmp_path):
    models = ModelRepository(str(tmp_path / "models"))
    first = toy_bundle(tmp_path / "first", dataset_digest="a", metrics={"srcc": Metric(value=0.8, low=0.7, high=0.9)})
    models.publish(first)
    models.set_alias("toy", "champion", 1)
    return models


def published(models, tmp_path, **manifest):
    return models.publish(toy_bundle(tmp_path / "next", **manifest))


def beside(champion, value, low, high, *, higher_is_better=True):
    difference = Metric(value=value, low=low, high=high, higher_is_better=higher_is_better)
    return Comparison(champion=champion, metric="srcc", difference=difference)


@pytest.mark.parametrize(
    ("comparison", "passes"),
    [
        (beside(1, 0.1, 0.05, 0.15), True),
        (beside(1, -0.02, -0.06, 0.02), True),
        (beside(1, -0.1, -0.15, -0.05), False),
        (beside(1, 0.1, 0.05, 0.15, higher_is_better=False), False),
        (beside(1, -0.1, -0.15, -0.05, higher_is_better=False), True),
    ],
)
def test_the_paired_difference_decides(models, tmp_path, comparison, passes):
    version = published(models, tmp_path, comparison=comparison)
    if passes:
        check_promotion(models, "toy", version)
    else:
        with pytest.raises(WorseThanChampion, match="srcc differs by"):
            check_promotion(models, "toy", version)


@pytest.mark.parametrize(
    ("digest", "value", "error"), [("a", 0.75, None), ("a", 0.6, WorseThanChampion), ("b", 0.9, NotComparable)]
)
def test_else_the_figures_on_the_same_data_decide(models, tmp_path, digest, value, error):
    version = published(models, tmp_path, dataset_digest=digest, metrics={"srcc": Metric(value=value)})
    if error is None:
        check_promotion(models, "toy", version)
    else:
        with pytest.raises(error):
            check_promotion(models, "toy", version)


def test_a_comparison_with_an_earlier_champion_does_not_count(models, tmp_path):
    second = published(models, tmp_path, comparison=beside(1, 0.1, 0.05, 0.15))
    third = published(models, tmp_path, comparison=beside(1, 0.2, 0.15, 0.25))
    models.set_alias("toy", "champion", second)
    with pytest.raises(NotComparable):
        check_promotion(models, "toy", third)


def test_a_former_champion_may_return(models, tmp_path):
    second = published(models, tmp_path, comparison=beside(1, 0.1, 0.05, 0.15))
    models.set_alias("toy", "champion", second)
    check_promotion(models, "toy", 1)


def test_the_first_champion_and_the_same_one_pass(models, tmp_path):
    check_promotion(models, "toy", 1)
    with pytest.raises(NotFound):
        check_promotion(models, "toy", 9)
    fresh = ModelRepository(str(tmp_path / "fresh"))
    fresh.publish(toy_bundle(tmp_path / "only"))
    check_promotion(fresh, "toy", 1)


def test_a_comparison_made_since_counts(models, tmp_path):
    version = published(models, tmp_path, comparison=beside(7, 0.1, 0.05, 0.15))
    with pytest.raises(NotComparable, match="models compare"):
        check_promotion(models, "toy", version)
    models.keep_comparison("toy", version, beside(1, 0.0, -0.05, 0.05))
    models.keep_comparison("toy", version, beside(1, -0.3, -0.35, -0.25))  # the first one stays
    check_promotion(models, "toy", version)
