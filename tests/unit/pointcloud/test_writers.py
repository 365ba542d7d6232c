"""What is written is read by another library."""

import io
from typing import Any

import numpy as np
import pytest
import trimesh

from services.pointcloud import writers
from tests.unit.pointcloud.files import TRIANGLES, VERTICES

FAR = VERTICES.astype(np.float64) + np.array([500_000, 5_000_000, 100])


def loaded(data, form) -> Any:
    return trimesh.load(io.BytesIO(data), file_type=form, process=False)


@pytest.mark.parametrize("points", [VERTICES, FAR], ids=["near", "far"])
def test_each_form(points):
    for found in (
        loaded(writers.ply(points, TRIANGLES, "a comment"), "ply"),
        loaded(writers.glb(points, TRIANGLES, {"model": "pointcloud/1"}), "glb").to_mesh(),
    ):
        np.testing.assert_allclose(found.vertices, points, atol=1e-6 if points is VERTICES else 1e-5)
        np.testing.assert_array_equal(found.faces, TRIANGLES)
    np.testing.assert_allclose(np.load(io.BytesIO(writers.npy(points))), points, atol=1e-6)
    bare = loaded(writers.ply(points, None), "ply")
    np.testing.assert_allclose(bare.vertices, points, atol=1e-6)
    cloud = next(iter(loaded(writers.glb(points, None, {}), "glb").geometry.values()))
    assert len(cloud.vertices) == len(points)


def test_normals_are_those_of_the_surface():
    mesh = trimesh.Trimesh(VERTICES, TRIANGLES, process=False)
    found = writers.normals(VERTICES, TRIANGLES)
    assert (np.einsum("nd,nd->n", found, mesh.vertex_normals) > 0.98).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    flat = writers.normals(np.zeros((3, 3), np.float32), np.array([[0, 1, 2]]))
    assert np.isfinite(flat).all()


def test_a_glb_keeps_to_the_standard():
    data = writers.glb(VERTICES, TRIANGLES, {})
    assert data[:4] == b"glTF"
    assert int.from_bytes(data[8:12], "little") == len(data)
    assert len(data) % 4 == 0
