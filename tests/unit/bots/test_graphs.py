"""Edges and ego graphs: cleaning, sampling that depends on nothing but seed and account."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.bots.graphs import Edges, Neighbourhood


def edges(*rows):
    columns = np.array(rows, np.int64).reshape(-1, 3).T
    return Edges(*columns)


def rows(found):
    return list(zip(found.source_E.tolist(), found.target_E.tolist(), found.relation_E.tolist(), strict=True))


def test_loops_and_duplicates_go_and_are_counted():
    cleaned, repairs = edges((0, 1, 0), (0, 1, 0), (0, 1, 1), (2, 2, 0), (1, 0, 0)).cleaned(3)
    assert rows(cleaned) == [(1, 0, 0), (0, 1, 0), (0, 1, 1)]
    assert repairs == {"self_loops": 1, "duplicate_edges": 1}
    assert len(Edges.none().cleaned(0)[0]) == 0


def test_both_ways():
    assert rows(edges((0, 1, 0), (1, 0, 0), (2, 1, 1)).both_ways()) == [(1, 0, 0), (0, 1, 0), (2, 1, 1), (1, 2, 1)]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 2)), max_size=60))
def test_cleaning_is_what_a_set_does(given_edges):
    cleaned, _ = edges(*given_edges).cleaned(10)
    assert sorted(rows(cleaned)) == sorted({edge for edge in given_edges if edge[0] != edge[1]})


def test_an_ego_graph_has_its_edges_and_no_others():
    near = Neighbourhood(edges((1, 0, 0), (2, 0, 1), (3, 1, 0), (0, 3, 0), (4, 5, 0)), 6)
    ego = near.ego(np.array([0]), (10, 10), 0)
    assert ego.nodes_M.tolist() == [0, 1, 2, 3]
    assert sorted(rows(ego.edges)) == [(1, 0, 0), (2, 0, 1), (3, 1, 0)]
    assert near.ego(np.array([4]), (10, 10), 0).nodes_M.tolist() == [4]


def test_the_same_seed_samples_the_same_and_the_fan_out_holds():
    near = Neighbourhood(edges(*((source, 0, 0) for source in range(1, 200))), 200)
    first, again, other = (near.ego(np.array([0]), (25,), seed) for seed in (1, 1, 2))
    assert np.array_equal(first.nodes_M, again.nodes_M)
    assert not np.array_equal(first.nodes_M, other.nodes_M)
    assert len(first.edges) == 25
