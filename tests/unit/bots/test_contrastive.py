"""Graph sets, the contrastive encoder with its augmentations, and what the pre-training report says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import csr_array

from services.bots.contrastive import (
    GIN,
    ContrastSettings,
    Synonyms,
    augmentations,
    collate,
    contrast,
    embed,
    nt_xent,
    pair_agreement,
    projection_head,
)
from services.bots.graph_sets import (
    NO_WORDS,
    BadGraphSet,
    Graph,
    common_words,
    document_graph,
    document_set,
    documentation,
    load_set,
    load_texts,
    load_tu,
    word_indices,
)
from services.bots.pretrain import (
    BASELINES,
    PretrainConfig,
    compare,
    cross_validate,
    findings,
    histogram,
    markdown,
    pretrain,
)
from shared.jobs.config import ConfigInvalid
from shared.jobs.context import JobStopped, LocalContext, StopReason

WIDTH = 4
TRIANGLE = "3 {}\n5 2 1 2\n7 2 0 2 0.5 0.25\n5 2 0 1\n"
PATH = "3 {}\n7 1 1\n7 2 0 2\n7 1 1\n"
TINY = PretrainConfig(set_name="tiny", epochs=2, seeds=1, folds=3, augmentations=("nodes", "none"), batch_size=8)


def random_graph(seed: int, nodes: int = 9, label: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    pairs = np.sort(rng.integers(nodes, size=(2 * nodes, 2)), 1)
    edges = np.unique(pairs[pairs[:, 0] != pairs[:, 1]].reshape(-1, 2), axis=0)
    return Graph(edges, rng.integers(WIDTH, size=nodes), label, NO_WORDS)


def graphs_of(count: int) -> list[Graph]:
    return [random_graph(seed, 5 + seed % 7, seed % 2) for seed in range(count)]


def check_valid(graph: Graph, width: int) -> None:
    assert len(graph.tags) >= 1
    assert graph.tags.min() >= 0
    assert graph.tags.max() <= width
    assert graph.edges.shape == (len(graph.edges), 2)
    if len(graph.edges):
        assert graph.edges.min() >= 0
        assert graph.edges.max() < len(graph.tags)
        assert (graph.edges[:, 0] < graph.edges[:, 1]).all()
        assert len(np.unique(graph.edges, axis=0)) == len(graph.edges)


def test_the_plain_text_form_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tiny.txt"
    path.write_text("2\n" + TRIANGLE.format(1) + PATH.format(-1))
    found = load_set(tmp_path, "tiny")
    triangle, line = found.graphs
    assert found.classes == ("-1", "1")
    assert found.labels().tolist() == [1, 0]
    assert found.width == 2
    assert triangle.edges.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert triangle.tags.tolist() == [0, 1, 0]
    assert line.edges.tolist() == [[0, 1], [1, 2]]
    assert line.degrees().tolist() == [1, 2, 1]


def test_a_set_of_one_tag_has_the_degree_as_its_feature(tmp_path: Path) -> None:
    star = "71 0\n0 70 " + " ".join(map(str, range(1, 71))) + "\n" + "0 1 0\n" * 70
    path = tmp_path / "star.txt"
    path.write_text("1\n" + star)
    found = load_tu(path)
    assert found.width == 65
    assert found.graphs[0].tags.tolist() == [64] + [1] * 70


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "ends where the count"),
        ("two\n", "line 1"),
        ("1\n3\n", "line 2: `n label`"),
        ("1\n1 0\n", "ends where `tag degree"),
        ("1\n2 0\n0 1 1\n0 2 0\n", "line 4"),
        ("1\n2 0\n0 1 1\n0 1 2\n", "line 4: a neighbour is not in 0–1"),
        ("1\n1 0\n0 x\n", "line 3: tag and degree"),
        ("1\n0 0\n", "0 nodes"),
        ("0\n", "no graph"),
        ("1\n1 0\n0 0\n9 9\n", "line 4: more graphs"),
    ],
)
def test_errors_name_the_file_and_the_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(text)
    with pytest.raises(BadGraphSet, match=says) as caught:
        load_tu(path)
    assert caught.value.extra["file"] == "bad.txt"
    assert str(tmp_path) not in caught.value.detail


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadGraphSet, match=r"no file NCI1\.txt"):
        load_set(tmp_path, "NCI1")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadGraphSet, match="cannot be read"):
        load_set(tmp_path, "binary")


def test_a_text_becomes_a_co_occurrence_graph(tmp_path: Path) -> None:
    path = tmp_path / "texts.tsv"
    path.write_text("x\tThe cat saw the dog.\ny\tdog, the cat!\n")
    found = load_set(tmp_path, "texts")
    assert found.vocabulary == ("cat", "dog", "saw", "the")
    first = found.graphs[0]
    assert first.words.tolist() == [3, 0, 2, 3, 1]
    assert first.tags.tolist() == [0, 1, 2, 3]
    # the–cat, the–saw, cat–saw, cat–the, saw–the, saw–dog, the–dog; a word is not linked with itself
    assert first.edges.tolist() == [[0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    path.write_text("x\tfine\nno tab\n")
    with pytest.raises(BadGraphSet, match="line 2"):
        load_texts(path)


def test_the_vocabulary_is_the_most_frequent_words() -> None:
    assert common_words(["b b a a c", "a d"], 2) == ()  # one letter is no word
    vocabulary = common_words(["bb bb aa aa cc", "aa dd"], 2)
    assert vocabulary == ("aa", "bb")
    assert word_indices("zz bb cc aa", vocabulary).tolist() == [1, 0]
    assert not len(word_indices("zz", vocabulary))


def test_a_text_without_a_known_word_is_one_hidden_node() -> None:
    check_valid(graph := document_graph(NO_WORDS, WIDTH, 0), WIDTH)
    assert graph.tags.tolist() == [WIDTH]


def test_documentation_is_a_labelled_text_set_that_does_not_tell_its_labels(tmp_path: Path) -> None:
    root = tmp_path / "numbers"
    for package, verb in {"sums": "adds", "_hidden": "hides", "products": "multiplies", "few": "nearly"}.items():
        (root / package / "tests").mkdir(parents=True)
        said = "See numbers.sums and numbers.products for more words than twenty, which the text must have to be taken."
        code = "\n".join(
            f"def {verb}_{word}():\n    '''One {word} that {verb} it. {said}\n\n    >>> secret()\n    '''"
            for word in ("function", "again", "again", "third")[: 1 if package == "few" else 4]
        )
        for path in (root / package / "code.py", root / package / "tests" / "test_code.py"):
            path.write_text(code)
    (root / "setup.py").write_text("def setup():\n    pass")
    texts, labels = documentation(root, least=2)
    assert sorted(labels) == ["products"] * 3 + ["sums"] * 3
    assert sum("again" in text for text in texts) == 2
    assert not any({"numbers", "sums", "products", "secret"} & set(text.split()) for text in texts)


def nt_xent_by_loops(first: NDArray[np.float64], second: NDArray[np.float64], temperature: float) -> float:
    views = [*first, *second]
    losses: list[float] = []
    for i, view in enumerate(views):
        weight = [np.exp(view @ o / np.linalg.norm(view) / np.linalg.norm(o) / temperature) for o in views]
        partner = (i + len(first)) % len(views)
        losses.append(-np.log(weight[partner] / sum(value for k, value in enumerate(weight) if k != i)))
    return float(np.mean(losses))


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_nt_xent_equals_the_formula(temperature: float) -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 5, 7))
    found = nt_xent(torch.from_numpy(first), torch.from_numpy(second), temperature)
    assert float(found) == pytest.approx(nt_xent_by_loops(first, second, temperature), rel=1e-9)


def test_nt_xent_prefers_agreement() -> None:
    first = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    assert nt_xent(first, first) < nt_xent(first, first.roll(1, 0))


@pytest.mark.parametrize("seed", range(3))
def test_the_embedding_does_not_depend_on_the_order_of_nodes_or_graphs(seed: int) -> None:
    torch.manual_seed(seed)
    encoder = GIN(WIDTH)
    contrast(encoder, graphs_of(8), augmentations(WIDTH)["nodes"], ContrastSettings(epochs=1), np.random.default_rng(0))
    graph = random_graph(seed)
    place = np.random.default_rng(seed).permutation(len(graph.tags))
    tags = np.empty_like(graph.tags)
    tags[place] = graph.tags
    shuffled = replace(graph, edges=place[graph.edges][::-1], tags=tags)
    one, other = embed(encoder, [graph, random_graph(77)]), embed(encoder, [random_graph(77), shuffled])
    np.testing.assert_allclose(one[0], other[1], rtol=1e-4, atol=1e-4)
    assert not np.allclose(one[0], one[1], atol=1e-2)


def test_the_first_layer_is_the_gin_formula() -> None:
    torch.manual_seed(0)
    encoder = GIN(WIDTH, hidden=6, layers=1).eval()
    graph = random_graph(3)
    adjacency = np.zeros((9, 9), np.float32)
    adjacency[tuple(graph.edges.T)] = adjacency[tuple(graph.edges.T[::-1])] = 1
    one_hot = torch.eye(WIDTH + 1)[torch.from_numpy(graph.tags)]
    nodes = (torch.from_numpy(adjacency) + torch.eye(9)) @ one_hot @ encoder.embed.weight
    with torch.inference_mode():
        expected = encoder.norms[0](encoder.perceptrons[0](nodes)).sum(0)
        torch.testing.assert_close(encoder(collate([graph]))[0], expected)


@given(
    seed=st.integers(0, 10_000), nodes=st.integers(1, 15), name=st.sampled_from(["nodes", "edges", "mask", "subgraph"])
)
@settings(max_examples=60, deadline=None)
def test_an_augmented_graph_is_valid(seed: int, nodes: int, name: str) -> None:
    rng = np.random.default_rng(seed)
    graph = random_graph(seed, nodes)
    for ratio in (0.2, 0.9):
        check_valid(changed := augmentations(WIDTH, ratio=ratio)[name](graph, rng), WIDTH)
        lost = int(ratio * nodes) if name in ("nodes", "subgraph") else 0
        assert len(changed.tags) == nodes - lost
        assert len(changed.edges) <= len(graph.edges)
        if name == "mask":
            assert (changed.tags == WIDTH).sum() == int(ratio * nodes)


def test_ratio_nought_is_the_identity() -> None:
    synonyms = Synonyms([np.array([1]), np.array([0]), NO_WORDS, NO_WORDS])
    document = document_graph(np.array([0, 2, 1, 3, 0]), WIDTH, 1)
    for name, augment in augmentations(WIDTH, synonyms, ratio=0).items():
        graph = document if name == "text" else random_graph(5)
        changed = augment(graph, np.random.default_rng(0))
        np.testing.assert_array_equal(changed.edges, graph.edges)
        np.testing.assert_array_equal(changed.tags, graph.tags)
        np.testing.assert_array_equal(changed.words, graph.words)
        assert changed.label == graph.label


def test_a_subgraph_stays_connected_where_the_graph_is() -> None:
    ring = Graph(np.array([[i, i + 1] for i in range(19)] + [[0, 19]]), np.zeros(20, np.int64), 0, NO_WORDS)
    for seed in range(10):
        part = augmentations(WIDTH)["subgraph"](ring, np.random.default_rng(seed))
        assert len(part.tags) == 16
        assert len(part.edges) == 15  # 16 nodes of a ring that hang together


def test_the_augmentation_of_texts_takes_known_words_and_keeps_the_length() -> None:
    text = "the quick algorithm returns an array of values and the matrix of errors for every output of the function"
    found = document_set("words", [text, "arrays outputs error methods algorithms functions value"], ["x", "y"])
    synonyms = Synonyms.load(found.vocabulary)
    word = {name: index for index, name in enumerate(found.vocabulary)}
    assert word["array"] in synonyms.near[word["arrays"]]
    graph = found.graphs[0]
    augment = augmentations(found.width, synonyms)["text"]
    known = set(graph.words.tolist()) | {near for w in graph.words for near in synonyms.near[w].tolist()}
    changes = 0
    for seed in range(20):
        changed = augment(graph, np.random.default_rng(seed))
        check_valid(changed, found.width)
        assert len(graph.words) <= len(changed.words) <= 1.2 * len(graph.words)
        assert set(changed.words.tolist()) <= known
        changes += not np.array_equal(changed.words, graph.words)
    assert changes > 10
    empty = document_graph(NO_WORDS, found.width, 0)
    assert augment(empty, np.random.default_rng(0)).tags.tolist() == [found.width]


def test_synonyms_are_the_nearest_above_a_threshold() -> None:
    vectors = np.array([[1, 0], [1, 0.1], [0, 1]], np.float32)
    near = Synonyms.nearest(vectors, np.array([0, 2, 3]), 4).near
    assert [found.tolist() for found in near] == [[2], [], [0], []]


def test_gradients_reach_every_weight() -> None:
    torch.manual_seed(0)
    encoder = GIN(WIDTH)
    head = projection_head(encoder.features)
    first, second = (head(encoder(collate(graphs_of(count)[-6:]))) for count in (6, 12))
    nt_xent(first, second).backward()
    for name, weight in [*encoder.named_parameters(), *head.named_parameters()]:
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert weight.grad.abs().sum() > 0 or name == "2.bias", name
    assert encoder.embed.weight.grad is not None
    assert not encoder.embed.weight.grad[WIDTH].any()  # the hidden feature stays the zero vector


def losses_of(seed: int, epochs: int = 3) -> list[float]:
    torch.manual_seed(seed)
    chosen = ContrastSettings(epochs=epochs, batch_size=16)
    return contrast(GIN(WIDTH), graphs_of(16), augmentations(WIDTH)["nodes"], chosen, np.random.default_rng(seed))


def test_the_same_seed_gives_the_same_losses_and_the_loss_falls() -> None:
    assert losses_of(1) == losses_of(1)
    assert losses_of(1) != losses_of(2)
    history = losses_of(0, 40)
    assert np.mean(history[-5:]) < 0.6 * history[0]


def test_pairs_agree_when_the_views_are_of_the_same_graphs() -> None:
    first = np.random.default_rng(0).normal(size=(40, 12)).astype(np.float32)
    assert pair_agreement(first, first) > 0.95
    assert abs(pair_agreement(first, np.roll(first, 1, 0))) < 0.2
    assert pair_agreement(np.ones((4, 3), np.float32), np.ones((4, 3), np.float32)) == 0


def test_a_feature_that_is_the_label_is_classified_and_kept() -> None:
    labels = np.arange(30) % 2
    features = np.stack([labels, np.ones(30)], 1).astype(np.float32)
    folds = [(np.setdiff1d(np.arange(30), rows), rows) for rows in np.split(np.arange(30), 3)]
    accuracy, kept = cross_validate(features, labels, folds, 0, {"same": features, "flipped": 1 - features})
    assert accuracy.tolist() == [1, 1, 1]
    assert kept == {"same": 1, "flipped": 0}
    assert cross_validate(csr_array(features), labels, folds, 0)[0].tolist() == [1, 1, 1]


def test_the_histogram_of_many_words_is_sparse() -> None:
    found = histogram(document_set("words", ["one two three", "four five six"], ["x", "y"]))
    assert isinstance(found, csr_array)
    assert found.sum() == 12  # six words in two texts, and their degrees


def table_of(**accuracies: list[list[float]]) -> list[Mapping[str, Any]]:
    learned = np.array(accuracies.pop("learned"))
    return [compare("nodes", learned, name, np.array(found)) for name, found in accuracies.items()]


def test_the_words_say_so_when_the_learned_encoder_equals_the_untrained_one() -> None:
    same = [[0.8, 0.9], [0.7, 0.9]]
    (sentence,) = findings(table_of(learned=same, untrained=same, majority=[[0.5, 0.5], [0.5, 0.5]]))
    assert "beats the majority class (+32.50 ± 3.54)" in sentence
    assert "does not beat the untrained encoder (+0.00 ± 0.00)" in sentence


def test_a_gain_within_one_standard_deviation_is_no_gain() -> None:
    assert not compare("a", np.array([[0.7], [0.9]]), "b", np.array([[0.7], [0.8]]))["beats"]
    assert compare("a", np.array([[0.7], [0.8]]), "b", np.array([[0.65], [0.76]]))["beats"]
    # With one seed the folds are the pairs.
    assert not compare("a", np.array([[0.7, 0.9]]), "b", np.array([[0.7, 0.8]]))["beats"]


@pytest.fixture
def rings_and_stars(tmp_path: Path) -> Path:
    """Twelve rings and twelve stars of five to sixteen nodes."""
    text = ["24"]
    for size in range(5, 17):
        text += [f"{size} 0", *(f"{node % 2} 2 {(node - 1) % size} {(node + 1) % size}" for node in range(size))]
        text += [f"{size} 1", f"0 {size - 1} " + " ".join(map(str, range(1, size))), *["1 1 0"] * (size - 1)]
    (tmp_path / "tiny.txt").write_text("\n".join(text))
    return tmp_path


class Stopping(LocalContext):
    """Asks to stop when `allowed` checkpoints are made."""

    def __init__(self, folder: Path, allowed: int) -> None:
        super().__init__(folder)
        self.allowed = allowed

    def checkpoint(self, state: Mapping[str, NDArray[Any]]) -> None:
        super().checkpoint(state)
        self.allowed -= 1

    def should_stop(self) -> StopReason | None:
        return StopReason.SHUTDOWN if self.allowed <= 0 else None


def test_the_recipe_reports_every_baseline_and_goes_on_where_it_stopped(rings_and_stars: Path, tmp_path: Path) -> None:
    whole = pretrain(TINY, rings_and_stars, LocalContext(tmp_path / "whole"))
    with pytest.raises(JobStopped):
        pretrain(TINY, rings_and_stars, Stopping(tmp_path / "half", 4))
    resumed = pretrain(TINY, rings_and_stars, LocalContext(tmp_path / "half"))
    report = json.loads((whole / "report.json").read_text())
    assert report == json.loads((resumed / "report.json").read_text())
    assert list(report["accuracy"]) == [*BASELINES, "nodes", "none"]
    assert report["accuracy"]["majority"]["mean"] == pytest.approx(0.5)
    assert report["accuracy"]["histogram"]["mean"] > 0.9
    assert report["augmentations"]["none"]["label_kept"] == 1
    assert len(report["comparisons"]) == 6
    text = (whole / "report.md").read_text()
    assert text == markdown(report)
    assert all(sentence in text for sentence in report["findings"])


def test_the_histogram_counts_tags_and_degrees(rings_and_stars: Path) -> None:
    counts = histogram(load_set(rings_and_stars, "tiny"))
    assert isinstance(counts, np.ndarray)
    assert counts[0].sum() == 10  # five nodes, each counted by its tag and by its degree
    assert counts.any(0).all()


def test_texts_cannot_be_changed_where_there_are_none(rings_and_stars: Path, tmp_path: Path) -> None:
    config = TINY.model_copy(update={"augmentations": ("text",)})
    with pytest.raises(ConfigInvalid, match="no texts"):
        pretrain(config, rings_and_stars, LocalContext(tmp_path / "run"))


def test_a_set_with_a_class_too_small_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny.txt").write_text("2\n" + TRIANGLE.format(1) + PATH.format(0))
    with pytest.raises(BadGraphSet, match="10 graphs of each"):
        pretrain(TINY, tmp_path, LocalContext(tmp_path / "run"))
