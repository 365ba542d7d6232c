"""Data sets of accounts: tables, TwiBot-22's files, MGTAB's tensors, and what is refused or repaired."""

import json
import pickle

import numpy as np
import pyarrow as arrow
import pytest
import torch
from pyarrow import parquet

from services.bots.datasets import BadGraph, load_graph, validate, with_splits
from tests.unit.bots.making import table, write_graph, write_mgtab


def test_a_table_with_edges(tmp_path):
    write_graph(tmp_path, accounts=40, edges=[("a1", "friend", "a2"), ("a2", "follow", "a1"), ("a1", "friend", "a1")])
    graph = load_graph(tmp_path)
    assert (len(graph.ids), graph.relations) == (40, ("follow", "friend"))
    assert graph.edges.source_E.tolist() == [2, 1]
    assert graph.repairs == {"self_loops": 1}
    report = validate(tmp_path)
    assert report.state == "valid"
    assert report.counts["bots"] + report.counts["humans"] == 40


def test_parquet_says_the_same_as_csv(tmp_path):
    for kind in ("csv", "parquet"):
        (tmp_path / kind).mkdir()
        write_graph(tmp_path / kind, accounts=10, edges=[("a1", "friend", "a2")])
    rows = arrow.Table.from_pylist(table(10))
    parquet.write_table(rows, tmp_path / "parquet" / "accounts.parquet")
    (tmp_path / "parquet" / "accounts.csv").unlink()
    first, second = load_graph(tmp_path / "csv"), load_graph(tmp_path / "parquet")
    assert first.ids == second.ids
    assert np.array_equal(first.values_NP, second.values_NP, equal_nan=True)


def test_splits_are_stratified_and_disjoint(tmp_path):
    write_graph(tmp_path, accounts=200)
    graph = load_graph(tmp_path)
    split_N = with_splits(graph, graph.bot_N)
    assert np.bincount(split_N).tolist() == [140, 40, 20]
    for label in (0, 1):
        shares = np.bincount(split_N[graph.bot_N == label]) / (graph.bot_N == label).sum()
        assert shares == pytest.approx([0.7, 0.2, 0.1], abs=0.02)


@pytest.mark.parametrize(
    ("edges", "told"),
    [
        ([("a1", "friend", "nobody")], "edges.csv line 2, target: 'nobody' is no account"),
        ([("a1", "friend", "a2"), ("8.41E+17", "friend", "a2")], "line 3, source: '8.41E\\+17' is in float notation"),
        ([("a1", "friend", "a2"), ("a2", "", "a3")], "line 3, relation: it is empty"),
    ],
)
def test_an_edge_to_nowhere_names_its_line(tmp_path, edges, told):
    write_graph(tmp_path, accounts=5, edges=edges)
    with pytest.raises(BadGraph, match=told):
        load_graph(tmp_path)
    assert validate(tmp_path).state == "flawed"
    assert len(load_graph(tmp_path, exclude=True).edges) == len(edges) - 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"followers_count": "-5"}, "accounts.csv line 4: Account 4, followers_count: a count cannot be negative"),
        ({"created_at": "soon"}, "created_at: 'soon' is not a date"),
        ({"bot": "maybe"}, "bot: 'maybe' is none of"),
        ({"stance": "left"}, "stance: 'left' is none of"),
    ],
)
def test_a_bad_row_is_reported_excluded_or_refused(tmp_path, change, told):
    write_graph(tmp_path, accounts=6, change={2: change})
    with pytest.raises(BadGraph, match=told):
        load_graph(tmp_path)
    [finding] = validate(tmp_path).findings
    assert (finding.file, finding.line) == ("accounts.csv", 4)
    assert len(load_graph(tmp_path, exclude=True).ids) == 5


def test_ids_in_float_notation_and_repeated_accounts_are_repaired(tmp_path):
    write_graph(tmp_path, accounts=6, change={1: {"id": "8.41E+17"}, 2: {"id": "8.41E+17"}, 4: {"id": "a3"}})
    graph = load_graph(tmp_path)
    assert graph.repairs == {"float_ids": 2, "repeated_accounts": 1}
    assert graph.ids == ["a0", "accounts.csv:3", "accounts.csv:4", "a3", "a5"]


def test_a_profile_of_fifty_megabytes_names_its_line(tmp_path):
    write_graph(tmp_path, accounts=6, change={2: {"description": "x" * 50_000_000}})
    with pytest.raises(BadGraph, match=r"accounts\.csv line 4: .*field larger than field limit"):
        load_graph(tmp_path)


def test_twibot_files(tmp_path):
    users = [
        {
            "id": f"u{number}",
            "username": "x" * 5,
            "name": "n",
            "description": "d",
            "created_at": "2015-01-01 00:00:00+00:00",
            "public_metrics": {"followers_count": 1, "following_count": 2, "tweet_count": 3, "listed_count": 0},
        }
        for number in range(4)
    ]
    (tmp_path / "node.json").write_text(json.dumps([*users, {"id": "t9", "text": "a tweet"}]))
    (tmp_path / "label.csv").write_text("id,label\nu0,human\nu1,bot\nu2,bot\n")
    (tmp_path / "split.csv").write_text("id,split\nu0,train\nu1,valid\nu2,test\n")
    (tmp_path / "edge.csv").write_text("source_id,relation,target_id\nu0,follow,u1\nu0,post,t9\nu1,friend,u2\n")
    graph = load_graph(tmp_path)
    assert graph.ids == ["u0", "u1", "u2", "u3"]
    assert graph.bot_N.tolist() == [0, 1, 1, -1]
    assert graph.split_N.tolist() == [0, 1, 2, -1]
    assert (graph.relations, len(graph.edges)) == (("follow", "friend"), 2)
    assert graph.repairs == {"edges_to_no_account": 1}


def test_mgtab_tensors(tmp_path):
    write_mgtab(tmp_path, accounts=50, edges=200)
    graph = load_graph(tmp_path)
    assert graph.values_NP.shape == (50, 20)
    assert graph.embedding_ND is not None
    assert graph.embedding_ND.shape == (50, 768)
    assert len(graph.relations) == 7


class Malicious:
    def __reduce__(self):
        return print, ("executed",)


def test_pickled_code_in_a_tensor_file_is_not_run(tmp_path, capsys):
    write_mgtab(tmp_path, accounts=50, edges=200)
    (tmp_path / "features.pt").write_bytes(pickle.dumps(Malicious()))
    torch.save({"x": Malicious()}, tmp_path / "edge_type.pt")
    report = validate(tmp_path)
    assert report.state == "invalid"
    assert "not a plain tensor" in report.findings[0].problem
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "tensor", "told"),
    [
        ("edge_index", torch.tensor([[0, 99], [1, 1]]), "do not fit together"),
        ("edge_type", torch.full((200,), 9), "type is not in 0–6"),
        ("labels_bot", torch.full((50,), 2), "labels_bot"),
        ("features", torch.zeros(50, 3), "shape"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, name, tensor, told):
    write_mgtab(tmp_path, accounts=50, edges=200)
    torch.save(tensor, tmp_path / f"{name}.pt")
    with pytest.raises(BadGraph, match=told):
        load_graph(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("accounts.json", "[" * 100_000, "not JSON"),
        ("accounts.json", '{"a": 1}', "not a list of account objects"),
        ("accounts.parquet", "no parquet", "not a Parquet table"),
        ("accounts.csv", "", "No account"),
        ("readme.txt", "x", "no table of accounts"),
    ],
)
def test_files_that_are_no_tables(tmp_path, name, content, told):
    (tmp_path / name).write_text(content)
    report = validate(tmp_path)
    assert report.state == "invalid"
    assert told in report.findings[0].problem


def test_edge_tables_that_lack_a_column(tmp_path):
    write_graph(tmp_path, accounts=5)
    (tmp_path / "edges.csv").write_text("source,target\na1,a2\n")
    with pytest.raises(BadGraph, match="lacks the column 'relation'"):
        load_graph(tmp_path)
