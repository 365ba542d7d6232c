"""Contrastive learning of graph embeddings: the GIN encoder, the NT-Xent loss, and the augmentations.

Shapes: B graphs, N nodes of all of them, E undirected edges, M = 2E directed edges, H hidden, D = layers × H embedding,
P projection, V vocabulary. After GraphCL (You et al. 2020) and GIN (Xu et al. 2019), in plain torch.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from services.bots.graph_sets import Graph, document_graph
from shared.problems import FourfoldError

HIDDEN = 32
LAYERS = 3
RATIO = 0.2
TEMPERATURE = 0.2
SYNONYMS = 5
LEAST_SIMILARITY = 0.4  # below it wordllama's neighbours are of one topic, not of one meaning

Augmentation = Callable[[Graph, Generator], Graph]


class NoWordVectors(FourfoldError):
    """The word vectors that the text augmentation needs are not installed."""

    code = "bots-no-word-vectors"
    title = "The word vectors are not installed"
    advice = "Install the extra `service`, which has them."


class GraphBatch(NamedTuple):
    """Graphs side by side: `tags_N`, `edges_2M` (source, target; both directions), `graph_N`, number of graphs."""

    tags_N: Tensor
    edges_2M: Tensor
    graph_N: Tensor
    graphs: int


def collate(graphs: Sequence[Graph], device: torch.device | str = "cpu") -> GraphBatch:
    """One GraphBatch of the graphs, in their order."""
    sizes = np.array([len(graph.tags) for graph in graphs])
    starts = np.cumsum(sizes) - sizes
    edges = np.concatenate([graph.edges + start for graph, start in zip(graphs, starts, strict=True)])
    tensors = (
        np.concatenate([graph.tags for graph in graphs]),
        np.concatenate([edges, edges[:, ::-1]]).T,
        np.repeat(np.arange(len(graphs)), sizes),
    )
    tags_N, edges_2M, graph_N = (torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in tensors)
    return GraphBatch(tags_N, edges_2M, graph_N, len(graphs))


class GIN(nn.Module):
    """GraphBatch → `embedding_BD`: hₗ = BN(ReLU(MLP(hₗ₋₁ + Σ neighbours hₗ₋₁))), each layer summed over the nodes.

    `width` is the number of feature indices; the index `width` is the zero vector. The sums of all layers are
    concatenated, as in GraphCL.
    """

    def __init__(self, width: int, hidden: int = HIDDEN, layers: int = LAYERS) -> None:
        super().__init__()
        self.embed = nn.Embedding(width + 1, hidden, padding_idx=width)
        nn.init.normal_(self.embed.weight, std=1 / math.sqrt(hidden))
        with torch.no_grad():
            self.embed.weight[width].zero_()
        self.perceptrons = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
            for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden) for _ in range(layers))
        self.features = hidden * layers

    def forward(self, batch: GraphBatch) -> Tensor:
        source_M, target_M = batch.edges_2M
        nodes_NH = self.embed(batch.tags_N)
        sums: list[Tensor] = []
        for perceptron, norm in zip(self.perceptrons, self.norms, strict=True):
            gathered_NH = nodes_NH.index_add(0, target_M, nodes_NH[source_M])
            nodes_NH = norm(perceptron(gathered_NH))
            sums.append(nodes_NH.new_zeros(batch.graphs, nodes_NH.shape[1]).index_add(0, batch.graph_N, nodes_NH))
        return torch.cat(sums, 1)


def projection_head(features: int) -> nn.Sequential:
    """Embedding (B, D) → projection (B, D) that the loss compares; it is thrown away after the training."""
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, features))


def nt_xent(first_BP: Tensor, second_BP: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """−log exp(s(i, j)/τ) / Σ_{k≠i} exp(s(i, k)/τ), the mean over all 2B views i; j is the other view of i's graph.

    s is the cosine. A scalar ≥ 0. Source: Chen et al. 2020 (SimCLR), equation 1.
    """
    views_QP = F.normalize(torch.cat([first_BP, second_BP]), dim=1)
    logits_QQ = views_QP @ views_QP.T / temperature
    itself_QQ = torch.eye(len(views_QP), dtype=torch.bool, device=views_QP.device)
    logits_QQ = logits_QQ.masked_fill(itself_QQ, -math.inf)
    other_Q = torch.arange(len(views_QP), device=views_QP.device).roll(len(first_BP))
    return F.cross_entropy(logits_QQ, other_Q)


class ContrastSettings(NamedTuple):
    """How `contrast` trains: GraphCL's values."""

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 0.01
    temperature: float = TEMPERATURE


def contrast(
    encoder: GIN,
    graphs: Sequence[Graph],
    augment: Augmentation,
    settings: ContrastSettings,
    rng: Generator,
    watch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> list[float]:
    """Train the encoder in place on two views of every graph; each epoch's mean loss. `watch` is told after each.

    The caller seeds torch (`torch.manual_seed`) before it makes the encoder, and owns `rng`.
    """
    device = encoder.embed.weight.device
    head = projection_head(encoder.features).to(device)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=settings.learning_rate)
    encoder.train()
    history: list[float] = []
    for epoch in range(settings.epochs):
        losses: list[float] = []
        order = rng.permutation(len(graphs))
        for rows in np.array_split(order, math.ceil(len(order) / settings.batch_size)):
            first, second = ([augment(graphs[row], rng) for row in rows] for _ in range(2))
            loss = nt_xent(
                head(encoder(collate(first, device))), head(encoder(collate(second, device))), settings.temperature
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        history.append(float(np.mean(losses)))
        watch(epoch + 1, history[-1])
    return history


def embed(encoder: GIN, graphs: Sequence[Graph], batch_size: int = 512) -> NDArray[np.float32]:
    """(graphs, D) in evaluation mode."""
    device = encoder.embed.weight.device
    encoder.eval()
    with torch.inference_mode():
        parts = [
            encoder(collate(graphs[start : start + batch_size], device)).cpu().numpy()
            for start in range(0, len(graphs), batch_size)
        ]
    return np.concatenate(parts)


def pair_agreement(first_BD: NDArray[np.float32], second_BD: NDArray[np.float32]) -> float:
    """Mean cosine of two views of the same graph minus that of views of different graphs; −2…2, 0 is chance.

    The columns are standardised first, as the classifier sees them: sums over nodes are all positive, so that plain
    cosines would be near 1 for any two graphs.
    """
    both = np.concatenate([first_BD, second_BD]).astype(np.float64)
    spread = both.std(0)
    both = (both - both.mean(0)) / np.where(spread > 0, spread, 1)
    both /= np.maximum(np.linalg.norm(both, axis=1, keepdims=True), 1e-12)
    graphs = len(first_BD)
    cosines_BB = both[:graphs] @ both[graphs:].T
    same = float(np.trace(cosines_BB))
    return same / graphs - (float(cosines_BB.sum()) - same) / max(graphs * (graphs - 1), 1)


def _induced(graph: Graph, kept: NDArray[np.int64]) -> Graph:
    """The subgraph on the nodes `kept`, in the old order."""
    kept = np.sort(kept)
    place = np.full(len(graph.tags), -1)
    place[kept] = np.arange(len(kept))
    edges = place[graph.edges]
    return Graph(edges[(edges >= 0).all(1)], graph.tags[kept], graph.label, graph.words)


def _least_kept(size: int, ratio: float) -> int:
    return max(1, size - int(ratio * size))


def drop_nodes(graph: Graph, rng: Generator, ratio: float = RATIO) -> Graph:
    """Without ⌊ratio × N⌋ random nodes; one at least stays."""
    size = len(graph.tags)
    return _induced(graph, rng.permutation(size)[: _least_kept(size, ratio)])


def perturb_edges(graph: Graph, rng: Generator, ratio: float = RATIO) -> Graph:
    """⌊ratio × E⌋ random edges go, and as many random pairs come, less those that are edges already."""
    count = int(ratio * len(graph.edges))
    if not count:
        return graph
    kept = rng.permutation(len(graph.edges))[count:]
    pairs = np.sort(rng.integers(len(graph.tags), size=(count, 2)), 1)
    edges = np.concatenate([graph.edges[kept], pairs[pairs[:, 0] != pairs[:, 1]]])
    return Graph(np.unique(edges, axis=0), graph.tags, graph.label, graph.words)


def mask_tags(graph: Graph, rng: Generator, width: int, ratio: float = RATIO) -> Graph:
    """⌊ratio × N⌋ random nodes get the hidden feature, the index `width`."""
    tags = graph.tags.copy()
    tags[rng.permutation(len(tags))[: int(ratio * len(tags))]] = width
    return Graph(graph.edges, tags, graph.label, graph.words)


def grow_subgraph(graph: Graph, rng: Generator, ratio: float = RATIO) -> Graph:
    """N − ⌊ratio × N⌋ nodes, grown from a random one along random edges; from a new one where a component ends."""
    size = len(graph.tags)
    wanted = _least_kept(size, ratio)
    neighbours: list[list[int]] = [[] for _ in range(size)]
    for one, other in graph.edges.tolist():
        neighbours[one].append(other)
        neighbours[other].append(one)
    draws = iter(rng.random(3 * size).tolist())
    seeds = iter(rng.permutation(size).tolist())
    seen = [False] * size
    border: list[int] = []
    kept: list[int] = []
    while len(kept) < wanted:
        if border:
            pick = int(next(draws) * len(border))
            border[pick], border[-1] = border[-1], border[pick]
            node = border.pop()
        else:
            node = next(seeds)
            if seen[node]:
                continue
            seen[node] = True
        kept.append(node)
        for other in neighbours[node]:
            if not seen[other]:
                seen[other] = True
                border.append(other)
    return _induced(graph, np.array(kept))


class Synonyms:
    """The words of a vocabulary that come nearest to each: `near[word]` has up to five indices, or none.

    Nearest by the cosine of wordllama's word vectors, at least 0.4. Words of several tokens have none: they would be
    near whatever begins with the same letters.
    """

    def __init__(self, near: Sequence[NDArray[np.int64]]) -> None:
        self.near = tuple(near)

    @classmethod
    def load(cls, vocabulary: Sequence[str]) -> Synonyms:
        """From the vectors in the installed package, which is read, never imported."""
        spec = importlib.util.find_spec("wordllama")
        if spec is None or not spec.submodule_search_locations:
            raise NoWordVectors("The package wordllama is not installed.")
        folder = Path(spec.submodule_search_locations[0])
        try:
            weights = load_file(folder / "weights" / "l2_supercat_256.safetensors")["embedding.weight"]
            tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
        except Exception as error:  # tokenizers raises nothing narrower
            raise NoWordVectors("The word vectors of the package wordllama cannot be read.") from error
        tokens = [tokenizer.encode(word, add_special_tokens=False).ids for word in vocabulary]
        whole = np.array([index for index, ids in enumerate(tokens) if len(ids) == 1], np.int64)
        if not len(whole):
            return cls([whole] * len(vocabulary))
        vectors = weights[[tokens[index][0] for index in whole]].astype(np.float32)
        return cls.nearest(vectors, whole, len(vocabulary))

    @classmethod
    def nearest(cls, vectors: NDArray[np.float32], words: NDArray[np.int64], size: int) -> Synonyms:
        """From one vector for each of `words` (indices in a vocabulary of `size`)."""
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        cosines_VV = vectors @ vectors.T
        np.fill_diagonal(cosines_VV, -1)
        near: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * size
        for word, cosines_V in zip(words, cosines_VV, strict=True):
            best = np.argsort(-cosines_V, kind="stable")[:SYNONYMS]
            near[word] = words[best[cosines_V[best] >= LEAST_SIMILARITY]]
        return cls(near)


def replace_and_insert(graph: Graph, rng: Generator, width: int, synonyms: Synonyms, ratio: float = RATIO) -> Graph:
    """In text space: ⌊ratio × L⌋ words become a synonym, ⌊ratio/2 × L⌋ synonyms are put in, and the graph is rebuilt.

    An inserted word is a synonym of a word of the document, at a random place (Wei and Zou 2019, EDA). A word without
    a synonym stays, so that documents of rare words change less.
    """
    words = graph.words.tolist()
    for place in rng.permutation(len(words))[: int(ratio * len(words))]:
        if len(near := synonyms.near[words[place]]):
            words[place] = int(rng.choice(near))
    for _ in range(int(ratio / 2 * len(graph.words))):
        if len(near := synonyms.near[int(rng.choice(graph.words))]):
            words.insert(int(rng.integers(len(words) + 1)), int(rng.choice(near)))
    return document_graph(np.array(words, np.int64), width, graph.label)


def augmentations(width: int, synonyms: Synonyms | None = None, ratio: float = RATIO) -> Mapping[str, Augmentation]:
    """Name → augmentation, for a set with `width` features; `text` only where there are synonyms."""
    table: dict[str, Augmentation] = {
        "nodes": lambda graph, rng: drop_nodes(graph, rng, ratio),
        "edges": lambda graph, rng: perturb_edges(graph, rng, ratio),
        "mask": lambda graph, rng: mask_tags(graph, rng, width, ratio),
        "subgraph": lambda graph, rng: grow_subgraph(graph, rng, ratio),
        "none": lambda graph, rng: graph,
    }
    if synonyms is not None:
        table["text"] = lambda graph, rng: replace_and_insert(graph, rng, width, synonyms, ratio)
    return table
