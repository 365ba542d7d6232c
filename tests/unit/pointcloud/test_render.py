import numpy as np
import pytest

from services.pointcloud.neighbours import local_features
from services.pointcloud.render import BACKGROUND, normals, render, turned, turned_about, upright


def test_nearer_points_hide_those_behind():
    points = np.array([[0.5, 0, 0], [-0.5, 0, 0]], np.float32)  # seen from +x
    image = render(points, 32, yaw=0, pitch=0)
    alone = render(points[:1], 32, yaw=0, pitch=0)
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    assert (image[16, 16] == alone[16, 16]).all()
    behind = render(points, 32, yaw=180, pitch=0)
    assert (behind[16, 16] == image[16, 16]).all()  # now the other one is in front, at the same depth
    assert (image != BACKGROUND).any()


def test_a_turned_camera_sees_what_a_turned_cloud_shows():
    cloud = np.random.default_rng(0).uniform(-0.5, 0.5, (300, 3)).astype(np.float32)
    np.testing.assert_allclose(turned(cloud, 40, 20), turned(turned_about(cloud, "z", -40), 0, 20), atol=1e-6)
    right, up, towards = turned(np.eye(3), 0).T
    np.testing.assert_allclose(right, [0, 1, 0], atol=1e-7)
    np.testing.assert_allclose(up, [0, 0, 1], atol=1e-7)
    np.testing.assert_allclose(towards, [1, 0, 0], atol=1e-7)


def test_a_shape_with_y_up_stands_as_gltf_says():
    """y goes up in the picture, and +z, its front, comes towards the camera."""
    given = np.eye(3, dtype=np.float32)  # x, y and z
    right, up, towards = turned(upright(given, "y"), 0).T
    np.testing.assert_allclose(right, [1, 0, 0], atol=1e-7)
    np.testing.assert_allclose(up, [0, 1, 0], atol=1e-7)
    np.testing.assert_allclose(towards, [0, 0, 1], atol=1e-7)
    np.testing.assert_array_equal(upright(given, "z"), given)
    cloud = np.random.default_rng(0).uniform(-0.5, 0.5, (50, 3)).astype(np.float32)
    both = upright(turned_about(cloud, "y", 30), "y"), turned_about(upright(cloud, "y").astype(np.float32), "z", 30)
    np.testing.assert_allclose(*both, atol=1e-6)
    np.testing.assert_allclose(turned_about(cloud, "y", 30)[:, 1], cloud[:, 1])


def test_normals_of_a_plane():
    plane = np.random.default_rng(0).uniform(-1, 1, (100, 3)).astype(np.float32) * [1, 1, 0]
    found = normals(local_features(plane)[0][:, 3:])
    np.testing.assert_allclose(np.abs(found[:, 2]), 1, atol=1e-4)
    shaded = render(plane / 2, 32, 0, 90, found)
    assert len(np.unique(shaded)) == 2  # one shade and the background


@pytest.mark.parametrize("points", [np.zeros((1, 3)), np.full((3, 3), 5.0)])
def test_one_point_and_points_outside_the_picture(points):
    assert render(points, 16).shape == (16, 16, 3)
