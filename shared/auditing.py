"""What a domain tells about one version so that it can be audited: its examples, errors, embeddings and trainable self.

A domain takes part with `services/<domain>/audit.py`, which has `subject(bundle, data, context) -> Subject`. Nothing
here imports torch: modules and tensors of a domain are Any. Shapes: N examples, C classes, D width of the embedding,
X the shape of one example's continuous input.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.bundles import Bundle
from shared.datasets import folder_digest
from shared.jobs.context import LocalContext, StopReason
from shared.problems import FourfoldError, NotSupported

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Kind = Literal["classification", "regression"]


class NotAssessed(FourfoldError):
    """Something cannot be examined for this version; the detail says why, and what would make it possible."""

    code = "not-assessed"
    title = "This cannot be examined"


class Context(Protocol):
    """What a subject and a check have of their surroundings; every TrainingContext is one."""

    @property
    def logger(self) -> logging.Logger: ...

    def should_stop(self) -> StopReason | None:
        """Cheap; ask it every step, and raise JobStopped."""
        ...

    def artefact(self, name: str) -> Path:
        """A local path for a file or folder of this run."""
        ...


@dataclass(frozen=True)
class Examples:
    """N examples of one split. Checks never look into `inputs`: they hand them back to the subject.

    `targets_N` are classes (int64) or values (float64); −1 is an unknown class. `groups` maps a grouping to each
    example's group, '' where it has none. `features` describe the examples in words a reader knows, one number or one
    word each: found groups are told by them. `unit_N` names what is independent where examples are not (what several
    of them were made of); `quick` is how many examples a quick audit looks at, by what one costs.
    """

    inputs: Any
    targets_N: NDArray[Any]
    names: Sequence[str]
    groups: Mapping[str, NDArray[np.str_]] = field(default_factory=dict[str, NDArray[np.str_]])
    features: Mapping[str, NDArray[Any]] = field(default_factory=dict[str, NDArray[Any]])
    unit_N: NDArray[Any] | None = None
    quick: int = 1_000

    def __len__(self) -> int:
        return len(self.names)

    def take(self, index: Ints) -> Examples:
        """The examples at `index`, in that order."""
        inputs = self.inputs
        chosen = inputs[index] if isinstance(inputs, np.ndarray) else [inputs[int(place)] for place in index]
        return Examples(
            chosen,
            self.targets_N[index],
            [self.names[int(place)] for place in index],
            {name: group_N[index] for name, group_N in self.groups.items()},
            {name: value_N[index] for name, value_N in self.features.items()},
            None if self.unit_N is None else self.unit_N[index],
            self.quick,
        )


@dataclass(frozen=True)
class Assessment:
    """What the served version says of N examples. `error_N` is ≥ 0, less is better: 1 or 0 for a wrong or right class,
    else in the subject's unit. `probability_NC` are calibrated class probabilities, where there are classes."""

    error_N: Floats
    probability_NC: Floats | None = None
    embedding_ND: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Perturbation:
    """One way in which inputs change in the domain's world. `apply(examples, strength, seed)` gives the changed
    examples; `strengths` ascend, in `unit`. The largest of `mild` is what a version in use must bear."""

    name: str
    unit: str
    strengths: tuple[float, ...]
    mild: float
    apply: Callable[[Examples, float, int], Examples]
    description: str = ""


@dataclass(frozen=True)
class Continuous:
    """Examples as one torch tensor that a trigger can be put on. `values` is (N, *X), inside [low, high];
    `mask_shape` broadcasts to X (a pixel's channels share one mask value); `logits(module, values)` is (N, C), with
    gradients to `values`. `names` are those of the mask's entries, where they have names."""

    values: Any
    low: float
    high: float
    mask_shape: tuple[int, ...]
    logits: Callable[[Any, Any], Any]
    names: tuple[str, ...] = ()


class Subject(Protocol):
    """One version with its data. Whatever it lacks raises NotAssessed with the reason; the checks that need it then
    say so, and the others go on."""

    @property
    def kind(self) -> Kind: ...

    @property
    def classes(self) -> tuple[str, ...]:
        """What `outputs` tells apart and `targets_N` counts in; empty where nothing labelled is classified."""
        ...

    @property
    def error_name(self) -> str:
        """What error_N is, for example "share of wrong answers"."""
        ...

    @property
    def error_unit(self) -> str: ...

    @property
    def likely(self) -> float:
        """The mean error_N of who knows nothing, and answers the majority or the median."""
        ...

    @property
    def split(self) -> str:
        """In words, how the held-out split was made."""
        ...

    @property
    def revision(self) -> str | None:
        """Of the code that trained it."""
        ...

    @property
    def train(self) -> Examples:
        """The training split, exactly as the training saw it."""
        ...

    @property
    def held_out(self) -> Examples:
        """The test split, never trained on."""
        ...

    def assess(self, examples: Examples) -> Assessment:
        """What the served ONNX graph says."""
        ...

    def perturbations(self) -> Sequence[Perturbation]:
        """Natural to the domain."""
        ...

    def unfamiliar(self, seed: int) -> Examples:
        """Inputs from outside the training's world, for which certainty is a fault."""
        ...

    def uncertainty(self, examples: Examples) -> Floats:
        """How unsure the served version says it is, or how strange it finds each example (N,); more is more."""
        ...

    # -- the trainable side

    def module(self) -> Any:
        """A new torch module with this version's weights, in evaluation mode on the CPU."""
        ...

    def fit(self, examples: Examples | None, seed: int, context: Context) -> Any:
        """A module trained as this version was, from another seed; on `examples` or else on the training split."""
        ...

    def batches(self, examples: Examples, size: int) -> Sequence[Any]:
        """The examples as batches for `loss` and `outputs`, in order."""
        ...

    def loss(self, module: Any, batch: Any) -> Any:
        """Mean training loss of a batch, a scalar tensor with its graph; no randomness in evaluation mode."""
        ...

    def outputs(self, module: Any, batch: Any) -> Any:
        """Logits (B, C) of `classes`, else values, with their graph."""
        ...

    def features(self, module: Any, batch: Any) -> Any:
        """The penultimate layer (B, D)."""
        ...

    def continuous(self, examples: Examples) -> Continuous:
        """The examples as a tensor that triggers can be put on."""
        ...


class TrainingWithin(LocalContext):
    """A training inside an audit: it reports to nobody, and stops when the audit does."""

    def __init__(self, within: Context, folder: Path) -> None:
        super().__init__(folder)
        self._within = within

    def report(self, *, step: int, total: int, **metrics: float) -> None: ...

    def checkpoint(self, state: Any) -> None: ...

    def should_stop(self) -> StopReason | None:
        return self._within.should_stop()


class OnOtherData:
    """A subject whose data set is not the one that its version was trained on: it has no training split here."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def __getattr__(self, name: str) -> Any:
        return getattr(self._subject, name)

    @property
    def train(self) -> Examples:
        raise NotAssessed("The data set at hand is not the one that the version was trained on.")

    def fit(self, examples: Examples | None, seed: int, context: Context) -> Any:
        raise NotAssessed("The data set at hand is not the one that the version was trained on.")


def open_subject(package: str, bundle: Bundle, data: Path | None, context: Context) -> Subject:
    """The subject of a bundle, by its domain's `audit.subject`; raises NotSupported where the domain has none.

    `data` is a folder with the data set, or None when there is none at hand. Where the manifest names another data
    set, there is no training split.
    """
    manifest = bundle.manifest
    name = f"{package}.{manifest.domain}.audit"
    if find_spec(f"{package}.{manifest.domain}") is None or find_spec(name) is None:
        raise NotSupported(f"The domain {manifest.domain} has no audits.")
    subject: Subject = import_module(name).subject(bundle, data, context)
    known = manifest.dataset_digest
    if data is None or known is None or not data.is_dir() or folder_digest(manifest.domain, data) == known:
        return subject
    return OnOtherData(subject)  # type: ignore[return-value]
