"""MLGO's policy network in torch: integer features of call sites → the logit of inlining.

Shapes: B call sites, F features, Q quantiles, I = 3F inputs. The quantiles are part of the module, so that the exported
graph takes the channel's numbers as they come.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from services.inlining.policy import HIDDEN

QUANTILES = 99


def corpus_quantiles(features_NF: NDArray[np.int64], count: int = QUANTILES) -> NDArray[np.int64]:
    """(F, Q): each feature's values at `count` evenly spaced ranks among the N call sites."""
    ranks = (np.arange(1, count + 1) / (count + 1) * len(features_NF)).astype(np.int64)
    return np.sort(features_NF, axis=0)[np.minimum(ranks, len(features_NF) - 1)].T.copy()


class PolicyNet(nn.Module):
    """`forward`: (B, F) int64 → logits (B,)."""

    quantiles_FQ: Tensor

    def __init__(self, quantiles_FQ: NDArray[np.int64]) -> None:
        super().__init__()
        self.register_buffer("quantiles_FQ", torch.from_numpy(quantiles_FQ))
        widths = [3 * len(quantiles_FQ), *HIDDEN, 1]
        for number, (inputs, outputs) in enumerate(pairwise(widths)):
            self.add_module(f"layer{number}", nn.Linear(inputs, outputs))

    def inputs(self, features_BF: Tensor) -> Tensor:
        """(B, I): x, x² and √x of every feature, x the share of its quantiles below it."""
        below_BFQ = features_BF[:, :, None] > self.quantiles_FQ
        share_BF = below_BFQ.sum(dim=2).to(torch.float32) / self.quantiles_FQ.shape[1]
        return torch.cat([share_BF, share_BF * share_BF, share_BF.sqrt()], dim=1)

    def from_inputs(self, inputs_BI: Tensor) -> Tensor:
        """Logits (B,) of what `inputs` gave; training keeps those, since they never change."""
        hidden = inputs_BI
        for number in range(len(HIDDEN)):
            hidden = torch.relu(self.get_submodule(f"layer{number}")(hidden))
        return self.get_submodule(f"layer{len(HIDDEN)}")(hidden)[:, 0]

    def forward(self, features_BF: Tensor) -> Tensor:
        return self.from_inputs(self.inputs(features_BF))

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The layers as `Policy` wants them."""
        state = self.state_dict()
        return {name: value.cpu().numpy().copy() for name, value in state.items() if name.startswith("layer")}


class ServedPolicy(nn.Module):
    """What is exported: (B, F) int64 → probability of inlining (B,)."""

    def __init__(self, policy: PolicyNet) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, features_BF: Tensor) -> Tensor:
        return torch.sigmoid(self.policy(features_BF))
