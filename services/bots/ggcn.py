"""GGCN: a graph network whose messages carry a sign and whose weights are corrected for the nodes' degrees.

Shapes: N nodes, E directed edges without self-loops, F features, H hidden units, C classes, I and O a layer's sides.
After Yan et al., "Two Sides of the Same Coin: Heterophily and Oversmoothing in Graph Convolutional Neural Networks",
ICDM 2022. All work is per edge, so memory grows with N + E and not with N².
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The norm below which a vector counts as zero and has no direction: its cosines are 0.
SMALLEST_NORM = 1e-9


class Adjacency(NamedTuple):
    """Â = D^-½ (A + I) D^-½ as an edge list and a diagonal, D being the row sums of A + I.

    For an edge j → i, `weight_E` is Â_ij = 1/√(d_i d_j), and `degree_E` is Â_ii/Â_ij − 1 = √(d_j/d_i) − 1: above 0
    where the sender has more neighbours than the receiver. `loop_N` is Â_ii = 1/d_i. The edges are in order of the
    receiver; `back_E` puts them in order of the sender, and then `back_receiver_E` are the receivers. `start_N` and
    `back_start_N` say where each node's edges begin in the two orders.
    """

    receiver_E: Tensor
    sender_E: Tensor
    weight_E: Tensor
    degree_E: Tensor
    loop_N: Tensor
    start_N: Tensor
    back_E: Tensor
    back_receiver_E: Tensor
    back_start_N: Tensor

    def collect(self, weight_E: Tensor, state_NH: Tensor) -> Tensor:
        """Σ_j weight_ij · state_j, off the diagonal: (N, H)."""
        return _Collect.apply(weight_E, state_NH, self)

    def dot(self, left_NH: Tensor, right_NH: Tensor) -> Tensor:
        """left_i · right_j of every edge j → i: (E,)."""
        return _Dot.apply(left_NH, right_NH, self)

    def rows(self, value_E: Tensor) -> Tensor:
        """The sparse (N, N) matrix with a value at (i, j) for every edge j → i."""
        return _matrix(self.start_N, self.sender_E, value_E)

    def columns(self, value_E: Tensor) -> Tensor:
        """`rows`, transposed."""
        return _matrix(self.back_start_N, self.back_receiver_E, value_E[self.back_E])


def _matrix(start_N: Tensor, column_E: Tensor, value_E: Tensor) -> Tensor:
    nodes = len(start_N) - 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # compressed rows are called a beta feature; a test compares them
        return torch.sparse_csr_tensor(start_N, column_E, value_E, (nodes, nodes), check_invariants=False)


def _sampled(left_NH: Tensor, right_NH: Tensor, graph: Adjacency) -> Tensor:
    zeros = graph.rows(left_NH.new_zeros(len(graph.sender_E)))
    return torch.sparse.sampled_addmm(zeros, left_NH.contiguous(), right_NH.T, beta=0.0).values()


# Each of these two is the other's derivative. As sparse products they take a fortieth of the time of gathering a row
# for every edge, and memory for E numbers instead of E × H.


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_E: Tensor, state_NH: Tensor, graph: Adjacency) -> Tensor:
        ctx.save_for_backward(weight_E, state_NH)
        ctx.graph = graph
        return graph.rows(weight_E) @ state_NH

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor, None]:
        weight_E, state_NH = ctx.saved_tensors
        of_weight_E = _sampled(gradients[0], state_NH, ctx.graph) if ctx.needs_input_grad[0] else None
        return of_weight_E, ctx.graph.columns(weight_E) @ gradients[0], None


class _Dot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left_NH: Tensor, right_NH: Tensor, graph: Adjacency) -> Tensor:
        ctx.save_for_backward(left_NH, right_NH)
        ctx.graph = graph
        return _sampled(left_NH, right_NH, graph)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None]:
        left_NH, right_NH = ctx.saved_tensors
        return ctx.graph.rows(gradients[0]) @ right_NH, ctx.graph.columns(gradients[0]) @ left_NH, None


def adjacency(edge_E2: Tensor, nodes: int) -> Adjacency:
    """`edge_E2` holds (receiver, sender) in any order, each once, an undirected edge in both directions; no loops."""
    if bool((edge_E2[:, 0] == edge_E2[:, 1]).any()):
        raise ValueError("the edge list holds self-loops; they are added here")
    receiver_E, sender_E = edge_E2[torch.argsort(edge_E2[:, 0] * nodes + edge_E2[:, 1])].unbind(1)
    received_N, sent_N = (torch.bincount(end_E, minlength=nodes) for end_E in (receiver_E, sender_E))
    degree_N = 1 + received_N.to(torch.get_default_dtype())
    into_E, from_E = degree_N[receiver_E], degree_N[sender_E]
    back_E = torch.argsort(sender_E, stable=True)
    return Adjacency(
        receiver_E,
        sender_E,
        weight_E=(into_E * from_E).rsqrt(),
        degree_E=(from_E / into_E).sqrt() - 1,
        loop_N=degree_N.reciprocal(),
        start_N=F.pad(received_N.cumsum(0), (1, 0)),
        back_E=back_E,
        back_receiver_E=receiver_E[back_E],
        back_start_N=F.pad(sent_N.cumsum(0), (1, 0)),
    )


def dropped(features_NF: Tensor, share: float, training: bool) -> Tensor:
    """Dropout that also takes compressed rows, of which only what is stored is drawn: a dropped zero is a zero."""
    if features_NF.layout is not torch.sparse_csr:
        return F.dropout(features_NF, share, training)
    value_Z = F.dropout(features_NF.values(), share, training)
    start_N, column_Z = features_NF.crow_indices(), features_NF.col_indices()
    return torch.sparse_csr_tensor(start_N, column_Z, value_Z, features_NF.shape, check_invariants=False)


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
        cosine_E = graph.dot(unit_NO, unit_NO)
        same, opposite, own = self.coefficients.softmax(-1)
        # Â ⊙ τ is positive, so the sign of a weight is its cosine's: both parts pass through one sum.
        signed_E = torch.where(cosine_E > 0, same * cosine_E, opposite * cosine_E) * weight_E
        return F.softplus(self.scale) * (graph.collect(signed_E, moved_NO) + own * moved_NO)


class GGCN(nn.Module):
    """The network for one graph: `features_NF`, which may be compressed rows, and its Adjacency → logits (N, C).

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
        features_NF = dropped(features_NF, self.dropout, self.training)
        state_NH = F.elu(self.enter(features_NF))
        inner = self.layers[0](features_NF, graph)
        for residual, layer in zip(self.residual, self.layers[1:], strict=True):
            inner = F.dropout(F.elu(inner), self.dropout, self.training)
            state_NH = state_NH + residual * inner
            inner = layer(state_NH, graph)
        return inner
