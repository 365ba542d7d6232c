"""PLY, ascii and binary of either byte order → points or a mesh. Only `vertex` and `face` are kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.pointcloud.formats.geometry import Geometry, claim, damaged, fan, numbers, whole

_TYPES = {
    **dict.fromkeys((b"char", b"int8"), "i1"),
    **dict.fromkeys((b"uchar", b"uint8"), "u1"),
    **dict.fromkeys((b"short", b"int16"), "i2"),
    **dict.fromkeys((b"ushort", b"uint16"), "u2"),
    **dict.fromkeys((b"int", b"int32"), "i4"),
    **dict.fromkeys((b"uint", b"uint32"), "u4"),
    **dict.fromkeys((b"float", b"float32"), "f4"),
    **dict.fromkeys((b"double", b"float64"), "f8"),
}
_ORDERS = {b"ascii": "=", b"binary_little_endian": "<", b"binary_big_endian": ">"}
_CORNERS = ("vertex_indices", "vertex_index")
Columns = dict[str, Any]  # property → values (N,), or for a list (lengths (N,), all values one after the other)


@dataclass(frozen=True)
class _Property:
    name: str
    kind: str
    length_kind: str | None = None  # of a list: the type of its length


@dataclass(frozen=True)
class _Element:
    name: str
    count: int
    properties: list[_Property] = field(default_factory=list[_Property])


def read(data: bytes) -> Geometry:
    form, elements, start = _header(data)
    order = _ORDERS[form]
    room = len(data) - start
    for element in elements:
        least = [
            2 if form == b"ascii" else np.dtype(item.length_kind or item.kind).itemsize for item in element.properties
        ]
        claim(f"elements {element.name}", element.count, sum(least), room + 1)
    source: _Binary | _Text = _Text(data[start:]) if form == b"ascii" else _Binary(data, start, order)
    kept = {element.name: source.columns(element) for element in elements}
    notes = [f"{source.left} {source.unit} after the last element"] if source.left else []
    vertex = kept.get("vertex", {})
    if any(isinstance(vertex.get(axis), tuple) or vertex.get(axis) is None for axis in "xyz"):
        raise damaged("The PLY file has no vertices with x, y and z.")
    corners = next((kept["face"][name] for name in _CORNERS if name in kept.get("face", {})), None)
    triangles = None
    if isinstance(corners, tuple) and len(corners[0]):
        triangles = fan(corners[0].astype(np.int64), corners[1].astype(np.int64))
    return Geometry(np.stack([vertex[axis] for axis in "xyz"], axis=1), triangles, notes=notes)


def _header(data: bytes) -> tuple[bytes, list[_Element], int]:
    form, elements, at = b"", list[_Element](), 0
    for _ in range(1000):
        end = data.find(b"\n", at, at + 10_000)
        if end < 0:
            break
        words, at = data[at:end].split(), end + 1
        match words:
            case [b"end_header"]:
                if form not in _ORDERS:
                    raise damaged("The PLY header names no known format.")
                return form, elements, at
            case [b"format", form, *_]:
                pass
            case [b"element", name, count]:
                elements.append(_Element(name.decode(errors="replace"), whole(count, "number of elements")))
            case [b"property", b"list", length_kind, kind, name] if elements:
                elements[-1].properties.append(
                    _Property(name.decode(errors="replace"), _type(kind), _type(length_kind))
                )
            case [b"property", kind, name] if elements:
                elements[-1].properties.append(_Property(name.decode(errors="replace"), _type(kind)))
            case [] | [b"ply" | b"comment" | b"obj_info", *_]:
                pass
            case _:
                raise damaged("The PLY header has a line that is none of the format's.")
    raise damaged("The PLY header does not end.")


def _type(word: bytes) -> str:
    if word not in _TYPES:
        raise damaged("The PLY header names an unknown type.")
    return _TYPES[word]


class _Binary:
    unit = "bytes"

    def __init__(self, data: bytes, at: int, order: str) -> None:
        self._data, self._at, self._order = data, at, order

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def columns(self, element: _Element) -> Columns:
        """The element's values, and on to what follows it. Lists of one length are read at once, others row by row."""
        if element.count == 0:
            return {}
        fields, at = list[Any](), self._at
        for number, item in enumerate(element.properties):
            if item.length_kind is None:
                fields.append((f"{number}", self._order + item.kind))
                at += np.dtype(item.kind).itemsize
            else:
                length = self._length(item.length_kind, at)
                fields += [
                    (f"n{number}", self._order + item.length_kind),
                    (f"{number}", self._order + item.kind, (length,)),
                ]
                at += np.dtype(item.length_kind).itemsize + length * np.dtype(item.kind).itemsize
        record = np.dtype(fields)
        if element.count * record.itemsize <= self.left:
            rows = np.frombuffer(self._data, record, element.count, self._at)
            if all((rows[name] == rows[name][0]).all() for name in record.names or () if name[0] == "n"):
                self._at += element.count * record.itemsize
                return {
                    item.name: rows[f"{number}"]
                    if item.length_kind is None
                    else (rows[f"n{number}"], rows[f"{number}"].reshape(-1))
                    for number, item in enumerate(element.properties)
                }
        elif all(item.length_kind is None for item in element.properties):
            raise damaged(f"The PLY file ends within its {element.count} elements {element.name}.")
        return self._by_row(element)

    def _length(self, kind: str, at: int) -> int:
        dtype = np.dtype(self._order + kind)
        if at + dtype.itemsize > len(self._data):
            raise damaged("The PLY file ends within a list.")
        length = int(np.frombuffer(self._data, dtype, 1, at)[0])
        if length < 0 or length > len(self._data):
            raise damaged(f"A list of the PLY file claims {length} values.")
        return length

    def _by_row(self, element: _Element) -> Columns:
        sign = "little" if self._order == "<" else "big"
        data, at = self._data, self._at
        widths = [
            (np.dtype(item.length_kind or "u1").itemsize if item.length_kind else 0, np.dtype(item.kind).itemsize)
            for item in element.properties
        ]
        places: list[list[int]] = [[] for _ in widths]
        ends: list[list[int]] = [[] for _ in widths]
        for _ in range(element.count):
            for number, (prefix, width) in enumerate(widths):
                length = int.from_bytes(data[at : at + prefix], sign) if prefix else 1
                at += prefix
                places[number].append(at)
                at += length * width
                ends[number].append(at)
            if at > len(data):
                raise damaged(f"The PLY file ends within its {element.count} elements {element.name}.")
        self._at = at
        found: Columns = {}
        for number, item in enumerate(element.properties):
            parts = b"".join(data[a:b] for a, b in zip(places[number], ends[number], strict=True))
            values = np.frombuffer(parts, self._order + item.kind)
            sizes = (np.array(ends[number]) - np.array(places[number])) // widths[number][1]
            found[item.name] = values if item.length_kind is None else (sizes, values)
        return found


class _Text:
    unit = "values"

    def __init__(self, text: bytes) -> None:
        self._values: NDArray[np.float64] = numbers(text, "values")
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._values) - self._at

    def columns(self, element: _Element) -> Columns:
        properties = element.properties
        if all(item.length_kind is None for item in properties):
            rows = self._take(element.count * len(properties)).reshape(element.count, len(properties))
            return {item.name: rows[:, number] for number, item in enumerate(properties)}
        if len(properties) == 1 and element.count and self.left:
            width = 1 + max(0, int(np.nan_to_num(self._values[self._at])))
            if element.count * width <= self.left:
                rows = self._values[self._at : self._at + element.count * width].reshape(element.count, width)
                if (rows[:, 0] == width - 1).all():
                    self._at += rows.size
                    return {properties[0].name: (rows[:, 0], rows[:, 1:].reshape(-1))}
        return self._by_row(element)

    def _by_row(self, element: _Element) -> Columns:
        sizes: list[list[int]] = [[] for _ in element.properties]
        parts: list[list[NDArray[np.float64]]] = [[] for _ in element.properties]
        for _ in range(element.count):
            for number, item in enumerate(element.properties):
                length = int(self._take(1)[0]) if item.length_kind is not None else 1
                sizes[number].append(length)
                parts[number].append(self._take(length))
        found: Columns = {}
        for number, item in enumerate(element.properties):
            values = np.concatenate(parts[number]) if parts[number] else np.zeros(0)
            found[item.name] = values if item.length_kind is None else (np.array(sizes[number], np.int64), values)
        return found

    def _take(self, count: int) -> NDArray[np.float64]:
        if not 0 <= count <= self.left:
            raise damaged("The PLY text has fewer values than its header claims.")
        self._at += count
        return self._values[self._at - count : self._at]
