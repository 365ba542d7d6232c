"""Pictures of results: a map of codewords, and the cube–sphere experiment's curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler


def codeword_map(codes_SD: NDArray[np.floating], label_S: NDArray[np.int64], labels: Sequence[str], path: Path) -> None:
    """t-SNE of at most 1,500 codewords, a colour for each of the twelve commonest classes, the others grey."""
    chosen = np.random.default_rng(0).permutation(len(codes_SD))[:1500]
    x_SD = StandardScaler().fit_transform(codes_SD[chosen])
    perplexity = float(min(30, max(2, (len(chosen) - 1) // 3)))
    place_S2 = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(x_SD)
    figure = Figure((10, 7), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.add_subplot()
    shown = label_S[chosen]
    common = np.argsort(-np.bincount(shown[shown >= 0], minlength=len(labels)), kind="stable")[:12]
    rest = ~np.isin(shown, common)
    axes.scatter(*place_S2[rest].T, s=6, c="lightgrey", label="other")
    for number, label in enumerate(common):
        if (shown == label).any():
            colour = f"C{number % 10}"
            marker = "o" if number < 10 else "^"
            axes.scatter(*place_S2[shown == label].T, s=10, c=colour, marker=marker, label=labels[label])
    axes.set_title("Codewords, t-SNE")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=100)


def curves(panels: Mapping[str, Mapping[str, Mapping[float, Sequence[float]]]], path: Path) -> None:
    """One panel a lever: for each series its mean over the seeds at each setting, with the single seeds as dots."""
    figure = Figure((5 * len(panels), 4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for number, (lever, series) in enumerate(panels.items()):
        axes = canvas.figure.add_subplot(1, len(panels), number + 1)
        for colour, (name, points) in enumerate(series.items()):
            settings = sorted(points)
            axes.plot(settings, [float(np.mean(points[x])) for x in settings], f"C{colour}-", label=name)
            for x in settings:
                axes.plot([x] * len(points[x]), list(points[x]), f"C{colour}.", markersize=4)
        axes.set_xlabel(lever)
        axes.set_ylabel("dispersion score (mean)")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)
