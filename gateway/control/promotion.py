"""The gate before a new champion: it must not be worse than the old one on the same held-out data."""

from __future__ import annotations

from shared.bundles import Manifest
from shared.problems import Conflict
from shared.repository import ModelRepository


class WorseThanChampion(Conflict):
    code = "worse-than-champion"
    title = "The version is worse than the champion"
    advice = "Train longer, or on better data. Force it only with a reason that you can stand by."


class NotComparable(Conflict):
    code = "not-comparable"
    title = "The version was not compared with the champion"
    advice = "Run `fourfold models compare NAME VERSION`, then promote again."


def check_promotion(models: ModelRepository, name: str, version: int) -> None:
    """Raise WorseThanChampion or NotComparable unless `version` may become champion; NotFound if it is not there.

    A version that is champion, or was it before, may be so again. Otherwise a comparison with the champion of now
    counts, of the training or made since: the paired difference's 95 % interval must reach zero. Failing that, the
    figures of both manifests, if they come from the same data: the new value must not lie below the interval of the
    champion's.
    """
    new = models.manifest(name, version)
    champion = models.aliases(name).champion
    if champion is None or any(table.champion == version for table in models.alias_history(name)):
        return
    comparison = models.comparison(name, version, champion)
    if comparison is not None:
        difference = comparison.difference
        bound = difference.high if difference.higher_is_better else difference.low
        sign = 1 if difference.higher_is_better else -1
        if bound is not None and sign * bound < 0:
            about = f"; {difference.description}" if difference.description else ""
            raise WorseThanChampion(
                f"Beside version {champion} on the same held-out data, {comparison.metric} differs by "
                f"{difference.value:+.4f} (95 %: {difference.low:+.4f} to {difference.high:+.4f}{about}). "
                "Force it with a reason if you must.",
                comparison=comparison.model_dump(),
            )
        return
    _check_same_data(new, models.manifest(name, champion), champion)


def _check_same_data(new: Manifest, old: Manifest, champion: int) -> None:
    same = new.dataset_digest is not None and new.dataset_digest == old.dataset_digest
    metric = next((metric for metric in old.metrics if metric in new.metrics), None)
    if not same or metric is None:
        raise NotComparable(
            f"It was not measured beside the present champion, version {champion}, nor on the same data. "
            "Compare them (POST …/comparisons, fourfold models compare), or force it with a reason."
        )
    mine, theirs = new.metrics[metric], old.metrics[metric]
    worse = (
        mine.value < (theirs.value if theirs.low is None else theirs.low)
        if theirs.higher_is_better
        else mine.value > (theirs.value if theirs.high is None else theirs.high)
    )
    if worse:
        raise WorseThanChampion(
            f"Its {metric} is {mine.value:.4f}; version {champion} has {theirs.value:.4f} on the same data, "
            "and the difference is beyond that figure's interval. Force it with a reason if you must."
        )
