"""GLB (binary glTF 2.0) → the triangles and points of its scene, with the nodes' transforms applied.

Nothing outside the file is read: buffers, images and materials that are named by address are refused or ignored.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.pointcloud.formats.geometry import MOST_TRIANGLES, MOST_VERTICES, Geometry, Refused, claim, damaged

MAGIC = b"glTF"
_JSON, _BIN = 0x4E4F534A, 0x004E4942
_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC3": 3}
_POINTS, _TRIANGLES, _STRIP, _FAN = 0, 4, 5, 6
_DEEPEST = 64
_MOST_VISITS = 100_000


def read(data: bytes) -> Geometry:
    document, binary = _chunks(data)
    try:
        return _Scene(document, binary).geometry()
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError):
        raise damaged("The GLB's description is not that of a glTF scene.") from None


def _chunks(data: bytes) -> tuple[dict[str, Any], memoryview]:
    if len(data) < 20:
        raise damaged("The GLB ends within its header.")
    version, length = (int.from_bytes(data[i : i + 4], "little") for i in (4, 8))
    if version != 2:
        raise damaged(f"The GLB is of version {version}; 2 is read.")
    claim("bytes", length, 1, len(data))
    view, at, parts = memoryview(data)[:length], 12, dict[int, memoryview]()
    while at + 8 <= length:
        size, kind = (int.from_bytes(view[at + i : at + i + 4], "little") for i in (0, 4))
        claim("bytes of a chunk", size, 1, length - at - 8)
        parts.setdefault(kind, view[at + 8 : at + 8 + size])
        at += 8 + size
    try:
        document: Any = json.loads(bytes(parts.get(_JSON, memoryview(b""))))
    except (ValueError, RecursionError):
        raise damaged("The GLB's description is not JSON.") from None
    if not isinstance(document, dict):
        raise damaged("The GLB's description is no object.")
    return document, parts.get(_BIN, memoryview(b""))


class _Scene:
    def __init__(self, document: dict[str, Any], binary: memoryview) -> None:
        self.document, self.binary = document, binary
        self.vertices: list[NDArray[Any]] = []
        self.triangles: list[NDArray[np.int64]] = []
        self.notes: list[str] = []
        self.count = self.count_triangles = self.visits = 0
        required = document.get("extensionsRequired", [])
        if required and required != ["KHR_mesh_quantization"]:
            raise Refused("unknown", f"The GLB needs extensions that are not read here: {str(required)[:100]}.")

    def geometry(self) -> Geometry:
        nodes: list[Any] = self.document.get("nodes", [])
        scenes = self.document.get("scenes")
        if scenes:
            roots = scenes[self.document.get("scene", 0)].get("nodes", [])
        else:
            children = {child for node in nodes for child in node.get("children", [])}
            roots = [number for number in range(len(nodes)) if number not in children]
        for root in roots:
            self._walk(nodes, root, np.eye(4), 0)
        if not nodes:
            for mesh in range(len(self.document.get("meshes", []))):
                self._add(mesh, np.eye(4))
        if not self.vertices:
            raise Refused("empty", "The GLB's scene holds no mesh.")
        triangles = np.concatenate(self.triangles) if self.triangles else None
        return Geometry(np.concatenate(self.vertices), triangles, notes=self.notes)

    def _walk(self, nodes: list[Any], number: int, above: NDArray[Any], depth: int) -> None:
        self.visits += 1
        if depth > _DEEPEST or self.visits > _MOST_VISITS:
            raise damaged(f"The GLB's nodes lie in each other more than {_DEEPEST} deep, or unfold without end.")
        node = nodes[_index(number, nodes)]
        matrix = above @ _transform(node)
        if "mesh" in node:
            self._add(node["mesh"], matrix)
        for child in node.get("children", []):
            self._walk(nodes, child, matrix, depth + 1)

    def _add(self, number: int, matrix: NDArray[Any]) -> None:
        meshes = self.document["meshes"]
        for primitive in meshes[_index(number, meshes)]["primitives"]:
            mode = primitive.get("mode", _TRIANGLES)
            if mode not in (_POINTS, _TRIANGLES, _STRIP, _FAN):
                self.notes = [*self.notes[:9], "lines were left out"]
                continue
            points = self._accessor(primitive["attributes"]["POSITION"], 3).astype(np.float64)
            points = points @ matrix[:3, :3].T + matrix[:3, 3]
            if mode != _POINTS:
                if "indices" in primitive:
                    order = self._accessor(primitive["indices"], 1).reshape(-1).astype(np.int64)
                else:
                    order = np.arange(len(points))
                if len(order) and order.max() >= len(points):
                    raise Refused("bad-index", f"A triangle names a vertex that is not among the {len(points)}.")
                self.triangles.append(_triangles(order, mode) + self.count)
                self.count_triangles += len(self.triangles[-1])
            self.vertices.append(points)
            self.count += len(points)
            # Counted as they come: a few nodes can name one mesh a million times.
            if self.count > MOST_VERTICES // 8 or self.count_triangles > MOST_TRIANGLES // 4:
                raise Refused("too-large", "The GLB's nodes unfold to more triangles than are taken.")

    def _accessor(self, number: int, width: int) -> NDArray[Any]:
        accessors, views = self.document["accessors"], self.document.get("bufferViews", [])
        accessor = accessors[_index(number, accessors)]
        if "sparse" in accessor or "bufferView" not in accessor:
            raise Refused("unknown", "Sparse accessors of a GLB are not read here.")
        view = views[_index(accessor["bufferView"], views)]
        buffer = self.document["buffers"][view["buffer"]]
        if view["buffer"] != 0 or "uri" in buffer:
            raise damaged("The GLB keeps its points outside the file; nothing else is opened.")
        dtype = np.dtype(_COMPONENTS[accessor["componentType"]])
        if _WIDTHS.get(accessor["type"]) != width:
            raise damaged("The GLB's accessor has another width than it is used for.")
        count, size = int(accessor["count"]), width * dtype.itemsize
        stride = int(view.get("byteStride", size))
        start = int(view.get("byteOffset", 0)) + int(accessor.get("byteOffset", 0))
        if start < 0 or (not size <= stride <= 252 and stride != size):
            raise damaged("The GLB's accessor lies outside its buffer.")
        claim("values", count, stride, len(self.binary) - start + stride - size)
        if count == 0:
            return np.zeros((0, width), dtype)
        window = np.frombuffer(self.binary, np.uint8, (count - 1) * stride + size, start)
        rows = np.lib.stride_tricks.as_strided(window, (count, size), (stride, 1), writeable=False)
        values = np.ascontiguousarray(rows).view(dtype)
        if accessor.get("normalized") and dtype.kind in "iu":
            return np.maximum(values / np.iinfo(dtype).max, -1.0)
        return values


def _index(number: Any, items: list[Any]) -> int:
    if not isinstance(number, int) or not 0 <= number < len(items):
        raise damaged("The GLB's description names a part that it does not have.")
    return number


def _transform(node: dict[str, Any]) -> NDArray[np.float64]:
    """The node's own matrix (4, 4), of column vectors."""
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    matrix = np.eye(4)
    x, y, z, w = (float(value) for value in node.get("rotation", (0, 0, 0, 1)))
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, :3] *= np.array(node.get("scale", (1, 1, 1)), np.float64)
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


def _triangles(order: NDArray[np.int64], mode: int) -> NDArray[np.int64]:
    if mode == _TRIANGLES:
        return order[: len(order) // 3 * 3].reshape(-1, 3)
    if len(order) < 3:
        return np.zeros((0, 3), np.int64)
    if mode == _STRIP:
        found = np.stack([order[:-2], order[1:-1], order[2:]], axis=1)
        found[1::2] = found[1::2, ::-1]
        return found
    return np.stack([np.full(len(order) - 2, order[0]), order[1:-1], order[2:]], axis=1)
