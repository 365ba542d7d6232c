"""What audits are told of a version of this domain: call sites whose worth was measured, and the policy's answers.

A call site's worth is what `labels.py` measures by compiling: the bytes that inlining adds. The policy's error there is
the bytes that its decision costs against the better one. Shapes: N call sites, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from services.inlining import predict
from services.inlining.datasets import Unit, flaw, load
from services.inlining.engine import inspect_module
from services.inlining.features import FEATURES
from services.inlining.labels import Labels, measure
from services.inlining.learning import MOST_WORTH, clone, imitate
from services.inlining.model import PolicyNet
from services.inlining.policy import CALIBRATION, WEIGHTS, load_policy
from services.inlining.sandbox import CompilerCrashed, CompilerRefused, LimitExceeded
from services.inlining.schemas import TrainConfig
from shared.auditing import Assessment, Context, Examples, Floats, Kind, NotAssessed, Perturbation
from shared.bundles import Bundle
from shared.jobs.config import read_config
from shared.jobs.context import check_stop
from shared.settings import ServiceSettings

MODULES = {"train": 40, "test": 40}  # whose call sites are measured, at most; about a second each
LARGEST = 60_000  # bytes of a module
RUNS = 6  # compiles of a module beyond the first
LEAST = 50  # call sites
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    features_NF: torch.Tensor
    worth_N: torch.Tensor


def subject(bundle: Bundle, data: Path | None, context: Context) -> InliningSubject:
    """The subject of a bundle; without `data` nothing but its weights can be examined."""
    return InliningSubject(bundle, data, context)


class InliningSubject:
    kind: Kind = "regression"  # of bytes: a wrong answer matters as much as it costs
    classes: tuple[str, ...] = ()  # the better decision is measured: nobody labels call sites, or could do so wrongly
    error_name = "bytes lost against the better decision"
    error_unit = f"bytes a call site, at most {MOST_WORTH:g}"
    split = "test programs: as splits.csv says, or by a hash of the program's name"

    def __init__(self, bundle: Bundle, data: Path | None, context: Context) -> None:
        self._bundle, self._data, self._context = bundle, data, context
        self._predictor = predict.load(bundle, ServiceSettings())
        self._config = read_config(TrainConfig, bundle.manifest.config)
        self.revision = bundle.manifest.code_revision

    @property
    def likely(self) -> float:
        """Of who always inlines or never does, whichever is better."""
        cost_N = np.clip(self._worth(self.held_out), -MOST_WORTH, MOST_WORTH)
        return float(min(np.maximum(cost_N, 0).mean(), np.maximum(-cost_N, 0).mean()))

    @cached_property
    def train(self) -> Examples:
        return self._examples("train")

    @cached_property
    def held_out(self) -> Examples:
        return self._examples("test")

    def assess(self, examples: Examples) -> Assessment:
        probability_N = self._probabilities(examples)
        cost_N = np.clip(self._worth(examples), -MOST_WORTH, MOST_WORTH)
        inlined_N = probability_N >= self._predictor.threshold
        error_N = np.where(inlined_N, np.maximum(cost_N, 0), np.maximum(-cost_N, 0))
        module = self.module()
        with torch.inference_mode():
            parts = [self.features(module, batch).numpy() for batch in self.batches(examples, 4096)]
        # The probability is weighted by bytes in training: it says nothing of how often the answer is right.
        return Assessment(error_N, None, np.concatenate(parts))

    def perturbations(self) -> Sequence[Perturbation]:
        return (
            Perturbation(
                "features counted by another compiler release",
                "relative, standard deviation",
                (0.05, 0.1, 0.25, 0.5),
                0.1,
                _counted,
                "LLVM counts costs, sizes and uses a little differently in each release.",
            ),
        )

    def unfamiliar(self, seed: int) -> Examples:
        """Call sites whose every feature comes from another call site."""
        held_out, random = self.held_out, np.random.default_rng([seed, 1])
        features_NF = self._rows(held_out)
        mixed = np.stack([column[random.permutation(len(column))] for column in features_NF.T], axis=1)
        return _changed(held_out, mixed)

    def uncertainty(self, examples: Examples) -> Floats:
        """1 − the `confidence` of the decision that is served."""
        probability_N = self._probabilities(examples)
        return 1 - np.maximum(probability_N, 1 - probability_N)

    # -- the network

    def module(self) -> PolicyNet:
        if WEIGHTS not in self._bundle.manifest.files or CALIBRATION not in self._bundle.manifest.files:
            raise NotAssessed("The version carries no weights; train it again with this release.")
        policy = load_policy(self._bundle.folder)
        net = PolicyNet(policy.quantiles_FQ)
        with torch.no_grad():
            for number, (weight, bias) in enumerate(policy.layers):
                layer: Any = net.get_submodule(f"layer{number}")
                layer.weight.copy_(torch.from_numpy(weight))
                layer.bias.copy_(torch.from_numpy(bias))
        return net.eval()

    def fit(self, examples: Examples | None, seed: int, context: Context) -> PolicyNet:
        if self._config.method not in ("clone", "imitate"):
            raise NotAssessed(
                f"The method {self._config.method} compiles at every step; it is not repeated for an audit."
            )
        config = self._config.model_copy(update={"seed": seed})
        training = self.train if examples is None else examples
        features_NF, stock_N = self._rows(training), np.array([site[2] for site in training.inputs], np.int64)
        torch.set_num_threads(config.threads)
        torch.manual_seed(seed)
        net = PolicyNet(self.module().quantiles_FQ.numpy())
        clone(net, features_NF, stock_N, config)
        check_stop(context)
        if config.method == "imitate":
            labels = Labels(features_NF, stock_N, self._worth(training))
            imitate(net, labels, features_NF, stock_N, config.anchors[0], config)
        return net.eval()

    def batches(self, examples: Examples, size: int) -> Sequence[Batch]:
        features_NF = torch.from_numpy(self._rows(examples))
        worth_N = torch.from_numpy(self._worth(examples).astype(np.float32)).clamp(-MOST_WORTH, MOST_WORTH)
        pairs = zip(features_NF.split(size), worth_N.split(size), strict=True)
        return [Batch(rows, worth) for rows, worth in pairs]

    def loss(self, module: PolicyNet, batch: Batch) -> torch.Tensor:
        """Cross-entropy with the better decision, weighted by the bytes between the two; without training's anchor."""
        weight_N = batch.worth_N.abs() / batch.worth_N.abs().mean().clamp(min=1e-6)
        return F.binary_cross_entropy_with_logits(module(batch.features_NF), (batch.worth_N < 0).float(), weight_N)

    def outputs(self, module: PolicyNet, batch: Batch) -> torch.Tensor:
        logit_N = module(batch.features_NF)
        return torch.stack([torch.zeros_like(logit_N), logit_N], dim=1)

    def features(self, module: PolicyNet, batch: Batch) -> torch.Tensor:
        return _hidden(module, module.inputs(batch.features_NF))

    def continuous(self, examples: Examples) -> NoReturn:
        raise NotAssessed("Nobody labels call sites: which decision is better is measured; no label can be planted.")

    # -- parts

    def _probabilities(self, examples: Examples) -> Floats:
        [answer] = self._predictor.predict([self._rows(examples)])
        if isinstance(answer, Exception):
            raise answer
        return answer.astype(np.float64)

    @staticmethod
    def _rows(examples: Examples) -> Ints:
        return np.stack([site[0] for site in examples.inputs])

    @staticmethod
    def _worth(examples: Examples) -> Floats:
        return np.array([site[1] for site in examples.inputs])

    @cached_property
    def _units(self) -> list[Unit]:
        if self._data is None:
            raise NotAssessed("The corpus that the version was trained on is not at hand; name one.")
        data = self._data
        units = load(data, ("test",))
        return [unit for unit in units if not self._excluding or flaw(unit.path, data) is None]

    @property
    def _excluding(self) -> bool:
        return self._config.bad_files == "exclude"

    def _examples(self, split: str) -> Examples:
        """Call sites of some modules of a split, each with (features, worth, stock's decision)."""
        units = [unit for unit in self._units if unit.split == split and unit.path.stat().st_size <= LARGEST]
        order = np.random.default_rng(self._config.seed).permutation(len(units))[: MODULES[split]]
        inputs: list[tuple[Ints, float, int]] = []
        names: list[str] = []
        programs: list[str] = []
        for number in np.sort(order):
            check_stop(self._context)
            unit = units[int(number)]
            try:
                labels = measure(inspect_module(unit.read()), RUNS, [self._config.seed, int(number)])
            except (CompilerCrashed, CompilerRefused, LimitExceeded):
                continue
            for features_F, worth, stock in zip(labels.features_NF, labels.worth_N, labels.stock_N, strict=True):
                inputs.append((features_F, float(worth), int(stock)))
                names.append(f"{unit.name}:{len(names)}")
                programs.append(unit.program)
        if len(inputs) < LEAST:
            raise NotAssessed(
                f"Only {len(inputs)} decisions of the {split} modules could be measured; it takes {LEAST}."
            )
        rows = np.stack([site[0] for site in inputs])
        program = np.array(programs)
        return Examples(
            inputs,
            np.array([site[1] < 0 for site in inputs], np.int64),
            names,
            {"program": program} if len(set(programs)) > 1 else {},
            {name: rows[:, place].astype(np.float64) for place, name in enumerate(FEATURES) if np.ptp(rows[:, place])},
            np.array([name.rpartition(":")[0] for name in names]),
            5_000,
        )


def _hidden(module: PolicyNet, inputs_NI: torch.Tensor) -> torch.Tensor:
    kept: list[torch.Tensor] = []
    last = list(module.children())[-1]
    hook = last.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    try:
        module.from_inputs(inputs_NI)
    finally:
        hook.remove()
    return kept[0]


def _changed(examples: Examples, rows_NF: Ints) -> Examples:
    inputs = [(row, site[1], site[2]) for row, site in zip(rows_NF, examples.inputs, strict=True)]
    return replace(examples, inputs=inputs)


def _counted(examples: Examples, strength: float, seed: int) -> Examples:
    rows_NF = np.stack([site[0] for site in examples.inputs])
    noise = np.random.default_rng([seed, 2]).normal(0, strength, rows_NF.shape)
    return _changed(examples, np.rint(rows_NF * (1 + noise)).astype(np.int64))
