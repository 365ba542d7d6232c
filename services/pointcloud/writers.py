"""Points and meshes → files: PLY, NPY and GLB.

Shapes: N points, T triangles.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEDIA_TYPES = {"ply": "application/ply", "npy": "application/x-npy", "glb": "model/gltf-binary"}


def ply(points_N3: NDArray[Any], triangles_T3: NDArray[np.int64] | None, about: str = "") -> bytes:
    """Binary PLY of float32 points, with faces where there are any; float64 where float32 would lose more than 1e-6."""
    kind, name = ("<f4", "float") if _fits_float32(points_N3) else ("<f8", "double")
    lines = ["ply", "format binary_little_endian 1.0", *(f"comment {about}" for _ in range(bool(about)))]
    lines += [f"element vertex {len(points_N3)}", *(f"property {name} {axis}" for axis in "xyz")]
    body = points_N3.astype(kind).tobytes()
    if triangles_T3 is not None:
        lines += [f"element face {len(triangles_T3)}", "property list uchar int vertex_indices"]
        rows = np.empty(len(triangles_T3), [("n", "u1"), ("corners", "<i4", 3)])
        rows["n"], rows["corners"] = 3, triangles_T3
        body += rows.tobytes()
    return "\n".join([*lines, "end_header\n"]).encode("ascii", "replace") + body


def npy(points_N3: NDArray[Any]) -> bytes:
    """An array (N, 3), float32, or float64 where float32 would lose more than 1e-6."""
    stream = io.BytesIO()
    kind = np.float32 if _fits_float32(points_N3) else np.float64
    np.lib.format.write_array(stream, points_N3.astype(kind), allow_pickle=False)
    return stream.getvalue()


def glb(points_N3: NDArray[Any], triangles_T3: NDArray[np.int64] | None, about: dict[str, Any]) -> bytes:
    """glTF 2.0 in one binary file: a mesh seen from both sides with smooth normals, or bare points.

    Vertices are stored around their mean and the node moves them back, so that float32 suffices for any place.
    """
    middle = points_N3.mean(axis=0)
    places = (points_N3 - middle).astype("<f4")
    parts = [places.tobytes()]
    attributes = {"POSITION": 0}
    accessors: list[dict[str, Any]] = [
        {
            "bufferView": 0,
            "componentType": 5126,
            "count": len(places),
            "type": "VEC3",
            "min": places.min(axis=0).tolist(),
            "max": places.max(axis=0).tolist(),
        }
    ]
    primitive: dict[str, Any] = {"attributes": attributes, "mode": 0, "material": 0}
    if triangles_T3 is not None:
        parts += [normals(places, triangles_T3).tobytes(), triangles_T3.astype("<u4").tobytes()]
        attributes["NORMAL"] = 1
        accessors += [
            {"bufferView": 1, "componentType": 5126, "count": len(places), "type": "VEC3"},
            {"bufferView": 2, "componentType": 5125, "count": triangles_T3.size, "type": "SCALAR"},
        ]
        primitive |= {"mode": 4, "indices": 2}
    starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
    targets = (34962, 34962, 34963)
    document = {
        "asset": {"version": "2.0", "generator": "fourfold", "extras": about},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "reconstruction", "translation": middle.tolist()}],
        "meshes": [{"primitives": [primitive]}],
        # Folded surfaces have no inside: without doubleSided half of every viewer's picture is missing.
        "materials": [
            {
                "doubleSided": True,
                "pbrMetallicRoughness": {
                    "baseColorFactor": [0.55, 0.62, 0.72, 1],
                    "metallicFactor": 0.1,
                    "roughnessFactor": 0.8,
                },
            }
        ],
        "accessors": accessors,
        "bufferViews": [
            {"buffer": 0, "byteOffset": start, "byteLength": len(part), "target": target}
            for start, part, target in zip(starts, parts, targets, strict=False)
        ],
        "buffers": [{"byteLength": starts[-1]}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    body = b"".join(parts)  # every part is a multiple of four bytes
    length = 12 + 8 + len(text) + 8 + len(body)
    words = (length, len(text), len(body))
    total, of_text, of_body = (word.to_bytes(4, "little") for word in words)
    head = b"glTF" + (2).to_bytes(4, "little") + total
    return head + of_text + b"JSON" + text + of_body + b"BIN\0" + body


def normals(points_N3: NDArray[np.float32], triangles_T3: NDArray[np.int64]) -> NDArray[np.float32]:
    """Unit normals (N, 3): the mean of the normals of each vertex's triangles, by their area."""
    a, b, c = (points_N3[triangles_T3[:, corner]] for corner in range(3))
    of_triangle = np.cross(b - a, c - a)
    sums = np.stack(
        [np.bincount(triangles_T3.ravel(), np.repeat(of_triangle[:, axis], 3), len(points_N3)) for axis in range(3)],
        axis=1,
    )
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    sums[lengths[:, 0] < 1e-20] = (0, 0, 1)
    return (sums / np.where(lengths < 1e-20, 1, lengths)).astype("<f4")


def _fits_float32(points_N3: NDArray[Any]) -> bool:
    extent = float(np.ptp(points_N3, axis=0).max()) or 1.0
    return float(np.abs(points_N3).max()) * 6e-8 < 1e-6 * extent and float(np.abs(points_N3).max()) < 1e38
