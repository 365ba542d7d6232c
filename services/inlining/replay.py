"""Call sites by name, from what the compiler says, and the replay file that makes stock LLVM decide as told.

A site is its callee and its place: `f:3:9` is line 3 (counted from f's first) and column 9 of f; `g:1:5 @ f:3:9` is
what was g's call, after g was inlined into f there. That is LLVM's own key, so one decision holds for every copy of a
site. LLVM says the whole place only of what it inlined; of the rest it says the innermost, and the others follow from
what was inlined before.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

_REMARK = re.compile(r"^--- !(\w+)\n(.*?)^\.\.\.$", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^(?P<args>  - )?(?P<key>\w+): +(?P<value>.*)$", re.MULTILINE)
_PLACE = re.compile(r"File: (?P<file>.*), Line: (?P<line>\d+), Column: (?P<column>\d+)")
_AT = re.compile(r" at callsite (?P<place>.*?);")
# Not decided by an advisor: no definition to inline, or an attribute that says yes or no.
_NOT_ASKED = ("definition is unavailable", "cost=never", "cost=always")


DEPTH, MOST_COPIES = 4, 200  # how far a call that nothing announced is looked for


@dataclass(frozen=True)
class Site:
    """A call site, for which LLVM decides once."""

    callee: str
    place: str  # from the innermost to the function that is being compiled

    @property
    def caller(self) -> str:
        return self.place.rpartition(" @ ")[2].rsplit(":", 2)[0]


@dataclass(frozen=True)
class Places:
    """Where functions begin, from `assembly.facts`."""

    functions: Mapping[str, Mapping[str, Any] | None]
    _by_file: dict[str, tuple[list[int], list[str]]] = field(default_factory=dict[str, tuple[list[int], list[str]]])

    def __post_init__(self) -> None:
        found: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for name, place in self.functions.items():
            if place is not None:
                found[place["file"]].append((place["line"], name))
        for file, entries in found.items():
            entries.sort()
            self._by_file[file] = ([line for line, _ in entries], [name for _, name in entries])

    def innermost(self, caller: str, file: str, line: int, column: int) -> str:
        """`name:offset:column` of a place in the source; of `caller` where no function is known there."""
        lines, names = self._by_file.get(file, ([], []))
        index = bisect_right(lines, line) - 1
        owner = names[index] if index >= 0 else caller
        start = self.functions.get(owner)
        if start is None:
            return f"{caller}:{line}:{column}"
        # LLVM counts without a sign: what the optimiser gave no line (0) is four thousand million lines below.
        return f"{start['name']}:{(line - start['line']) % 2**32}:{column}"

    def name(self, function: str) -> str:
        """What places call the function."""
        place = self.functions.get(function)
        return place["name"] if place else function


@dataclass(frozen=True)
class Decision:
    """What was decided at a site, and the row of its features where the compile was advised."""

    site: Site
    caller: str
    inlined: bool
    row: int = -1
    line: int = 0
    column: int = 0
    file: str = ""


def decisions_from_remarks(text: str, places: Places) -> list[Decision]:
    """Of a compile's remarks (YAML) of the pass `inline` or `inline-ml`, in order.

    `row` counts the remarks of `inline-ml`: it is the row of the site's features.
    """
    tracker = _Tracker(places)
    found: list[Decision] = []
    row = -1
    for kind, body in _REMARK.findall(text):
        fields = [(bool(args), key, _value(value)) for args, key, value in _FIELD.findall(body)]
        head = {key: value for args, key, value in fields if not args and not value.startswith("{")}
        said = "".join(value for args, _, value in fields if args)
        callee = next((value for args, key, value in fields if args and key == "Callee"), None)
        if callee is None:
            continue  # the advisor's word that the module has grown too much
        if "previously" not in said and any(words in said for words in _NOT_ASKED):
            continue  # a replay file's decisions alone are said to cost always or never
        inlined = kind == "Passed"
        if head["Pass"] == "inline-ml":
            row += 1
            inlined = said.endswith("true")
        at, place = _AT.search(said), _PLACE.search(body.partition("Args:")[0])
        where = (_value(place["file"]), int(place["line"]), int(place["column"])) if place else ("", 0, 0)
        found.append(
            tracker.decision(head.get("Function", ""), callee, *where, inlined, at["place"] if at else None, row)
        )
    return found


def _value(text: str) -> str:
    """A YAML scalar."""
    if text.startswith("'") and text.endswith("'") and len(text) > 1:
        return text[1:-1].replace("''", "'")
    if text.startswith('"') and text.endswith('"') and len(text) > 1:
        return re.sub(r"\\x([0-9A-Fa-f]{2})|\\(.)", lambda hit: chr(int(hit[1], 16)) if hit[1] else hit[2], text[1:-1])
    return text


class _Tracker:
    """Follows what was inlined where, so that a site has its whole place."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._left: dict[str, list[tuple[str, str]]] = defaultdict(list)  # function → (callee, place) not inlined
        self._waiting: dict[str, list[tuple[str, str]]] = defaultdict(list)  # function → those that inlining brought
        self._asked: dict[str, set[str]] = defaultdict(set)  # function → places of its calls so far
        self._inlined: dict[str, list[tuple[str, str]]] = defaultdict(list)  # function → (callee, place) inlined

    def decision(
        self,
        caller: str,
        callee: str,
        file: str,
        line: int,
        column: int,
        inlined: bool,
        place: str | None,
        row: int = -1,
    ) -> Decision:
        innermost = self._places.innermost(caller, file, line, column)
        waiting = self._waiting[caller]
        if place is None:
            place = next(
                (where for name, where in waiting if name == callee and where.partition(" @ ")[0] == innermost), None
            )
        if place is None:
            place = self._guess(caller, innermost)
        self._asked[caller].add(place)
        if (callee, place) in waiting:
            waiting.remove((callee, place))
        if inlined:
            self._inlined[caller].append((callee, place))
            waiting += [(name, f"{where} @ {place}") for name, where in self._left[callee]]
        else:
            self._left[caller].append((callee, place))
        return Decision(Site(callee, place), caller, inlined, row, line, column, file)

    def _guess(self, caller: str, innermost: str) -> str:
        """The place of a call that nothing announced: the function's own, or of the first inlined that has it and
        whose copy of it was not asked about yet."""
        owner = innermost.rsplit(":", 2)[0]
        if owner == self._places.name(caller):
            return innermost
        found = innermost
        for copy in islice(self._copies(caller, owner, DEPTH), MOST_COPIES):
            found = f"{innermost} @ {copy}"
            if found not in self._asked[caller]:
                break
        return found

    def _copies(self, caller: str, owner: str, depth: int) -> Iterator[str]:
        """Where the function that places call `owner` was inlined into the caller, straight or within another."""
        for callee, place in self._inlined[caller]:
            if self._places.name(callee) == owner:
                yield place
            if depth:
                for inner in self._copies(callee, owner, depth - 1):
                    yield f"{inner} @ {place}"


def replay_lines(decisions: Mapping[Site, bool]) -> str:
    """The file for `-cgscc-inline-replay`, a line a site."""
    return "".join(
        f"module:1:1: '{site.callee}' {'inlined into' if inlined else 'will not be inlined into'} '{site.caller}' "
        f"at callsite {site.place};\n"
        for site, inlined in decisions.items()
    )


def read_replay(text: str) -> dict[Site, bool]:
    """The decisions of a replay file; lines of another form are left out."""
    return dict(_replayed(text.splitlines()))


def _replayed(lines: Iterable[str]) -> Iterator[tuple[Site, bool]]:
    for line in lines:
        found = re.match(r"^.*?: '(.*)' (inlined into|will not be inlined into) '.*' at callsite (.*?);", line)
        if found is not None:
            yield Site(found[1], found[3]), found[2] == "inlined into"


def as_mapping(decisions: Iterable[Decision]) -> dict[Site, bool]:
    """Site → decision; where a site was decided several times, inlined if it ever was, as a replay has it."""
    found: dict[Site, bool] = {}
    for decision in decisions:
        found[decision.site] = found.get(decision.site, False) or decision.inlined
    return found


def replay_options(name: str) -> tuple[str, ...]:
    """LLVM's options for a replay file."""
    return (
        f"-cgscc-inline-replay={name}",
        "-cgscc-inline-replay-scope=Module",
        "-cgscc-inline-replay-fallback=Original",
        "-cgscc-inline-replay-format=LineColumn",
    )
