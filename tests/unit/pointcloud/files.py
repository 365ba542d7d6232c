"""Files of every format that is read, made from one mesh and its vertices, and the ways in which they lie."""

import io
import json
import struct
from typing import Any

import laspy
import lzf
import numpy as np
import trimesh


def torus(turns=24):
    """A closed mesh: vertices (V, 3) float32 and triangles (T, 3)."""
    mesh = trimesh.creation.torus(1.0, 0.4, major_sections=turns, minor_sections=turns // 2)
    return mesh.vertices.astype(np.float32), mesh.faces.astype(np.int64)


_MESH = torus()
VERTICES: Any = _MESH[0]
TRIANGLES: Any = _MESH[1]


def ply(points=VERTICES, triangles=TRIANGLES, form="binary_little_endian", count=None, faces=None):
    order = ">" if "big" in form else "<"
    lines = ["ply", f"format {form} 1.0", "comment made for a test"]
    lines += [f"element vertex {len(points) if count is None else count}"]
    lines += [f"property float {axis}" for axis in "xyz"] + ["property uchar red"]
    if triangles is not None:
        lines += [f"element face {len(triangles) if faces is None else faces}"]
        lines += ["property list uchar int vertex_indices"]
    head = ("\n".join(lines) + "\nend_header\n").encode()
    if form == "ascii":
        rows = [" ".join(repr(float(value)) for value in row) + " 7" for row in points]
        rows += [f"{len(row)} " + " ".join(map(str, row)) for row in ([] if triangles is None else triangles)]
        return head + "\n".join(rows).encode() + b"\n"
    body = b"".join(struct.pack(order + "fffB", *row, 7) for row in points)
    for row in [] if triangles is None else triangles:
        body += struct.pack(f"{order}B{len(row)}i", len(row), *row)
    return head + body


def pcd(points=VERTICES, form="binary", count=None, fields="x y z intensity", unpacked=None):
    count = len(points) if count is None else count
    head = f"# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS {fields}\nSIZE 4 4 4 4\nTYPE F F F F\n"
    head += f"COUNT 1 1 1 1\nWIDTH {count}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {count}\nDATA {form}\n"
    rows = np.column_stack([points, np.ones(len(points))]).astype("<f4")
    if form == "ascii":
        return head.encode() + "\n".join(" ".join(repr(float(v)) for v in row) for row in rows).encode()
    if form == "binary":
        return head.encode() + rows.tobytes()
    plain = rows.T.tobytes()
    packed = lzf.compress(plain) or b""
    return head.encode() + struct.pack("<II", len(packed), len(plain) if unpacked is None else unpacked) + packed


def xyz(points=VERTICES, separator=" ", first=""):
    return (first + "\n".join(separator.join(repr(float(v)) for v in row) for row in points) + "\n").encode()


def npy(points=VERTICES, **options):
    stream = io.BytesIO()
    np.save(stream, points, **options)
    return stream.getvalue()


def las(points=VERTICES, packed=False, form=3, version="1.4"):
    header = laspy.LasHeader(point_format=form, version=version)
    header.scales, header.offsets = np.full(3, 1e-4), np.array([500_000.0, 5_000_000.0, 100.0])
    file = laspy.LasData(header)
    file.x, file.y, file.z = (points[:, axis].astype(np.float64) + header.offsets[axis] for axis in range(3))
    stream = io.BytesIO()
    file.write(stream, do_compress=packed, laz_backend=laspy.LazBackend.Lazrs if packed else None)
    return stream.getvalue()


def exported(form):
    data: Any = trimesh.Trimesh(VERTICES, TRIANGLES, process=False).export(file_type=form)
    return data if isinstance(data, bytes) else data.encode()


def glb(document: Any = None, body: Any = None, change: Any = None):
    """trimesh's GLB of the mesh, with its JSON changed by `change`, or one of any document and body."""
    if document is None:
        data = exported("glb")
        size = int.from_bytes(data[12:16], "little")
        document, body = json.loads(data[20 : 20 + size]), data[28 + size :]
        if change is not None:
            change(document)
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    total = 28 + len(text) + len(body)
    head = struct.pack("<4sIII4s", b"glTF", 2, total, len(text), b"JSON")
    return head + text + struct.pack("<I4s", len(body), b"BIN\0") + body


GOOD = {
    "ply ascii": (ply(form="ascii"), "ply", True),
    "ply little": (ply(), "ply", True),
    "ply big": (ply(form="binary_big_endian"), "ply", True),
    "ply points": (ply(triangles=None), "ply", False),
    "ply trimesh": (exported("ply"), "ply", True),
    "pcd ascii": (pcd(form="ascii"), "pcd", False),
    "pcd binary": (pcd(), "pcd", False),
    "pcd compressed": (pcd(form="binary_compressed"), "pcd", False),
    "xyz": (xyz(), "xyz", False),
    "xyz commas": (xyz(separator=", ", first="x,y,z\n"), "xyz", False),
    "xyz counted": (xyz(first=f"{len(VERTICES)}\n"), "xyz", False),
    "npy": (npy(), "npy", False),
    "npy by columns": (npy(np.asfortranarray(VERTICES)), "npy", False),
    "npy float64": (npy(VERTICES.astype(np.float64)), "npy", False),
    "las": (las(), "las", False),
    "las 1.2": (las(form=0, version="1.2"), "las", False),
    "laz": (las(packed=True), "las", False),
    "off": (exported("off"), "off", True),
    "off glued": (exported("off").replace(b"OFF\n", b"OFF", 1), "off", True),
    "obj": (exported("obj"), "obj", True),
    "stl": (exported("stl"), "stl", True),
    "stl ascii": (exported("stl_ascii"), "stl", True),
    "glb": (exported("glb"), "glb", True),
}
