import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.pointcloud import surface
from services.pointcloud.neighbours import covariances, local_features, nearest, normalise


def test_normalised_points_are_undone_by_scale_and_centre():
    points = np.random.default_rng(0).normal(size=(100, 3)) * [1, 20, 300] + [1e6, -5, 3]
    found = normalise(points)
    assert np.linalg.norm(found.points_N3, axis=1).max() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(found.points_N3.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(found.points_N3 * found.scale + found.centre_3, points, atol=1e-3)


def test_points_that_are_all_equal_and_coordinates_near_the_largest_float():
    same = normalise(np.full((5, 3), 0.1))
    assert (same.points_N3 == 0).all()
    assert same.scale == 1
    huge = normalise(np.array([[1.7e308, 0, 0], [-1.7e308, 0, 0]]))
    np.testing.assert_array_equal(huge.points_N3, [[1, 0, 0], [-1, 0, 0]])


def test_neighbours_are_those_that_a_full_search_finds():
    points = np.random.default_rng(0).normal(size=(200, 3))
    far = np.linalg.norm(points[:, None] - points, axis=-1)
    np.fill_diagonal(far, np.inf)
    np.testing.assert_array_equal(nearest(points, 16), np.argsort(far, axis=1)[:, :16])


def test_a_point_is_not_its_own_neighbour_among_duplicates():
    few = np.random.default_rng(0).normal(size=(10, 3))
    points = np.repeat(few, 40, axis=0)  # more duplicates than neighbours
    found = nearest(points, 16)
    assert not (found == np.arange(400)[:, None]).any()
    np.testing.assert_array_equal(points[found], np.repeat(points[:, None], 16, axis=1))
    np.testing.assert_allclose(local_features(points)[0][:, 3:], 0, atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 5, 16, 17])
def test_few_points_repeat_their_neighbours(count):
    found = nearest(np.random.default_rng(0).normal(size=(count, 3)), 16)
    assert found.shape == (count, 16)
    others = set(range(count)) - {0} or {0}
    assert set(found[0].tolist()) == others


def test_covariance_is_numpys():
    points = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    neighbours = nearest(points)
    mine = covariances(points, neighbours)
    for index in (0, 7, 49):
        theirs = np.cov(points[neighbours[index]].T, bias=True)
        np.testing.assert_allclose(mine[index].reshape(3, 3), theirs, rtol=1e-4, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(18, 80))
def test_features_do_not_depend_on_the_order_of_points(seed, count):
    random = np.random.default_rng(seed)
    points = random.normal(size=(count, 3)).astype(np.float32)
    order = random.permutation(count)
    plain, turned = local_features(points)[0], local_features(points[order])[0]
    np.testing.assert_allclose(turned, plain[order], atol=1e-5)


@pytest.mark.parametrize("kind", ["grid", "sphere", "learned"])
def test_surfaces_have_points_and_triangles_at_any_resolution(kind):
    for resolution in (2, 7, 20):
        points, triangles = surface.points(kind, resolution), surface.triangles(kind, resolution)
        assert points.shape == (resolution**2, surface.dimension(kind))
        assert set(np.unique(triangles)) == set(range(resolution**2))
    if kind == "sphere":
        corners = points[triangles]
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        assert (np.einsum("td,td->t", normal, corners[:, 0]) > 0).all()  # all look outwards
        assert len(triangles) == 2 * len(points) - 4  # Euler: it is closed
    else:
        assert len(triangles) == 2 * 19**2
        assert np.abs(points).max() == pytest.approx(0.3)
