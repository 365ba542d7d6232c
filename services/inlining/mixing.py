"""Takes from each of several compiles of a module what it did best: the decisions of the functions that it made smaller.

Candidates differ in many functions at once, and each is better in some. A group is functions that hang together: in
which a call was decided otherwise than in the base, that share a callee which is left in one of the two compiles alone,
or of which one was inlined into the other. Groups that are smaller elsewhere are taken from there, the most saved
first. Sizes add up only nearly, so the mixture has to be compiled; it counts with what that gives.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from services.inlining.engine import Compiled
from services.inlining.replay import Decision, Site, as_mapping


@dataclass(frozen=True)
class Group:
    """Functions of `source` that are `saved` bytes smaller there than in the base, with those that vanish or stay."""

    source: Compiled
    callers: frozenset[str]
    names: frozenset[str]  # callers and callees
    saved: int


def mix(base: Compiled, others: Sequence[Compiled]) -> dict[Site, bool] | None:
    """The base's decisions with the others' best groups in their place; None where no other is better anywhere."""
    groups = [group for other in others for group in differences(base, other) if group.saved > 0]
    taken: list[Group] = []
    touched: set[str] = set()
    for group in sorted(groups, key=lambda one: -one.saved):
        if not group.names & touched:
            taken.append(group)
            touched |= group.names
    if not taken:
        return None
    replaced = {name for group in taken for name in group.callers}
    mixture = [one for one in base.decisions if one.caller not in replaced]
    for group in taken:
        mixture += [one for one in group.source.decisions if one.caller in group.callers]
    return as_mapping(mixture)


def differences(base: Compiled, other: Compiled) -> list[Group]:
    """The groups of functions in which `other` decided otherwise."""
    mine, theirs = _by_caller(base.decisions), _by_caller(other.decisions)
    changed = {name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)}
    joined = _Joined()
    for compiled in (base, other):
        for decision in compiled.decisions:
            callee, caller = decision.site.callee, decision.caller
            if caller not in changed:
                continue
            left = (callee in base.functions) != (callee in other.functions)
            if left or (decision.inlined and callee in changed):
                joined.join(caller, callee)
    members: dict[str, set[str]] = defaultdict(set)
    for name in changed | joined.names:
        members[joined.of(name)].add(name)
    sizes = [(compiled.functions.get) for compiled in (base, other)]
    return [
        Group(
            other,
            frozenset(names & changed),
            frozenset(names),
            sum((sizes[0](name) or 0) - (sizes[1](name) or 0) for name in names),
        )
        for names in members.values()
    ]


def _by_caller(decisions: Sequence[Decision]) -> dict[str, dict[Site, bool]]:
    found: dict[str, list[Decision]] = defaultdict(list)
    for decision in decisions:
        found[decision.caller].append(decision)
    return {name: as_mapping(of_it) for name, of_it in found.items()}


class _Joined:
    """Names in disjoint sets."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    @property
    def names(self) -> set[str]:
        return set(self._parent)

    def of(self, name: str) -> str:
        while (parent := self._parent.get(name, name)) != name:
            name = parent
        return name

    def join(self, first: str, second: str) -> None:
        for name in (first, second):
            self._parent.setdefault(name, name)
        self._parent[self.of(first)] = self.of(second)
