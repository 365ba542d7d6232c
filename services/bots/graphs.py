"""Account graphs as arrays: typed edges and their cleaning, compressed rows, sampled ego graphs. NumPy only.

Shapes: N accounts, P properties, D text width, E edges, B roots. A message goes from an edge's source to its target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
RELATIONS = ("followers", "friends", "mention", "reply", "quoted", "URL", "hashtag")  # MGTAB's, in its order
STANCES = ("neutral", "against", "support")


@dataclass(frozen=True)
class Edges:
    """Edges by the accounts' numbers and the relations' numbers, each (E,)."""

    source_E: Ints
    target_E: Ints
    relation_E: Ints

    def __len__(self) -> int:
        return len(self.source_E)

    @classmethod
    def none(cls) -> Edges:
        return cls(*(np.zeros(0, np.int64) for _ in range(3)))

    def both_ways(self) -> Edges:
        """Every edge and its reverse, under the same relation; none twice."""
        return Edges(
            np.concatenate([self.source_E, self.target_E]),
            np.concatenate([self.target_E, self.source_E]),
            np.concatenate([self.relation_E, self.relation_E]),
        ).cleaned(int(max(self.source_E.max(initial=0), self.target_E.max(initial=0))) + 1)[0]

    def cleaned(self, accounts: int) -> tuple[Edges, dict[str, int]]:
        """Without self-loops and duplicates, ordered by relation and target; and how many of each there were."""
        loops = self.source_E == self.target_E
        key = (self.relation_E * accounts + self.target_E) * accounts + self.source_E
        ordered = np.sort(key[~loops])  # much faster than NumPy's unique, which hashes
        unique = ordered[np.diff(ordered, prepend=-1) > 0]
        rest, source = np.divmod(unique, accounts)
        relation, target = np.divmod(rest, accounts)
        repairs = {"self_loops": int(loops.sum()), "duplicate_edges": int(len(key) - loops.sum() - len(unique))}
        return Edges(source, target, relation), repairs


@dataclass
class GraphData:
    """Everything of an account graph; edges are cleaned. Labels and splits are −1 where there is none."""

    ids: list[str]
    values_NP: NDArray[np.float32]
    texts: list[list[str]]
    edges: Edges
    relations: tuple[str, ...]
    bot_N: NDArray[np.int64]
    stance_N: NDArray[np.int64]
    split_N: NDArray[np.int64]
    embedding_ND: NDArray[np.float32] | None = None
    repairs: dict[str, int] = field(default_factory=dict[str, int])
    origins: dict[str, list[str]] = field(
        default_factory=dict[str, list[str]]
    )  # `table` and `language` of each account

    def edges_for(self, relations: tuple[str, ...], both_ways: bool) -> Edges:
        """The edges of the relations named, by their numbers there; others are left out."""
        if relations == self.relations and not both_ways:
            return self.edges
        number = {name: index for index, name in enumerate(relations)}
        renamed = np.array([number.get(name, -1) for name in self.relations] or [-1], np.int64)
        relation_E = renamed[self.edges.relation_E]
        known = relation_E >= 0
        edges = Edges(self.edges.source_E[known], self.edges.target_E[known], relation_E[known])
        return edges.both_ways() if both_ways else edges.cleaned(len(self.ids))[0]


@dataclass(frozen=True)
class Ego:
    """A sampled subgraph: `nodes_M` are the accounts' numbers, the roots first; edges are by place in it."""

    nodes_M: Ints
    edges: Edges
    roots: int


class Neighbourhood:
    """The incoming edges of every account, as compressed rows."""

    def __init__(self, edges: Edges, accounts: int) -> None:
        order = np.argsort(edges.target_E, kind="stable")
        self._source_E = edges.source_E[order]
        self._relation_E = edges.relation_E[order]
        self._start_N = np.searchsorted(edges.target_E[order], np.arange(accounts + 1))

    def ego(self, roots_B: Ints, fan_out: Sequence[int], seed: int) -> Ego:
        """The roots with up to `fan_out[l]` incoming edges of each account reached after l hops.

        Which edges are taken depends on the seed and on the account alone, so that an account has the same answer
        whatever it is asked together with.
        """
        place = {int(node): number for number, node in enumerate(roots_B)}
        nodes = [int(node) for node in roots_B]
        picked: list[tuple[int, int, int]] = []
        frontier = list(nodes)
        for hop, most in enumerate(fan_out):
            reached: list[int] = []
            for node in frontier:
                for edge in self._pick(node, most, [seed, hop, node]):
                    source = int(self._source_E[edge])
                    if source not in place:
                        place[source] = len(nodes)
                        nodes.append(source)
                        reached.append(source)
                    picked.append((place[source], place[node], int(self._relation_E[edge])))
            frontier = reached
        columns = np.array(picked, np.int64).reshape(-1, 3).T
        return Ego(np.array(nodes, np.int64), Edges(columns[0], columns[1], columns[2]), len(roots_B))

    def _pick(self, node: int, most: int, seed: list[int]) -> NDArray[np.int64]:
        first, end = int(self._start_N[node]), int(self._start_N[node + 1])
        if end - first <= most:
            return np.arange(first, end)
        return np.sort(first + np.random.default_rng(seed).choice(end - first, most, replace=False))
