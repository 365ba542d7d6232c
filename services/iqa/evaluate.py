"""The field's metrics of a quality score against labels: rank and linear correlation, with bootstrap intervals.

    python -m services.iqa.evaluate --bundle DIR --dataset kadid10k --path DIR

scores every image of a set as the service would and prints the table. `--dataset folder` takes our own layout.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from scipy import optimize, stats

from services.iqa.datasets import BadDataset, Record, load_folder
from services.iqa.features import decode
from services.iqa.opinion_sets import OPINION_SETS, load_opinion_set
from shared.bundles import Bundle
from shared.problems import FourfoldError

Scores = NDArray[np.float64]


def srcc(predicted_N: Scores, label_N: Scores) -> float:
    """Spearman rank correlation, −1 to 1; NaN if one side is constant."""
    if _constant(predicted_N, label_N):
        return float("nan")
    return float(stats.spearmanr(predicted_N, label_N)[0])  # pyright: ignore[reportArgumentType]


def krcc(predicted_N: Scores, label_N: Scores) -> float:
    """Kendall rank correlation (tau-b), −1 to 1; NaN if one side is constant."""
    if _constant(predicted_N, label_N):
        return float("nan")
    return float(stats.kendalltau(predicted_N, label_N)[0])  # pyright: ignore[reportArgumentType]


def plcc(predicted_N: Scores, label_N: Scores) -> float:
    """Pearson correlation after the 4-parameter logistic that the field fits first (VQEG), −1 to 1.

    y = (b1 − b2) / (1 + exp(−(x − b3)/|b4|)) + b2. Without a fit (fewer than 5 points, or no convergence) it is
    the plain Pearson correlation; NaN if one side is constant.
    """
    if _constant(predicted_N, label_N):
        return float("nan")

    def logistic(x: Scores, high: float, low: float, middle: float, width: float) -> Scores:
        return low + (high - low) / (1 + np.exp(-np.clip((x - middle) / (abs(width) + 1e-9), -60, 60)))

    start = (label_N.max(), label_N.min(), predicted_N.mean(), predicted_N.std() / 4 + 1e-6)
    mapped = predicted_N
    if len(predicted_N) >= 5:
        try:
            with warnings.catch_warnings():
                # A straight line or a step leaves parameters free; the covariance that this is about is not used.
                warnings.simplefilter("ignore", optimize.OptimizeWarning)
                fitted, _ = optimize.curve_fit(logistic, predicted_N, label_N, p0=start, maxfev=20_000)
            mapped = logistic(predicted_N, *fitted)
        except RuntimeError:
            mapped = predicted_N
    # A fit can end on a flat piece of the curve.
    if _constant(mapped):
        mapped = predicted_N
    return float(stats.pearsonr(mapped, label_N)[0])  # pyright: ignore[reportArgumentType]


def _constant(*sides: Scores) -> bool:
    return any(np.ptp(side) == 0 for side in sides)


METRICS: dict[str, Callable[[Scores, Scores], float]] = {"srcc": srcc, "plcc": plcc, "krcc": krcc}


def bootstrap(
    metric: Callable[[Scores, Scores], float],
    predicted_N: Scores,
    label_N: Scores,
    group_N: Sequence[Any] | None = None,
    *,
    rounds: int = 500,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of `metric`. With `group_N`, whole groups (source photographs) are drawn, since
    images of one photograph are not independent."""
    random = np.random.default_rng(seed)
    groups = np.arange(len(predicted_N)) if group_N is None else np.unique(np.asarray(group_N), return_inverse=True)[1]
    members = [np.flatnonzero(groups == group) for group in range(int(groups.max()) + 1)]
    values: list[float] = []
    for _ in range(rounds):
        drawn = np.concatenate([members[index] for index in random.integers(0, len(members), len(members))])
        values.append(metric(predicted_N[drawn], label_N[drawn]))
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def widened(value: float, low: float, high: float, groups: int) -> tuple[float, float]:
    """The interval of a bootstrap over few groups, which comes out too narrow, expanded: √(n/(n−1)) for the variance
    that resampling n groups loses, t(n−1)/z for its being estimated (Hesterberg 2015, What Teachers Should Know about
    the Bootstrap). One group stays as it is."""
    if groups < 2:
        return low, high
    factor = float(np.sqrt(groups / (groups - 1)) * stats.t.ppf(0.975, groups - 1) / stats.norm.ppf(0.975))
    return value - factor * (value - low), value + factor * (high - value)


def monotone_share(predicted_N: Scores, series_N: Sequence[Any], strength_N: Sequence[int]) -> float:
    """Share of neighbouring strengths of one series (source and kind) whose score falls as the strength grows, 0–1."""
    by_series: dict[Any, list[tuple[int, float]]] = {}
    for value, series, strength in zip(predicted_N, series_N, strength_N, strict=True):
        by_series.setdefault(series, []).append((strength, float(value)))
    falls = [weaker[1] > stronger[1] for points in by_series.values() for weaker, stronger in pairwise(sorted(points))]
    return float(np.mean(falls)) if falls else float("nan")


def summary(predicted_N: Scores, label_N: Scores, group_N: Sequence[Any] | None = None) -> dict[str, dict[str, float]]:
    """Every metric with its interval: {"srcc": {"value", "low", "high", "n"}, …}."""
    result: dict[str, dict[str, float]] = {}
    for name, metric in METRICS.items():
        rounds = 200 if metric is plcc else 500
        low, high = bootstrap(metric, predicted_N, label_N, group_N, rounds=rounds)
        result[name] = {"value": metric(predicted_N, label_N), "low": low, "high": high, "n": len(predicted_N)}
    return result


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """The image file as scored: uint8 (H, W, 3) sRGB, long side at most 512; raises BadDataset naming the file."""
    try:
        return decode(path.read_bytes(), fast=False).pixels
    except FourfoldError as error:
        raise BadDataset(f"{path.name}: {error.detail}", file=path.name) from None


def score_records(graph: Path, records: Sequence[Record]) -> Scores:
    """Scores (N,) in 0–100 of whole images by an exported graph: one at a time, on one thread, as served."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    scores = [session.run(["score"], {"image": read_pixels(record.path)[None]})[0] for record in records]
    return np.concatenate([np.asarray(score, np.float64) for score in scores])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True, help="a bundle's folder, such as services/iqa/pretrained")
    parser.add_argument("--dataset", choices=["folder", *OPINION_SETS], required=True)
    parser.add_argument("--path", type=Path, required=True, help="where the set is unpacked")
    parser.add_argument("--split", default="", help="score this split only, where the set has splits")
    parser.add_argument("--precision", default="fp32", help="the bundle's graph to use")
    given = parser.parse_args()
    own = given.dataset == "folder"
    records = load_folder(given.path) if own else load_opinion_set(given.dataset, given.path)
    records = [record for record in records if given.split in ("", record.split)]
    if not records:
        parser.error(f"the set has no split {given.split!r}")
    graph = Bundle.open(given.bundle).graph(given.precision)
    labels = np.array([record.score for record in records])
    result = summary(score_records(graph, records), labels, [record.source for record in records])
    print(f"{given.dataset}, {len(records)} images, {graph.name}")
    for name, item in result.items():
        print(f"{name.upper():5} {item['value']:.4f}  (95 %: {item['low']:.4f} to {item['high']:.4f})")


if __name__ == "__main__":
    main()
