"""Every format is read as another library reads it; every lie is refused by its kind."""

import struct
from typing import Any

import numpy as np
import pytest
import trimesh

from services.pointcloud.formats import reading
from services.pointcloud.formats.geometry import Refused
from services.pointcloud.sampling import sample
from tests.unit.pointcloud.files import GOOD, TRIANGLES, VERTICES, exported, glb, las, npy, pcd, ply, xyz

AREA = trimesh.Trimesh(VERTICES, TRIANGLES, process=False).area


def parse(data: Any, **options) -> tuple[str, Any]:
    return reading.parse(data, **options)


def area(geometry):
    return trimesh.Trimesh(geometry.vertices_V3, geometry.triangles_T3, process=False).area


@pytest.mark.parametrize("row", GOOD)
def test_a_file_of_each_format(row):
    data, form, mesh = GOOD[row]
    found, geometry = parse(data)
    assert found == form
    points = np.asarray(geometry.vertices_V3, np.float64)
    if form == "las":
        points = points - [500_000, 5_000_000, 100]
    tolerance = 2e-4 if form == "las" else 1e-6
    if form == "stl":
        points = points.reshape(-1, 3, 3)
        np.testing.assert_allclose(points, VERTICES[TRIANGLES], atol=tolerance)
    elif mesh and len(points) == len(VERTICES):
        np.testing.assert_allclose(points, VERTICES, atol=tolerance)
        np.testing.assert_array_equal(geometry.triangles_T3, TRIANGLES)
    elif not mesh:
        np.testing.assert_allclose(points, VERTICES, atol=tolerance)
        assert geometry.triangles_T3 is None
    if mesh:
        assert area(geometry) == pytest.approx(AREA, rel=1e-5)


def test_polygons_are_cut_into_triangles():
    square = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0.5, 1.5, 0)]
    faces = [(0, 1, 2, 3), (2, 4, 3)]
    off = "OFF\n5 2 0\n" + "\n".join(" ".join(map(str, row)) for row in square) + "\n4 0 1 2 3\n3 2 4 3 255 0 0\n"
    obj = "\n".join("v " + " ".join(map(str, row)) for row in square) + "\nf 1/1/1 2//2 3/3 -2\nf -3 -1 4\n"
    for data in (off.encode(), obj.encode(), ply(square, faces), ply(square, faces, "ascii")):
        geometry = parse(data)[1]
        assert geometry.triangles_T3.tolist() == [[0, 1, 2], [0, 2, 3], [2, 4, 3]]
        assert area(geometry) == pytest.approx(1.25)


def test_negative_corners_count_from_where_they_stand():
    text = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf -3 -2 -1\nv 0 0 5\nv 1 0 5\nv 0 1 5\nf -3 -2 -1\n"
    assert parse(text)[1].triangles_T3.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_scene_is_put_together_by_its_nodes():
    scene = trimesh.Scene()
    part = trimesh.Trimesh(VERTICES, TRIANGLES, process=False)
    turn = trimesh.transformations.rotation_matrix(0.7, [1, 2, 3], [0, 1, 0])
    for number in range(3):
        scene.add_geometry(
            part, transform=turn @ trimesh.transformations.scale_and_translate(1 + number, [number, 0, 0])
        )
    geometry = parse(scene.export(file_type="glb"))[1]
    whole = scene.to_mesh()
    assert area(geometry) == pytest.approx(whole.area, rel=1e-4)
    np.testing.assert_allclose(geometry.vertices_V3.min(axis=0), whole.bounds[0], atol=1e-4)

    def quaternion(document):
        document["nodes"].append({"mesh": 0, "rotation": [0, 0, np.sin(0.5), np.cos(0.5)], "scale": [2, 2, 2]})
        document["scenes"][0]["nodes"] = [len(document["nodes"]) - 1]

    spun = parse(glb(change=quaternion))[1].vertices_V3
    turn: Any = trimesh.transformations.rotation_matrix(1.0, [0, 0, 1])[:3, :3]
    np.testing.assert_allclose(spun, 2 * VERTICES @ turn.T, atol=1e-5)


@pytest.mark.parametrize("kind", ["strip", "fan"])
def test_strips_and_fans(kind):
    points = np.array(
        [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)]
        if kind == "strip"
        else [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)],
        "<f4",
    )
    document = {
        "asset": {"version": "2.0"},
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "mode": 5 if kind == "strip" else 6}]}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 4, "type": "VEC3"}],
        "bufferViews": [{"buffer": 0, "byteLength": 48}],
        "buffers": [{"byteLength": 48}],
    }
    geometry = parse(glb(document, points.tobytes()))[1]
    assert area(geometry) == pytest.approx(1)
    normals = np.cross(
        *(
            geometry.vertices_V3[geometry.triangles_T3[:, i]] - geometry.vertices_V3[geometry.triangles_T3[:, 0]]
            for i in (1, 2)
        )
    )
    assert (normals[:, 2] > 0).all()


def test_meshes_are_sampled_by_area_with_the_seed():
    # Two squares, one of a hundredth of the other's area but of a thousand times its triangles.
    grid = np.stack(np.meshgrid(np.linspace(0, 0.1, 30), np.linspace(0, 0.1, 30), [5.0]), axis=-1).reshape(-1, 3)
    corner = np.arange(900).reshape(30, 30)
    small = np.concatenate(
        [
            np.stack([corner[:-1, :-1], corner[1:, :-1], corner[1:, 1:]], axis=-1).reshape(-1, 3),
            np.stack([corner[:-1, :-1], corner[1:, 1:], corner[:-1, 1:]], axis=-1).reshape(-1, 3),
        ]
    )
    large = np.array([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)])
    data = ply(np.concatenate([grid, large]), np.concatenate([small, np.array([(0, 1, 2), (0, 2, 3)]) + 900]))
    geometry = parse(data)[1]
    points, how = sample(geometry, 20_000, seed=1)
    assert how == "area"
    assert (points[:, 2] > 1).mean() == pytest.approx(1 / 101, abs=0.003)
    # Evenly: each quarter of the square has its share.
    quarters = np.histogram2d(points[points[:, 2] < 1][:, 0], points[points[:, 2] < 1][:, 1], bins=2)[0]
    np.testing.assert_allclose(quarters / quarters.sum(), 0.25, atol=0.02)
    np.testing.assert_array_equal(sample(geometry, 500, seed=1)[0], sample(geometry, 500, seed=1)[0])
    assert (sample(geometry, 500, seed=1)[0] != sample(geometry, 500, seed=2)[0]).any()


@pytest.mark.parametrize("how", ["sample", "voxel"])
def test_large_clouds_are_thinned(how):
    random_points = np.random.default_rng(0).normal(size=(50_000, 3)).astype(np.float32)
    dense = np.concatenate([random_points, np.full((50_000, 3), 9, np.float32)])
    points, reduction = sample(parse(npy(dense))[1], 2048, seed=3, how=how)
    assert (reduction, points.shape) == (how, (2048, 3))
    share = (points == 9).all(axis=1).mean()
    assert share == pytest.approx(0.5, abs=0.05) if how == "sample" else share < 0.01  # one cell for all of them


def with_value(value):
    points = VERTICES.copy()
    points[5, 1] = value
    return points


def look(data):
    return sample(parse(data)[1], 2048)


TETRA = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\n"
BAD = {
    "empty": (b"", "empty"),
    "blank": (b" \n\t\n", "empty"),
    "no points": (npy(np.zeros((0, 3))), "empty"),
    "text": (b"hello, world\n" * 30, "unknown"),
    "html": (b"<!doctype html><html></html>", "unknown"),
    "json": (b'{"points": [[1, 2, 3]]}', "unknown"),
    "zip": (b"PK\x03\x04" + b"\0" * 300, "unknown"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "unknown"),
    "ply without end of header": (ply()[:60], "damaged"),
    "ply with 4e9 faces": (ply(faces=4_000_000_000), "damaged"),
    "ply with 4e9 vertices": (ply(count=4_000_000_000), "damaged"),
    "ply with -1 vertices": (ply(count=-1), "damaged"),
    "ply text with 4e9 vertices": (ply(form="ascii", count=4_000_000_000), "damaged"),
    "ply without properties": (b"ply\nformat ascii 1.0\nelement vertex 4000000000\nend_header\n1 2 3", "damaged"),
    "ply truncated": (ply()[:-5], "damaged"),
    "ply text truncated": (ply(form="ascii")[:-9], "damaged"),
    "ply list of 2e9": (ply(triangles=[(0, 1, 2)])[:-13] + b"\xff", "damaged"),
    "ply index out of range": (ply(triangles=[(0, 1, 99_999)]), "bad-index"),
    "ply index below zero": (ply(triangles=[(0, 1, -1)]), "bad-index"),
    "ply with nan": (ply(with_value(np.nan)), "not-finite"),
    "ply text with inf": (ply(with_value(np.inf), form="ascii"), "not-finite"),
    "pcd with 4e9 points": (pcd(count=4_000_000_000), "damaged"),
    "pcd text with 4e9 points": (pcd(form="ascii", count=4_000_000_000), "damaged"),
    "pcd bomb": (
        pcd(np.zeros((1 << 16, 3)), "binary_compressed", count=250_000_000, unpacked=4_000_000_000),
        "too-large",
    ),
    "pcd that unpacks to more": (pcd(np.zeros((1 << 16, 3)), "binary_compressed", count=100, unpacked=1600), "damaged"),
    "pcd truncated": (pcd()[:-3], "damaged"),
    "pcd compressed truncated": (pcd(form="binary_compressed")[:-30], "damaged"),
    "pcd without z": (pcd(fields="x y w intensity"), "damaged"),
    "xyz of unequal rows": (xyz() + b"1 2\n", "damaged"),
    "xyz of pairs": (b"1 2\n3 4\n" * 20, "damaged"),
    "xyz counted wrongly": (xyz(first="4000000000\n"), "damaged"),
    "xyz with nan": (xyz() + b"nan 0 0\n", "not-finite"),
    "npy of objects": (npy(np.array([[None] * 3] * 20), allow_pickle=True), "damaged"),
    "npy of 10 GB in 1 KB": (npy()[:1000].replace(b"(288, 3)", b"(900000000, 3)"), "damaged"),
    "npy truncated": (npy()[:-4], "damaged"),
    "npy of pairs": (npy(np.ones((30, 2))), "damaged"),
    "npy header of code": (b"\x93NUMPY\x01\x00\x40\x00" + b"__import__('os').abort()".ljust(63) + b"\n", "damaged"),
    "las truncated": (las()[:-40], "damaged"),
    "las header only": (las()[:200], "damaged"),
    "las with 4e9 points": (las()[:247] + struct.pack("<Q", 4_000_000_000) + las()[255:], "damaged"),
    "laz with 40e6 points": (
        las(packed=True)[:247] + struct.pack("<Q", 40_000_000) + las(packed=True)[255:],
        "damaged",
    ),
    "laz with 4e9 points": (
        las(packed=True)[:247] + struct.pack("<Q", 4_000_000_000) + las(packed=True)[255:],
        "too-large",
    ),
    "laz truncated": (las(packed=True)[:-300], "damaged"),
    "off with 4e9 faces": (exported("off").replace(b" 576 0", b" 4000000000 0", 1), "damaged"),
    "off truncated": (exported("off")[:-400], "damaged"),
    "off index out of range": (exported("off").rstrip() + b"999", "bad-index"),
    "off of words": (b"OFF\n3 1 0\n0 0 0\n1 0 zero\n0 1 0\n3 0 1 2\n", "damaged"),
    "obj index out of range": (TETRA + b"f 1 2 9\n", "bad-index"),
    "obj index zero": (TETRA + b"f 0 1 2\n", "bad-index"),
    "obj index before the first": (TETRA + b"f -5 1 2\n", "bad-index"),
    "obj of words": (TETRA + b"f 1 two 3\n", "damaged"),
    "obj pairs": (TETRA + b"v 1 2\n", "damaged"),
    "stl with 4e9 triangles": (exported("stl")[:80] + b"\xff\xff\xff\xff" + exported("stl")[84:], "damaged"),
    "stl truncated": (exported("stl")[:-20], "damaged"),
    "stl text truncated": (exported("stl_ascii")[:-200], "damaged"),
    "stl with infinity": (exported("stl")[:96] + b"\0\0\x80\x7f" + exported("stl")[100:], "not-finite"),
    "glb truncated": (exported("glb")[:-50], "damaged"),
    "glb of version 1": (b"glTF\x01\0\0\0" + exported("glb")[8:], "damaged"),
    "glb that is no json": (exported("glb")[:20] + b"!" * 40 + exported("glb")[60:], "damaged"),
}


def _set(path, value):
    def change(document):
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


def _many(document):
    document["nodes"] = [{"children": [i + 1] * 9} for i in range(40)] + [{}]
    document["scenes"] = [{"nodes": [0]}]


def _often(document):
    document["nodes"] = [{"mesh": 0}] * 1
    document["scenes"] = [{"nodes": [0] * 90_000}]


GLB = {
    "an accessor of 4e9": (_set(["accessors", 0, "count"], 4_000_000_000), "damaged"),
    "an accessor without a buffer": (lambda d: d["accessors"][0].pop("bufferView"), "unknown"),
    "an accessor before the buffer": (_set(["accessors", 0, "byteOffset"], -8), "damaged"),
    "a sparse accessor": (_set(["accessors", 0, "sparse"], {"count": 1}), "unknown"),
    "a buffer elsewhere": (_set(["buffers", 0, "uri"], "/etc/passwd"), "damaged"),
    "a mesh that is none": (_set(["nodes", 0, "mesh"], 99), "damaged"),
    "a node in itself": (_set(["nodes", 0, "children"], [0]), "damaged"),
    "nodes that unfold without end": (_many, "damaged"),
    "one mesh ninety thousand times": (_often, "too-large"),
    "compression": (_set(["extensionsRequired"], ["KHR_draco_mesh_compression"]), "unknown"),
    "a list for an object": (_set(["meshes"], [[]]), "damaged"),
}


@pytest.mark.parametrize("row", BAD)
def test_files_that_are_refused(row):
    data, kind = BAD[row]
    with pytest.raises(Refused) as caught:
        look(data)
    assert caught.value.kind == kind, caught.value.detail
    assert "/" not in caught.value.detail


@pytest.mark.parametrize("row", GLB)
def test_scenes_that_are_refused(row):
    change, kind = GLB[row]
    with pytest.raises(Refused) as caught:
        parse(glb(change=change))
    assert caught.value.kind == kind, caught.value.detail


def test_materials_are_never_followed(monkeypatch):
    def opened(*_):
        raise AssertionError("a file was opened")

    monkeypatch.setattr("builtins.open", opened)
    text = b"mtllib /etc/passwd\nusemtl root\nmap_Kd /etc/shadow\n" + TETRA + b"f 1 2 3\nf 1 2 4\n"
    form, geometry = parse(text.replace(b"map_Kd /etc/shadow\n", b""))
    assert (form, len(geometry.triangles_T3)) == ("obj", 2)

    def textured(document):
        document["images"] = [{"uri": "file:///etc/passwd"}]
        document["textures"] = [{"source": 0}]

    assert parse(glb(change=textured))[0] == "glb"


def test_points_that_are_not_finite_can_be_left_out():
    points = VERTICES.copy()
    points[7, 1] = np.nan
    geometry = parse(pcd(points), drop=True)[1]
    assert len(geometry.vertices_V3) == len(VERTICES) - 1
    assert geometry.notes == ["1 points that are not finite were left out"]
    with pytest.raises(Refused, match="number 7"):
        parse(ply(points, TRIANGLES), drop=True)  # of a mesh they cannot
