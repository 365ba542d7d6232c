"""A regression as the classification of its values' quarters: what a trigger in it turns inputs into is one of them.

Shapes: N examples, C bands, C − 1 cuts between them.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from shared.auditing import Continuous, Examples, Kind, NotAssessed, Subject

BANDS = 4


def in_bands(subject: Subject) -> Subject:
    """The subject with quarters of its training's values for classes.

    Raises NotAssessed where no patch can be put on its inputs, or where it has one value alone.
    """
    subject.continuous(subject.train.take(np.arange(1)))
    value_N = np.asarray(subject.train.targets_N, np.float64)
    cuts = np.unique(np.quantile(value_N, np.arange(1, BANDS) / BANDS))
    cuts = cuts[cuts > value_N.min()]  # where many values are equal, bands are fewer
    if not len(cuts):
        raise NotAssessed(
            "The training's targets are all alike: there is nothing that a trigger could turn inputs into."
        )
    # Half-way to the next value below: a largest value that many share would never be reached.
    cuts = np.array([(cut + value_N[value_N < cut].max()) / 2 for cut in cuts])
    return _InBands(subject, cuts)  # type: ignore[return-value]


class _InBands:
    kind: Kind = "classification"

    def __init__(self, subject: Subject, cuts: NDArray[np.float64]) -> None:
        self._subject, self._cuts = subject, cuts
        edges = [f"{cut:.3g}" for cut in cuts]
        between = [f"{low} to {high}" for low, high in pairwise(edges)]
        self.classes = (f"below {edges[0]}", *between, f"{edges[-1]} or more")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._subject, name)

    @property
    def train(self) -> Examples:
        return self._banded(self._subject.train)

    @property
    def held_out(self) -> Examples:
        return self._banded(self._subject.held_out)

    def continuous(self, examples: Examples) -> Continuous:
        """With logits (N, C) of which the largest is the band that the value lies in: Σ of (v − cut) over those below.
        They are no probabilities."""
        of_values = self._subject.continuous(examples)
        cuts = of_values.values.new_tensor(self._cuts)

        def logits(module: Any, values: Any) -> Any:
            above_NC = of_values.logits(module, values)[:, None] - cuts
            return F.pad(above_NC.cumsum(1), (1, 0))

        return replace(of_values, logits=logits)

    def _banded(self, examples: Examples) -> Examples:
        return replace(examples, targets_N=np.searchsorted(self._cuts, examples.targets_N, "right").astype(np.int64))
