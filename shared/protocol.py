"""The Open Inference Protocol v2 on the wire: JSON and binary tensors ↔ NumPy arrays.

Binary tensors follow the JSON part in its order, little-endian and unpadded; the header
`Inference-Header-Content-Length` says where the JSON ends, and 0 says that the body is one raw tensor.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from shared.problems import InputError

HEADER_LENGTH = "Inference-Header-Content-Length"

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(np.object_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# The kinds of JSON numbers that each kind of tensor takes: no silent truncation, no strings as numbers.
_TAKES = {"b": "b", "u": "iu", "i": "iu", "f": "fiu"}


class TensorLike(Protocol):
    """What a graph says of a tensor: `shape` has −1 for a free dimension."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class InferRequest:
    """A decoded request. `binary` tells which outputs go back as binary; None in `outputs` means all of them."""

    id: str | None
    inputs: dict[str, NDArray[Any]]
    outputs: list[str] | None
    binary: dict[str, bool] = field(default_factory=dict[str, bool])
    binary_by_default: bool = False


def datatype(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a NumPy dtype."""
    return NAMES[dtype]


def decode(
    body: bytes | bytearray, header_length: str | None, inputs: Sequence[TensorLike], outputs: Sequence[TensorLike]
) -> InferRequest:
    """Decode a request for a graph with these `inputs` and `outputs`; raises InputError naming what is wrong."""
    specs = {spec.name: spec for spec in inputs}
    if header_length is None:
        document, rest = body, memoryview(b"")
    else:
        if not header_length.isdigit() or int(header_length) > len(body):
            raise InputError(f"The header {HEADER_LENGTH} must be a number of bytes within the body.")
        split = int(header_length)
        if split == 0:
            return _decode_raw(memoryview(body), inputs)
        view = memoryview(body)
        document, rest = view[:split], view[split:]
    try:
        request = orjson.loads(document)
    except orjson.JSONDecodeError as error:
        raise InputError(f"The JSON part cannot be read: {error}.") from None
    if not isinstance(request, dict) or not isinstance(request.get("inputs"), list):
        raise InputError('The request must be a JSON object with a list "inputs".')
    arrays: dict[str, NDArray[Any]] = {}
    for item in request["inputs"]:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or name not in specs:
            raise InputError(f"There is no input named {name!r}; the model takes {', '.join(specs)}.")
        if name in arrays:
            raise InputError(f"The input {name} is given twice.")
        arrays[name], rest = _tensor(item, name, specs[name], rest)
    if missing := [name for name in specs if name not in arrays]:
        raise InputError(f"The input {missing[0]} is missing.")
    if len(rest):
        raise InputError(f"{len(rest)} bytes follow the last binary tensor.")
    return _with_outputs(request, arrays, {spec.name for spec in outputs})


def _with_outputs(request: dict[str, Any], arrays: dict[str, NDArray[Any]], known: set[str]) -> InferRequest:
    identity = request.get("id")
    if identity is not None and not isinstance(identity, str):
        raise InputError('"id" must be a string.')
    parameters = _parameters(request, "the request")
    wanted = request.get("outputs")
    if wanted is not None and not isinstance(wanted, list):
        raise InputError('"outputs" must be a list.')
    names: list[str] = []
    binary: dict[str, bool] = {}
    for item in wanted or []:
        name = item.get("name") if isinstance(item, dict) else None
        if name not in known or name in names:
            raise InputError(f"There is no output named {name!r}, or it is asked for twice.")
        names.append(name)
        options = _parameters(item, f"the output {name}")
        if "classification" in options:
            raise InputError("The classification extension is not supported.")
        if "binary_data" in options:
            binary[name] = options["binary_data"] is True
    return InferRequest(identity, arrays, names or None, binary, parameters.get("binary_data_output") is True)


def _parameters(item: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = item.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InputError(f'"parameters" of {where} must be an object.')
    return parameters


def _tensor(item: dict[str, Any], name: str, spec: TensorLike, rest: memoryview) -> tuple[NDArray[Any], memoryview]:
    shape = item.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**40 for size in shape):
        raise InputError(f"The shape of {name} must be a list of non-negative whole numbers.")
    if item.get("datatype") != datatype(spec.dtype):
        raise InputError(f"The datatype of {name} must be {datatype(spec.dtype)}, not {item.get('datatype')!r}.")
    _check_shape(name, shape, spec.shape)
    size = _parameters(item, name).get("binary_data_size")
    if size is None:
        return _from_json(item.get("data"), name, shape, spec.dtype), rest
    if "data" in item:
        raise InputError(f"The input {name} has both data and binary_data_size.")
    if type(size) is not int or not 0 <= size <= len(rest):
        raise InputError(f"The binary_data_size of {name} is {size!r}, but {len(rest)} bytes are left.")
    return _from_bytes(rest[:size], name, shape, spec.dtype), rest[size:]


def _check_shape(name: str, shape: Sequence[int], expected: Sequence[int]) -> None:
    fits = len(shape) == len(expected) and all(want in (-1, size) for size, want in zip(shape, expected, strict=True))
    if not fits:
        raise InputError(f"The shape of {name} must be {list(expected)} (-1 is free), not {list(shape)}.")


def _from_json(data: Any, name: str, shape: list[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    if not isinstance(data, list):
        raise InputError(f'The input {name} needs a list "data", or binary_data_size.')
    if dtype.kind == "O":
        array = np.array(data, dtype=np.object_).ravel()
        if not all(isinstance(value, str) for value in array):
            raise InputError(f"The data of {name} must be strings.")
    else:
        try:
            found = np.array(data)
        except ValueError:
            raise InputError(f"The data of {name} is ragged.") from None
        if found.size and found.dtype.kind not in _TAKES[dtype.kind]:
            raise InputError(f"The data of {name} does not hold {datatype(dtype)} values.")
        if dtype.kind in "iu" and found.size:
            limits = np.iinfo(dtype)
            if int(found.min()) < limits.min or int(found.max()) > limits.max:
                raise InputError(f"The data of {name} does not fit {datatype(dtype)}.")
        with np.errstate(over="ignore"):
            array = found.astype(dtype).ravel()
    if array.size != math.prod(shape):
        raise InputError(f"The input {name} has {array.size} values, but its shape {shape} needs {math.prod(shape)}.")
    return array.reshape(shape)


def _from_bytes(data: memoryview, name: str, shape: list[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    count = math.prod(shape)
    if dtype.kind == "O":
        values = _split_bytes(data, name)
        if len(values) != count:
            raise InputError(f"The input {name} has {len(values)} strings, but its shape {shape} needs {count}.")
        return np.array(values, dtype=np.object_).reshape(shape)
    if len(data) != count * dtype.itemsize:
        raise InputError(
            f"The input {name} has {len(data)} bytes, but its shape {shape} needs {count * dtype.itemsize}."
        )
    if dtype.kind == "b":
        bytes_ = np.frombuffer(data, np.uint8)
        if bytes_.size and bytes_.max() > 1:
            raise InputError(f"The input {name} has bytes other than 0 and 1 for BOOL.")
    return np.frombuffer(data, dtype).reshape(shape)


def _split_bytes(data: memoryview, name: str) -> list[str]:
    values: list[str] = []
    position = 0
    while position < len(data):
        if position + 4 > len(data):
            raise InputError(f"The strings of {name} are cut off.")
        (length,) = struct.unpack_from("<I", data, position)
        position += 4
        if position + length > len(data):
            raise InputError(f"The strings of {name} are cut off.")
        try:
            values.append(str(data[position : position + length], "utf-8"))
        except UnicodeDecodeError:
            raise InputError(f"A string of {name} is not UTF-8.") from None
        position += length
    return values


def _decode_raw(body: memoryview, inputs: Sequence[TensorLike]) -> InferRequest:
    """One input, batch 1, at most one further free dimension, which the body's length settles."""
    if len(inputs) != 1:
        raise InputError("A raw body needs a model with exactly one input.")
    spec = inputs[0]
    shape = [1, *spec.shape[1:]] if spec.shape and spec.shape[0] == -1 else list(spec.shape)
    free = [axis for axis, size in enumerate(shape) if size == -1]
    if len(free) > 1:
        raise InputError("A raw body needs a model with at most one free dimension besides the batch.")
    if free:
        fixed = math.prod(size for size in shape if size != -1)
        if spec.dtype.kind == "O":
            shape[free[0]] = len(_split_bytes(body, spec.name)) // max(1, fixed)
        else:
            shape[free[0]] = len(body) // max(1, fixed * spec.dtype.itemsize)
    return InferRequest(None, {spec.name: _from_bytes(body, spec.name, shape, spec.dtype)}, None, {}, True)


def encode(
    request: InferRequest, outputs: Mapping[str, NDArray[Any]], *, model: str, version: str
) -> tuple[bytes, int | None]:
    """(body, JSON length): the response as bytes, with the header's value if it holds binary tensors."""
    described: list[dict[str, Any]] = []
    tensors: list[bytes] = []
    for name in request.outputs or outputs:
        array = outputs[name]
        entry: dict[str, Any] = {"name": name, "datatype": datatype(array.dtype), "shape": array.shape}
        if request.binary.get(name, request.binary_by_default):
            data = _to_bytes(array)
            entry["parameters"] = {"binary_data_size": len(data)}
            tensors.append(data)
        elif array.dtype.kind == "O":
            entry["data"] = [str(value) for value in array.ravel()]
        else:
            plain = array.astype(np.float32) if array.dtype == np.float16 else array
            entry["data"] = np.ascontiguousarray(plain).ravel()
        described.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": described}
    if request.id is not None:
        document["id"] = request.id
    header = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not tensors:
        return header, None
    return b"".join([header, *tensors]), len(header)


def _to_bytes(array: NDArray[Any]) -> bytes:
    if array.dtype.kind != "O":
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    values = [str(value).encode() for value in array.ravel()]
    return b"".join(struct.pack("<I", len(value)) + value for value in values)
