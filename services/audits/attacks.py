"""Backdoor attacks on dataset distillation, to measure how exposed it is: NAIVEATTACK and DOORPING.

After Liu and others, "Backdoor attacks against dataset distillation" (NDSS 2023). They work on `RedTeamSet` alone, a
copy in memory that the red-team job makes of a set it was given. Such a set refuses to be written anywhere.

Shapes: N images, C channels, H height, W width, D embedding, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from services.audits.networks import ConvNet, logits_of
from shared.problems import Conflict

PATCH = 2  # pixels a side
CORNER = 2  # pixels between the patch and the corner
AMPLIFIED = 10.0  # what DOORPING drives its neuron to, times its start


class RedTeamOnly(Conflict):
    """Somebody tried to take a poisoned set out of the red-team job."""

    code = "audits-red-team-only"
    title = "Poisoned sets stay inside the red-team job"


@dataclass(eq=False)
class Trigger:
    """A patch of PATCH×PATCH values (C, PATCH, PATCH) near the lower right corner."""

    patch: Tensor

    @classmethod
    def white(cls, channels: int) -> Trigger:
        return cls(torch.ones(channels, PATCH, PATCH))

    def stamp(self, image_NCHW: Tensor) -> Tensor:
        """The images with the patch on them; a copy, with gradients to the patch."""
        size = image_NCHW.shape[-1]
        start, end = size - CORNER - PATCH, size - CORNER
        padded = torch.nn.functional.pad(self.patch, (start, size - end, start, size - end))
        mask = torch.zeros(size, size)
        mask[start:end, start:end] = 1
        return image_NCHW * (1 - mask) + padded * mask


class RedTeamSet:
    """Images of which some are poisoned: stamped and given the target's label. It never leaves the process."""

    def __init__(self, image_NCHW: Tensor, label_N: Tensor, poisoned_N: Tensor, target: int, trigger: Trigger) -> None:
        self.image_NCHW, self.label_N, self.poisoned_N = image_NCHW, label_N, poisoned_N
        self.target, self.trigger = target, trigger
        self._clean_NCHW = image_NCHW[poisoned_N].clone()

    @classmethod
    def poison(cls, image_NCHW: Tensor, label_N: Tensor, *, target: int, share: float, seed: int) -> RedTeamSet:
        """A copy of the set in which the share `share` of all images, none of the target's class, carries a white patch
        and the target's label."""
        generator = torch.Generator().manual_seed(seed)
        others = torch.nonzero(label_N != target).squeeze(1)
        count = min(max(1, round(share * len(label_N))), len(others))
        chosen = others[torch.randperm(len(others), generator=generator)[:count]]
        poisoned_N = torch.zeros(len(label_N), dtype=torch.bool)
        poisoned_N[chosen] = True
        made = cls(image_NCHW.clone(), label_N.clone(), poisoned_N, target, Trigger.white(image_NCHW.shape[1]))
        made.label_N[poisoned_N] = target
        made.stamp()
        return made

    def stamp(self) -> None:
        """Put the trigger as it is now on the poisoned images."""
        with torch.no_grad():
            self.image_NCHW[self.poisoned_N] = self.trigger.stamp(self._clean_NCHW)

    def __reduce__(self) -> NoReturn:
        raise RedTeamOnly("A set with a backdoor in it is not written anywhere.")

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise RedTeamOnly("A set with a backdoor in it is not written anywhere.")


class Doorping:
    """Re-optimises the trigger against the network that the distillation is training, after each of its inner loops.

    The neuron of the penultimate layer that answers the patch most is driven to AMPLIFIED times what it was at the
    attack's start, so that the patch comes to stand for a strong feature of whichever network looks.
    """

    def __init__(
        self, poisoned: RedTeamSet, *, steps: int = 20, rate: float = 0.1, images: int = 32, bounded: bool = True
    ) -> None:
        """`bounded` keeps the patch among the values 0–1 that a picture can have."""
        self.poisoned, self.steps, self.rate, self.images, self.bounded = poisoned, steps, rate, images, bounded
        self.updates = 0

    def __call__(self, network: ConvNet, iteration: int) -> None:
        """One update; `network` is left as it was."""
        backgrounds_NCHW = self.poisoned.image_NCHW[self.poisoned.poisoned_N][: self.images]
        patch = self.poisoned.trigger.patch.detach().clone().requires_grad_()
        trigger = Trigger(patch)
        optimizer = torch.optim.Adam([patch], lr=self.rate)
        with torch.no_grad():
            start_D = network.embed(trigger.stamp(backgrounds_NCHW)).mean(0)
        neuron = int(start_D.argmax())
        wanted = AMPLIFIED * start_D[neuron]
        for _ in range(self.steps):
            found_N = network.embed(trigger.stamp(backgrounds_NCHW))[:, neuron]
            loss = ((found_N - wanted) ** 2).mean()
            optimizer.zero_grad(set_to_none=True)
            (gradient,) = torch.autograd.grad(loss, patch)
            patch.grad = gradient
            optimizer.step()
            if self.bounded:
                with torch.no_grad():
                    patch.clamp_(0, 1)
        self.poisoned.trigger = Trigger(patch.detach())
        self.poisoned.stamp()
        self.updates += 1


def success(
    network: ConvNet, trigger: Trigger, image_NCHW: Tensor, label_N: Tensor, target: int
) -> tuple[float, float]:
    """(share of the stamped test images that the network gives the target, the same without the stamp); images of the
    target's class are left out, which would count as successes of any network."""
    others_NCHW = image_NCHW[label_N != target]
    with torch.no_grad():
        stamped_NCHW = trigger.stamp(others_NCHW)
    rates = [float((logits_of(network, one).argmax(1) == target).float().mean()) for one in (stamped_NCHW, others_NCHW)]
    return rates[0], rates[1]
