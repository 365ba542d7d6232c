"""Relation-aware encoders over an account graph, with a head for each view and task.

Shapes: N accounts, P properties, D text width, H hidden, R relations, E edges of one relation, V views, B roots,
A attention heads, K = H / A.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STANCE_CLASSES = 3


class Relation(Protocol):
    """The edges of one relation."""

    def mean(self, x_NH: Tensor) -> Tensor:
        """The mean of each account's sources (N, H); zeros without any."""
        ...

    def edges(self) -> tuple[Tensor, Tensor]:
        """(source, target), each (E,)."""
        ...


class EdgeList:
    """A relation as a list of edges: differentiable, and what the exported graph does."""

    def __init__(self, source_E: Tensor, target_E: Tensor) -> None:
        self._ends = source_E, target_E

    def mean(self, x_NH: Tensor) -> Tensor:
        source_E, target_E = self._ends
        return summed(x_NH[source_E], target_E, x_NH) / in_degree(target_E, x_NH).clamp(min=1)[:, None]

    def edges(self) -> tuple[Tensor, Tensor]:
        return self._ends


class CompressedRows:
    """A relation as a sparse matrix whose rows sum to one: fast for whole graphs."""

    def __init__(self, source_E: Tensor, target_E: Tensor, accounts: int) -> None:
        """The edges are ordered by their targets."""
        counts_N = torch.bincount(target_E, minlength=accounts)
        start_N = torch.cat([torch.zeros(1, dtype=torch.long), counts_N.cumsum(0)])
        weight_E = (1.0 / counts_N.clamp(min=1).float())[target_E]
        self._ends = source_E, target_E
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # compressed rows are called a beta feature; a test compares them
            self._matrix = torch.sparse_csr_tensor(
                start_N, source_E, weight_E, (accounts, accounts), check_invariants=False
            )

    def mean(self, x_NH: Tensor) -> Tensor:
        return self._matrix @ x_NH

    def edges(self) -> tuple[Tensor, Tensor]:
        return self._ends


def summed(value_EH: Tensor, target_E: Tensor, like_NH: Tensor) -> Tensor:
    """(N, H) the sum of what arrives at each account."""
    # scatter_add and not index_add: the exporter writes the latter without its addition, silently.
    index_EH = target_E[:, None].expand(-1, value_EH.shape[1])
    return torch.zeros_like(like_NH[:, :1]).expand(-1, value_EH.shape[1]).scatter_add(0, index_EH, value_EH)


def in_degree(target_E: Tensor, like_NH: Tensor) -> Tensor:
    """(N,) incoming edges of each account."""
    return torch.zeros_like(like_NH[:, 0]).scatter_add(0, target_E, torch.ones_like(target_E, dtype=like_NH.dtype))


def relations_of(edge_2E: Tensor, relation_E: Tensor, count: int) -> list[Relation]:
    """The edges by relation."""
    found: list[Relation] = []
    for number in range(count):
        chosen = (relation_E == number).nonzero().squeeze(1)
        found.append(EdgeList(edge_2E[0][chosen], edge_2E[1][chosen]))
    return found


class RelationalMean(nn.Module):
    """R-GCN: W₀ x_i + Σ_r W_r mean_{j ∈ N_r(i)} x_j (Schlichtkrull and others, 2018)."""

    def __init__(self, hidden: int, relations: int) -> None:
        super().__init__()
        self.own = nn.Linear(hidden, hidden)
        self.by_relation = nn.ModuleList(nn.Linear(hidden, hidden, bias=False) for _ in range(relations))

    def forward(self, x_NH: Tensor, relations: Sequence[Relation]) -> Tensor:
        out_NH = self.own(x_NH)
        for weight, relation in zip(self.by_relation, relations, strict=True):
            out_NH = out_NH + weight(relation.mean(x_NH))
        return out_NH


class RelationTransformer(nn.Module):
    """RGT: attention within each relation, a gated residual, and attention over the relations.

    Feng and others, "Heterogeneity-aware Twitter bot detection with relational graph transformers" (2022). The
    relations are weighted for each account by itself; the paper averages over the graph, which would make an
    account's answer depend on what it is asked together with.
    """

    def __init__(self, hidden: int, relations: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention = nn.ModuleList(nn.Linear(hidden, 3 * hidden) for _ in range(relations))
        self.gate = nn.Linear(2 * hidden, hidden)
        self.semantic = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1, bias=False))

    def forward(self, x_NH: Tensor, relations: Sequence[Relation]) -> Tensor:
        views = [self._one(x_NH, layer, relation) for layer, relation in zip(self.attention, relations, strict=True)]
        views_NRH = torch.stack([x_NH, *views], dim=1)
        share_NR1 = torch.softmax(self.semantic(views_NRH), dim=1)
        return (share_NR1 * views_NRH).sum(dim=1)

    def _one(self, x_NH: Tensor, layer: nn.Module, relation: Relation) -> Tensor:
        source_E, target_E = relation.edges()
        hidden = x_NH.shape[1]
        width = hidden // self.heads
        query_NH, key_NH, value_NH = layer(x_NH).chunk(3, dim=1)
        shape = (-1, self.heads, width)
        query_EAK, key_EAK = query_NH[target_E].reshape(shape), key_NH[source_E].reshape(shape)
        # Clamped rather than shifted by each account's maximum, which takes no scatter of maxima.
        weight_EA = ((query_EAK * key_EAK).sum(-1) / math.sqrt(width)).clamp(-20, 20).exp()
        message_EH = (weight_EA[:, :, None] * value_NH[source_E].reshape(shape)).reshape(-1, hidden)
        total_NA = summed(weight_EA, target_E, x_NH)
        sum_NH = summed(message_EH, target_E, x_NH)
        mean_NH = (sum_NH.reshape(shape) / total_NA.clamp(min=1e-9)[:, :, None]).reshape(-1, hidden)
        gate_NH = torch.sigmoid(self.gate(torch.cat([mean_NH, x_NH], dim=1)))
        return torch.tanh(mean_NH) * gate_NH + x_NH * (1 - gate_NH)


class SignedRelations(nn.Module):
    """GGCN with relations: signed messages and degree correction within each (Yan and others, 2022).

    s_ij = cos(Wh_i, Wh_j), τ_ij = softplus(d₀(√(d_j/d_i) − 1) + d₁), and
    out = softplus(scale)(Σ_r c⁺_r A⁺_r Wh + c⁻_r A⁻_r Wh + c₀ Wh), c = softmax of 2R + 1 learned numbers. With one
    relation it is the paper's layer.
    """

    def __init__(self, hidden: int, relations: int) -> None:
        super().__init__()
        self.weight = nn.Linear(hidden, hidden)
        self.correction = nn.Parameter(torch.tensor([0.5, 0.0]).repeat(relations, 1))
        self.shares = nn.Parameter(torch.zeros(2 * relations + 1))
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x_NH: Tensor, relations: Sequence[Relation]) -> Tensor:
        wh_NH = self.weight(x_NH)
        unit_NH = F.normalize(wh_NH, dim=1)
        share = torch.softmax(self.shares, dim=0)
        out_NH = share[-1] * wh_NH
        for number, relation in enumerate(relations):
            source_E, target_E = relation.edges()
            degree_N = in_degree(target_E, x_NH) + 1
            sign_E = (unit_NH[source_E] * unit_NH[target_E]).sum(1)
            from_E, to_E = degree_N[source_E], degree_N[target_E]
            slope, offset = self.correction[number]
            weight_E = F.softplus(slope * ((from_E / to_E).sqrt() - 1) + offset) / (from_E * to_E).sqrt()
            part_E = torch.where(sign_E > 0, share[2 * number], share[2 * number + 1])
            message_EH = (part_E * sign_E * weight_E)[:, None] * wh_NH[source_E]
            out_NH = out_NH + summed(message_EH, target_E, x_NH)
        return F.softplus(self.scale) * out_NH


class AccountNet(nn.Module):
    """Properties, text and edges → logits of every view's head."""

    def __init__(
        self,
        encoder: str,
        *,
        properties: int,
        text: int,
        relations: int,
        views: int,
        hidden: int,
        layers: int,
        heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.encoder, self.relations, self.views, self.dropout = encoder, relations, views, dropout
        self.properties = nn.Linear(2 * properties, hidden)
        self.text = nn.Linear(text + 1, hidden) if text else None
        # BotRGCN (Feng and others, 2021) embeds each kind of input by itself and uses one layer twice.
        self.joined = nn.Linear(2 * hidden if text and encoder == "botrgcn" else hidden, hidden)
        makes = {
            "mlp": lambda: nn.Linear(hidden, hidden),
            "rgcn": lambda: RelationalMean(hidden, relations),
            "botrgcn": lambda: RelationalMean(hidden, relations),
            "rgt": lambda: RelationTransformer(hidden, relations, heads),
            "ggcn": lambda: SignedRelations(hidden, relations),
        }
        make = makes[encoder]
        shared = make()
        self.convolutions = nn.ModuleList(shared if encoder == "botrgcn" else make() for _ in range(layers))
        self.mixed = nn.Linear(hidden, hidden)
        self.bot = nn.Linear(hidden, 2 * views)
        self.stance = nn.Linear(hidden, STANCE_CLASSES * views)

    def forward(
        self, values_NP: Tensor, known_NP: Tensor, text_ND: Tensor | None, relations: Sequence[Relation]
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, V, 2) and (N, V, 3). `known_NP` is 1 where a value counts; unknown texts are zero rows."""
        x_NH = self.properties(torch.cat([values_NP * known_NP, known_NP], dim=1))
        if self.text is not None and text_ND is not None:
            has_N1 = (text_ND.abs().sum(1, keepdim=True) > 0).to(text_ND.dtype)
            text_NH = self.text(torch.cat([text_ND, has_N1], dim=1))
            x_NH = torch.cat([x_NH, text_NH], dim=1) if self.encoder == "botrgcn" else x_NH + text_NH
        x_NH = self.joined(self._drop(F.leaky_relu(x_NH)))
        for layer in self.convolutions:
            x_NH = self._drop(F.leaky_relu(x_NH))
            new_NH = layer(x_NH) if self.encoder == "mlp" else layer(x_NH, relations)
            x_NH = x_NH + new_NH
        x_NH = self._drop(F.leaky_relu(self.mixed(F.leaky_relu(x_NH))))
        shape = (-1, self.views)
        return self.bot(x_NH).reshape(*shape, 2), self.stance(x_NH).reshape(*shape, STANCE_CLASSES)

    def _drop(self, x_NH: Tensor) -> Tensor:
        return F.dropout(x_NH, self.dropout, self.training)


class ServedGraph(nn.Module):
    """What is exported: the logits of the first B accounts, the roots."""

    def __init__(self, model: AccountNet) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, edges_2E: Tensor, relation_E: Tensor, values_NP: Tensor, known_NP: Tensor, text_ND: Tensor, root_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        relations = relations_of(edges_2E, relation_E, self.model.relations)
        bot_NV2, stance_NV3 = self.model(values_NP, known_NP, text_ND, relations)
        return bot_NV2[root_B], stance_NV3[root_B]
