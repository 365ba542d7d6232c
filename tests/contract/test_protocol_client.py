"""The public V2 client works against a service."""

import socket
import threading

import numpy as np
import pytest
import tritonclient.http as triton
import uvicorn

from shared.service import create_service
from shared.settings import ServiceSettings
from shared.testing import toy_bundle, toy_domain


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    app = create_service(toy_domain(toy_bundle(home / "bundle")), ServiceSettings(home=home))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listening.close()


@pytest.fixture
def client(address):
    with triton.InferenceServerClient(address) as client:
        yield client


def test_health_metadata_and_repository(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("toy")
    assert client.is_model_ready("toy", "1")
    assert not client.is_model_ready("toy", "7")
    assert client.get_server_metadata()["name"] == "fourfold"
    assert client.get_model_metadata("toy")["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert client.get_model_repository_index()[0]["state"] == "READY"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_inference(client, binary_in, binary_out, compression):
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    given = triton.InferInput("x", values.shape, "FP32")
    given.set_data_from_numpy(values, binary_data=binary_in)
    wanted = triton.InferRequestedOutput("y", binary_data=binary_out)
    answer = client.infer("toy", [given], outputs=[wanted], request_id="me", request_compression_algorithm=compression)
    np.testing.assert_array_equal(answer.as_numpy("y"), values * 2)
    assert answer.get_response()["id"] == "me"


def test_statistics_count(client):
    given = triton.InferInput("x", [1, 4], "FP32")
    given.set_data_from_numpy(np.ones((1, 4), np.float32))
    before = client.get_inference_statistics("toy")["model_stats"][0]["inference_count"]
    client.infer("toy", [given])
    assert client.get_inference_statistics("toy")["model_stats"][0]["inference_count"] == before + 1


def test_errors_are_read_by_the_client(client):
    given = triton.InferInput("x", [1, 3], "FP32")
    given.set_data_from_numpy(np.ones((1, 3), np.float32))
    with pytest.raises(triton.InferenceServerException, match="shape"):
        client.infer("toy", [given])


def test_unload_and_load(client):
    client.unload_model("toy")
    assert not client.is_model_ready("toy")
    client.load_model("toy")
    assert client.is_model_ready("toy")
