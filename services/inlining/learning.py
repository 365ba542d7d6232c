"""What the training methods do to a policy network: cloning, imitation, evolution strategies, PPO.

Shapes: N call sites, I inputs of the network, P parameters that evolution moves, K pairs of perturbations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from services.inlining.labels import Labels
from services.inlining.model import PolicyNet
from services.inlining.schemas import TrainConfig

MOST_WORTH = 256.0  # bytes; one decision that drags a large function along must not drown the others
EVOLVED = ("layer2", "layer3")  # 841 parameters, the last two layers
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def clone(net: PolicyNet, features_NF: Ints, stock_N: Ints, config: TrainConfig) -> float:
    """Train on stock's own decisions; returns the share of them that the network then agrees with."""
    inputs_NI = net.inputs(torch.from_numpy(features_NF))
    wanted_N = torch.from_numpy(stock_N.astype(np.float32))
    optimizer = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
    for epoch in range(config.clone_epochs):
        for chosen in _batches(len(wanted_N), config, epoch):
            loss = F.binary_cross_entropy_with_logits(net.from_inputs(inputs_NI[chosen]), wanted_N[chosen])
            _step(optimizer, loss)
    with torch.inference_mode():
        return float(((net.from_inputs(inputs_NI) > 0) == (wanted_N > 0.5)).float().mean())


def imitate(
    net: PolicyNet, labels: Labels, features_NF: Ints, stock_N: Ints, anchor: float, config: TrainConfig
) -> None:
    """Learn which answer is worth more; `anchor` × the cross-entropy with stock holds it back.

    The cross-entropy with the better answer, weighted by the bytes between the two, is least where the probability is
    above a half just where inlining saves bytes on average; and a saturated clone does not stop its gradient.
    """
    inputs_LI = net.inputs(torch.from_numpy(labels.features_NF))
    worth_L = torch.from_numpy(labels.worth_N.astype(np.float32)).clamp(-MOST_WORTH, MOST_WORTH)
    weight_L = worth_L.abs() / worth_L.abs().mean().clamp(min=1e-6)
    better_L = (worth_L < 0).to(torch.float32)
    inputs_NI = net.inputs(torch.from_numpy(features_NF))
    wanted_N = torch.from_numpy(stock_N.astype(np.float32))
    optimizer = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
    for epoch in range(config.label_epochs):
        others = _endless(len(wanted_N), config, epoch)
        for chosen in _batches(len(worth_L), config, epoch):
            logits = net.from_inputs(inputs_LI[chosen])
            bytes_ = F.binary_cross_entropy_with_logits(logits, better_L[chosen], weight_L[chosen])
            other = next(others)
            held = F.binary_cross_entropy_with_logits(net.from_inputs(inputs_NI[other]), wanted_N[other])
            _step(optimizer, bytes_ + anchor * held)


def evolved(net: PolicyNet) -> NDArray[np.float32]:
    """The parameters that evolution moves, (P,)."""
    return np.concatenate([value.detach().numpy().ravel() for value in _moved(net)])


def set_evolved(net: PolicyNet, values_P: NDArray[np.float32]) -> None:
    place = 0
    with torch.no_grad():
        for value in _moved(net):
            size = value.numel()
            value.copy_(torch.from_numpy(values_P[place : place + size].reshape(value.shape).copy()))
            place += size


def perturbations(count: int, parameters: int, seed: Sequence[int]) -> NDArray[np.float32]:
    """(K, P) standard normal; each is used with both signs."""
    return np.random.default_rng(seed).standard_normal((count, parameters)).astype(np.float32)


def evolution_step(
    values_P: NDArray[np.float32], noise_KP: NDArray[np.float32], saved_K2: Floats, config: TrainConfig
) -> NDArray[np.float32]:
    """One step of evolution strategies (Salimans and others, 2017) with mirrored noise and ranks for rewards."""
    ranks_K2 = saved_K2.ravel().argsort().argsort().reshape(saved_K2.shape) / max(1, saved_K2.size - 1) - 0.5
    if np.ptp(saved_K2) == 0:
        return values_P
    ascent_P = ((ranks_K2[:, 0] - ranks_K2[:, 1])[:, None] * noise_KP).mean(axis=0)
    return (values_P + config.step * ascent_P).astype(np.float32)


def ppo_step(
    net: PolicyNet,
    optimizer: torch.optim.Optimizer,
    features_NF: Ints,
    taken_N: Ints,
    advantage_N: Floats,
    config: TrainConfig,
    epoch: int,
) -> float:
    """Proximal policy optimisation (Schulman and others, 2017) on one iteration's decisions; returns the mean loss."""
    inputs_NI = net.inputs(torch.from_numpy(features_NF))
    taken = torch.from_numpy(taken_N.astype(np.float32))
    advantage = torch.from_numpy(advantage_N.astype(np.float32))
    with torch.inference_mode():
        before = -F.binary_cross_entropy_with_logits(net.from_inputs(inputs_NI), taken, reduction="none")
    before = before.clone()
    losses: list[float] = []
    for repeat in range(config.ppo_epochs):
        for chosen in _batches(len(taken), config, epoch * config.ppo_epochs + repeat):
            logits = net.from_inputs(inputs_NI[chosen])
            after = -F.binary_cross_entropy_with_logits(logits, taken[chosen], reduction="none")
            ratio = (after - before[chosen]).exp()
            clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
            gain = torch.minimum(ratio * advantage[chosen], clipped * advantage[chosen]).mean()
            probability = torch.sigmoid(logits)
            undecided = F.binary_cross_entropy_with_logits(logits, probability)
            loss = -gain - config.entropy * undecided
            _step(optimizer, loss)
            losses.append(loss.item())
    return float(np.mean(losses))


def _moved(net: PolicyNet) -> list[Tensor]:
    return [value for name, value in net.named_parameters() if name.startswith(EVOLVED)]


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _batches(count: int, config: TrainConfig, epoch: int) -> list[Tensor]:
    """A pass over `count` items in an order of its own, which a resumed training repeats."""
    order = np.random.default_rng([config.seed, epoch]).permutation(count)
    return list(torch.from_numpy(order).split(config.batch_size))


def _endless(count: int, config: TrainConfig, epoch: int):
    number = 0
    while True:
        yield from _batches(count, config, epoch * 1000 + number)
        number += 1
