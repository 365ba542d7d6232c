"""The V2 codec: what goes in comes out, and everything else is a 400 that names its fault."""

import struct

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import protocol
from shared.problems import InputError
from shared.sessions import GraphTensor

FLOATS = (GraphTensor("x", np.dtype(np.float32), (-1, 2)),)
OUT = (GraphTensor("y", np.dtype(np.float32), (-1, 2)),)


def request(**changes):
    return {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2.5], **changes}]}


def decode(document, *, inputs=FLOATS, tail=b"", header=True):
    body = document if isinstance(document, bytes) else orjson.dumps(document)
    return protocol.decode(body + tail, str(len(body)) if header else None, inputs, OUT)


@pytest.mark.parametrize("data", [[1, 2.5], [[1, 2.5]]])
def test_flat_and_nested_json(data):
    np.testing.assert_array_equal(decode(request(data=data)).inputs["x"], [[1, 2.5]])


@pytest.mark.parametrize("name", [name for name in protocol.DTYPES if name != "BYTES"])
def test_binary_round_trip_of_every_datatype(name):
    dtype = protocol.DTYPES[name]
    values = np.array([[0, 1], [1, 0]]).astype(dtype)
    spec = (GraphTensor("x", dtype, (-1, 2)),)
    described = {"name": "x", "shape": [2, 2], "datatype": name, "parameters": {"binary_data_size": values.nbytes}}
    document = {"id": "7", "inputs": [described], "parameters": {"binary_data_output": True}}
    asked = decode(document, inputs=spec, tail=values.tobytes())
    np.testing.assert_array_equal(asked.inputs["x"], values)
    body, length = protocol.encode(asked, {"y": values}, model="m", version="3")
    assert length is not None
    header = orjson.loads(body[:length])
    assert header["id"] == "7"
    assert header["outputs"] == [
        {"name": "y", "datatype": name, "shape": [2, 2], "parameters": {"binary_data_size": values.nbytes}}
    ]
    assert body[length:] == values.tobytes()


def test_strings_round_trip():
    spec = (GraphTensor("x", np.dtype(np.object_), (2,)),)
    data = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in ("é", ""))
    described = {"name": "x", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    asked = decode({"inputs": [described]}, inputs=spec, tail=data)
    assert asked.inputs["x"].tolist() == ["é", ""]
    body, _ = protocol.encode(asked, {"y": asked.inputs["x"]}, model="m", version="1")
    assert orjson.loads(body)["outputs"][0]["data"] == ["é", ""]


def test_a_raw_body_is_one_tensor():
    asked = protocol.decode(np.array([1, 2], np.float32).tobytes(), "0", FLOATS, OUT)
    np.testing.assert_array_equal(asked.inputs["x"], [[1, 2]])
    assert asked.binary_by_default


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "z"}, "no input named"),
        ({"shape": [1, 3]}, "shape"),
        ({"shape": [1, -2]}, "shape"),
        ({"shape": [True, 2]}, "shape"),
        ({"shape": "1,2"}, "shape"),
        ({"shape": [2**60, 2]}, "shape"),
        ({"datatype": "INT64"}, "datatype"),
        ({"data": ["1", "2"]}, "FP32"),
        ({"data": [True, False]}, "FP32"),
        ({"data": [[1], [2, 3]]}, "ragged"),
        ({"data": [1, None]}, "FP32"),
        ({"data": [1]}, "1 values"),
        ({"data": {"a": 1}}, "data"),
        ({"parameters": {"binary_data_size": 8}}, "both"),
        ({"parameters": 3}, "parameters"),
    ],
)
def test_wrong_tensors_are_named(changes, says):
    with pytest.raises(InputError, match=says):
        decode(request(**changes))


@pytest.mark.parametrize(
    ("document", "tail", "says"),
    [
        (b"{", b"", "JSON"),
        (b"[" * 100_000, b"", "JSON"),
        ({"inputs": []}, b"", "missing"),
        ({"inputs": request()["inputs"] * 2}, b"", "twice"),
        (request(), b"abc", "follow"),
        ({**request(), "id": 5}, b"", "id"),
        ({**request(), "outputs": [{"name": "nope"}]}, b"", "output"),
        ({**request(), "outputs": [{"name": "y", "parameters": {"classification": 2}}]}, b"", "classification"),
    ],
)
def test_wrong_requests_are_named(document, tail, says):
    with pytest.raises(InputError, match=says):
        decode(document, tail=tail)


@pytest.mark.parametrize("length", ["-1", "x", "99999"])
def test_a_header_length_outside_the_body_is_refused(length):
    with pytest.raises(InputError, match="Inference-Header"):
        protocol.decode(b"{}", length, FLOATS, OUT)


def test_integers_that_do_not_fit_are_refused():
    spec = (GraphTensor("x", np.dtype(np.uint8), (-1,)),)
    for bad in ([300], [-1], [1.5]):
        with pytest.raises(InputError):
            decode({"inputs": [{"name": "x", "shape": [1], "datatype": "UINT8", "data": bad}]}, inputs=spec)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_random_bytes_raise_nothing_but_input_errors(body, length):
    try:
        protocol.decode(body, str(length), FLOATS, OUT)
    except InputError:
        pass
