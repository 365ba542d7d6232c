"""Reads sets of labelled graphs: TU sets in the plain text form, and texts as word co-occurrence graphs.

Shapes: N nodes, E undirected edges, L words of a document. A node's feature is a one-hot vector that is kept as its
index in 0…width−1; the index `width` stands for a hidden feature, the zero vector.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.problems import InputError

DEGREE_CAP = 64
VOCABULARY = 2000
WINDOW = 3
SCIPY_DOCS = "scipy-docs"
LEAST_OF_A_CLASS = 60
DOCUMENT_WORDS = 100
NO_WORDS: NDArray[np.int64] = np.zeros(0, np.int64)
_WORD = re.compile(r"[^\W\d_]{2,}")
_CODE = re.compile(r"^\s*(>>>|\.\.\.|\.\. ).*$", re.MULTILINE)


class BadGraphSet(InputError):
    """A graph set that cannot be read; names the file and the line."""

    code = "bots-bad-graph-set"
    title = "The graph set is not valid"
    advice = "Mend the file and line that the detail names."


@dataclass(frozen=True, eq=False)
class Graph:
    """`edges` (E, 2) each once, smaller node first; `tags` (N,) feature indices; `words` (L,) of a document."""

    edges: NDArray[np.int64]
    tags: NDArray[np.int64]
    label: int
    words: NDArray[np.int64]

    def degrees(self) -> NDArray[np.int64]:
        """(N,) neighbours of each node."""
        return np.bincount(self.edges.ravel(), minlength=len(self.tags))


@dataclass(frozen=True, eq=False)
class GraphSet:
    """`width` is the number of feature indices; `classes` names label 0, 1, …; `vocabulary` names a word's index."""

    name: str
    graphs: tuple[Graph, ...]
    width: int
    classes: tuple[str, ...]
    vocabulary: tuple[str, ...] = ()

    def labels(self) -> NDArray[np.int64]:
        """(graphs,) the class of each."""
        return np.array([graph.label for graph in self.graphs], np.int64)


def load_set(data: Path, name: str) -> GraphSet:
    """The set `name`: a file `data`, or the file NAME.txt (TU form) or NAME.tsv (texts) of the folder `data`.

    The name scipy-docs needs no data: it is the documentation of the installed SciPy (see `documentation`).
    """
    if name == SCIPY_DOCS:
        return document_set(name, *scipy_documents())
    if data.is_dir():
        found = [path for suffix in (".txt", ".tsv") if (path := data / f"{name}{suffix}").is_file()]
        if not found:
            raise BadGraphSet(f"The folder has no file {name}.txt or {name}.tsv.", file=f"{name}.txt")
        data = found[0]
    return load_texts(data, name) if data.suffix == ".tsv" else load_tu(data, name)


def load_tu(path: Path, name: str = "") -> GraphSet:
    """The count of graphs; per graph a line `n label` and n lines `tag degree neighbour…`; what follows is ignored.

    The node feature is the tag, or the degree (at most 64) in a set that has one tag only. Neighbours are taken as
    undirected and once each. Raises BadGraphSet naming the line.
    """
    lines = _numbers(path)
    (count,) = _take(path, lines, 1, "the count of graphs")
    found: list[tuple[NDArray[np.int64], list[int], int]] = []
    for _ in range(count):
        nodes, label = _take(path, lines, 2, "`n label` of a graph")
        if nodes < 1:
            raise BadGraphSet(f"{path.name}: a graph has {nodes} nodes.", file=path.name)
        tags: list[int] = []
        pairs: set[tuple[int, int]] = set()
        for node in range(nodes):
            tag, *neighbours = _node(path, lines, nodes)
            tags.append(tag)
            pairs |= {(min(node, other), max(node, other)) for other in neighbours if other != node}
        found.append((np.array(sorted(pairs), np.int64).reshape(-1, 2), tags, label))
    for line, _ in lines:
        raise BadGraphSet(
            f"{path.name}, line {line}: more graphs than the {count} announced.", file=path.name, line=line
        )
    if not found:
        raise BadGraphSet(f"{path.name} has no graph.", file=path.name)
    labels = sorted({label for _, _, label in found})
    known = sorted({tag for _, tags, _ in found for tag in tags})
    number = {tag: index for index, tag in enumerate(known)}
    graphs = [
        Graph(edges, np.array([number[tag] for tag in tags], np.int64), labels.index(label), NO_WORDS)
        for edges, tags, label in found
    ]
    width = len(known)
    if width == 1:
        graphs = [replace(graph, tags=np.minimum(graph.degrees(), DEGREE_CAP)) for graph in graphs]
        width = DEGREE_CAP + 1
    return GraphSet(name or path.stem, tuple(graphs), width, tuple(str(label) for label in labels))


def _numbers(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every line that is not empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadGraphSet(f"{path.name} cannot be read as text.", file=path.name) from error
    return ((line, fields) for line, row in enumerate(text.splitlines(), 1) if (fields := row.split()))


def _integers(path: Path, line: int, fields: Sequence[str], what: str) -> list[int]:
    try:
        return [int(field) for field in fields]
    except ValueError:
        raise BadGraphSet(
            f"{path.name}, line {line}: {what} must be whole numbers.", file=path.name, line=line
        ) from None


def _take(path: Path, lines: Iterator[tuple[int, list[str]]], size: int, what: str) -> list[int]:
    """The next line, which has exactly `size` whole numbers."""
    line, fields = next(lines, (0, []))
    if not line:
        raise BadGraphSet(f"{path.name} ends where {what} is expected.", file=path.name)
    if len(fields) != size:
        raise BadGraphSet(f"{path.name}, line {line}: {what} is expected.", file=path.name, line=line)
    return _integers(path, line, fields, what)


def _node(path: Path, lines: Iterator[tuple[int, list[str]]], nodes: int) -> list[int]:
    """Tag and neighbours of the next line."""
    line, fields = next(lines, (0, []))
    if not line:
        raise BadGraphSet(f"{path.name} ends where `tag degree neighbour…` is expected.", file=path.name)
    head = _integers(path, line, fields[:2], "tag and degree")
    if len(head) < 2 or head[1] < 0 or len(fields) < 2 + head[1]:
        raise BadGraphSet(
            f"{path.name}, line {line}: `tag degree neighbour…` is expected, with as many neighbours as the degree.",
            file=path.name,
            line=line,
        )
    neighbours = _integers(path, line, fields[2 : 2 + head[1]], "neighbours")
    if any(not 0 <= other < nodes for other in neighbours):
        raise BadGraphSet(f"{path.name}, line {line}: a neighbour is not in 0–{nodes - 1}.", file=path.name, line=line)
    return [head[0], *neighbours]


def load_texts(path: Path, name: str = "") -> GraphSet:
    """Documents from lines `label<TAB>text`. Raises BadGraphSet naming the line."""
    try:
        rows = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadGraphSet(f"{path.name} cannot be read as text.", file=path.name) from error
    texts, labels = [], []
    for line, row in enumerate(rows, 1):
        label, tab, text = row.partition("\t")
        if not tab or not label.strip() or not text.strip():
            raise BadGraphSet(f"{path.name}, line {line}: `label<TAB>text` is expected.", file=path.name, line=line)
        texts.append(text)
        labels.append(label.strip())
    if not texts:
        raise BadGraphSet(f"{path.name} has no text.", file=path.name)
    return document_set(name or path.stem, texts, labels)


def document_set(name: str, texts: Sequence[str], labels: Sequence[str]) -> GraphSet:
    """The vocabulary comes from these texts, without their labels."""
    vocabulary = common_words(texts)
    classes = tuple(sorted(set(labels)))
    graphs = tuple(
        document_graph(word_indices(text, vocabulary), len(vocabulary), classes.index(label))
        for text, label in zip(texts, labels, strict=True)
    )
    return GraphSet(name, graphs, len(vocabulary), classes, vocabulary)


def split_words(text: str) -> list[str]:
    """Lower-case words of two letters or more."""
    return _WORD.findall(text.lower())


def common_words(texts: Sequence[str], size: int = VOCABULARY) -> tuple[str, ...]:
    """The `size` most frequent words; ties in alphabetical order."""
    counts = Counter(word for text in texts for word in split_words(text))
    return tuple(sorted(sorted(counts, key=lambda word: (-counts[word], word))[:size]))


def word_indices(text: str, vocabulary: Sequence[str]) -> NDArray[np.int64]:
    """(L,) positions in the sorted vocabulary; other words are left out."""
    words = np.array(split_words(text), dtype=str)
    if not len(words) or not vocabulary:
        return NO_WORDS
    found = np.searchsorted(np.array(vocabulary), words)
    found[found == len(vocabulary)] = 0
    return found[np.array(vocabulary)[found] == words].astype(np.int64)


def document_graph(words: NDArray[np.int64], width: int, label: int) -> Graph:
    """Unique words as nodes; two are linked where they stand within a window of three words.

    A text without a known word becomes one node with the hidden feature.
    """
    if not len(words):
        return Graph(np.zeros((0, 2), np.int64), np.array([width]), label, words)
    tags, nodes = np.unique(words, return_inverse=True)
    pairs = np.concatenate([np.stack([nodes[:-gap], nodes[gap:]], 1) for gap in range(1, WINDOW)])
    pairs = np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], 1), axis=0)
    return Graph(pairs.reshape(-1, 2).astype(np.int64), tags.astype(np.int64), label, words)


def scipy_documents() -> tuple[list[str], list[str]]:
    """`documentation` of the installed SciPy: a real labelled text set that ships inside a wheel."""
    spec = importlib.util.find_spec("scipy")
    if spec is None or not spec.submodule_search_locations:
        raise BadGraphSet("SciPy is not installed.", file=SCIPY_DOCS)
    return documentation(Path(spec.submodule_search_locations[0]))


def documentation(root: Path, least: int = LEAST_OF_A_CLASS) -> tuple[list[str], list[str]]:
    """Texts and labels: what a package's folder says of its functions, classes and methods; the subpackage each is in.

    The first 100 words without code; the names of the package and its subpackages are struck out, because
    "scipy.stats" in a text would give the label away; texts that begin with the same 20 words are taken once;
    subpackages with fewer than `least` texts are left out. The sources are read, never imported.
    """
    found: dict[str, tuple[list[str], str]] = {}
    for path in sorted(root.rglob("*.py")):
        package = path.relative_to(root).parts[0]
        if package.startswith("_") or package.endswith(".py") or "tests" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            words = split_words(_CODE.sub("", ast.get_docstring(node) or ""))
            if len(words) >= 20:
                found.setdefault(" ".join(words[:20]), (words, package))
    counts = Counter(package for _, package in found.values())
    kept = {package for package, count in counts.items() if count >= least}
    texts = [
        " ".join([word for word in words if word not in counts and word != root.name][:DOCUMENT_WORDS])
        for words, package in found.values()
        if package in kept
    ]
    return texts, [package for _, package in found.values() if package in kept]
