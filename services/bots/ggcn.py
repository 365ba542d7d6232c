"""GGCN: a graph network whose messages carry a sign and whose weights are corrected for the nodes' degrees.

Shapes: N nodes, E directed edges without self-loops, F features, H hidden units, C classes, I and O a layer's sides.
After Yan et al., "Two Sides of the Same Coin: Heterophily and Oversmoothing in Graph Convolutional Neural Networks",
ICDM 2022. All work is per edge, so memory grows with N + E and not with N².
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The norm below which a vector counts as zero and has no direction: its cosines are 0.
SMALLEST_NORM = 1e-9


class Adjacency(NamedTuple):
    """Â = D^-½ (A + I) D^-½ as an edge list and a diagonal, D being the row sums of A + I.

    For an edge j → i, `weight_E` is Â_ij = 1/√(d_i d_j), and `degree_E` is Â_ii/Â_ij − 1 = √(d_j/d_i) − 1: above 0
    where the sender has more neighbours than the receiver. `loop_N` is Â_ii = 1/d_i.
    """

    receiver_E: Tensor
    sender_E: Tensor
    weight_E: Tensor
    degree_E: Tensor
    loop_N: Tensor

    def collect(self, weight_E: Tensor, state_NH: Tensor) -> Tensor:
        """Σ_j weight_ij · state_j, off the diagonal: (N, H)."""
        message_EH = weight_E.unsqueeze(-1) * state_NH.index_select(0, self.sender_E)
        return torch.zeros_like(state_NH).index_add(0, self.receiver_E, message_EH)


def adjacency(edge_E2: Tensor, nodes: int) -> Adjacency:
    """`edge_E2` holds (receiver, sender); an undirected edge is there in both directions, and there are no loops."""
    receiver_E, sender_E = edge_E2.unbind(1)
    if bool((receiver_E == sender_E).any()):
        raise ValueError("the edge list holds self-loops; they are added here")
    degree_N = 1 + torch.bincount(receiver_E, minlength=nodes).to(torch.get_default_dtype())
    received_E, sent_E = degree_N[receiver_E], degree_N[sender_E]
    return Adjacency(
        receiver_E, sender_E, (received_E * sent_E).rsqrt(), (sent_E / received_E).sqrt() - 1, degree_N.reciprocal()
    )


class GGCNLayer(nn.Module):
    """out = softplus(scale) · (c0·A⁺Wh + c1·A⁻Wh + c2·Wh), c = softmax(coefficients).

    A⁺ and A⁻ are the positive and negative parts of s ⊙ Â ⊙ τ, with the signs s_ij = cos(Wh_i, Wh_j), s_ii = 0, and
    the degree correction τ_ij = softplus(d0·(Â_ii/Â_ij − 1) + d1). Without `degree` τ is 1; without `signed` the
    layer is (Â ⊙ τ) Wh, diagonal included, as in the paper's ablation.
    """

    def __init__(self, inputs: int, outputs: int, signed: bool = True, degree: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.correction = nn.Parameter(torch.tensor([0.5, 0.0])) if degree else None
        self.coefficients = nn.Parameter(torch.zeros(3)) if signed else None
        self.scale = nn.Parameter(torch.tensor(2.0)) if signed else None

    def forward(self, state_NI: Tensor, graph: Adjacency) -> Tensor:
        """(N, I) → (N, O)."""
        moved_NO = self.linear(state_NI)
        weight_E = graph.weight_E
        if self.correction is not None:
            weight_E = weight_E * F.softplus(self.correction[0] * graph.degree_E + self.correction[1])
        if self.coefficients is None or self.scale is None:
            # On the diagonal Â_ii/Â_ii − 1 is 0, which leaves d1.
            loop_N = graph.loop_N if self.correction is None else graph.loop_N * F.softplus(self.correction[1])
            return loop_N.unsqueeze(-1) * moved_NO + graph.collect(weight_E, moved_NO)
        unit_NO = F.normalize(moved_NO, dim=-1, eps=SMALLEST_NORM)
        cosine_E = (unit_NO[graph.receiver_E] * unit_NO[graph.sender_E]).sum(-1)
        same, opposite, own = self.coefficients.softmax(-1)
        # Â ⊙ τ is positive, so the sign of a weight is its cosine's: both parts pass through one sum.
        signed_E = torch.where(cosine_E > 0, same * cosine_E, opposite * cosine_E) * weight_E
        return F.softplus(self.scale) * (graph.collect(signed_E, moved_NO) + own * moved_NO)


class GGCN(nn.Module):
    """The network for one graph: `features_NF` and its Adjacency → logits (N, C).

    h_0 = elu(Linear(x)), then h_{i+1} = h_i + λ_i · elu(layer_i), with λ_0 = 1 and λ_i = ln(η/(i+2)³ + 1); the last
    layer's output is not added but is the answer. Dropout falls on the features and on every elu(layer_i).
    """

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        hidden: int = 32,
        layers: int = 2,
        dropout: float = 0.5,
        decay: float = 1.0,
        signed: bool = True,
        degree: bool = True,
    ) -> None:
        super().__init__()
        if layers < 2:
            raise ValueError("GGCN has at least two layers")
        inputs = (features, *[hidden] * (layers - 1))
        outputs = (*[hidden] * (layers - 1), classes)
        self.enter = nn.Linear(features, hidden)
        self.layers = nn.ModuleList(
            GGCNLayer(wide, narrow, signed, degree) for wide, narrow in zip(inputs, outputs, strict=True)
        )
        self.residual = [1.0, *(math.log(decay / (i + 2) ** 3 + 1) for i in range(1, layers - 1))]
        self.dropout = dropout

    def forward(self, features_NF: Tensor, graph: Adjacency) -> Tensor:
        features_NF = F.dropout(features_NF, self.dropout, self.training)
        state_NH = F.elu(self.enter(features_NF))
        inner = self.layers[0](features_NF, graph)
        for residual, layer in zip(self.residual, self.layers[1:], strict=True):
            inner = F.dropout(F.elu(inner), self.dropout, self.training)
            state_NH = state_NH + residual * inner
            inner = layer(state_NH, graph)
        return inner
