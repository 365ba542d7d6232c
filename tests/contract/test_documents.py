"""Schemathesis against the OpenAPI documents: what is documented is what happens, whatever is sent."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.routes import SERVICES
from shared.testing import free_port

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
FEW = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def wait_until_ready(url, process):
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=2)
            return
        except (OSError, urllib.error.URLError):
            assert process.poll() is None, "the server ended"
            time.sleep(0.1)
    raise AssertionError("the server was not ready in a minute")


@pytest.fixture(scope="module")
def addresses(tmp_path_factory):
    """URLs of the real services and of a real gateway before them, and the gateway's key."""
    home = tmp_path_factory.mktemp("home")
    ports = {name: free_port() for name in (*(f"services.{service}.api" for service in SERVICES), "gateway.app")}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    environment = {
        **os.environ,
        "FOURFOLD_HOME": str(home),
        "FOURFOLD_SERVICES": json.dumps({service: urls[f"services.{service}.api"] for service in SERVICES}),
        "FOURFOLD_LOG_LEVEL": "error",
    }
    processes = []
    try:
        for name, port in ports.items():
            command = [sys.executable, "-m", "uvicorn", f"{name}:create_app", "--factory", "--port", str(port)]
            command += ["--http", "shared.connections:GuardedProtocol", "--log-level", "error"]
            processes.append(subprocess.Popen(command, env=environment))
            wait_until_ready(urls[name], processes[-1])
        yield urls, (home / "key").read_text().strip()
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)


def keeps_its_document(url, **options):
    # Unloading the model makes every other operation answer 503, as it should; the conformance suite has it.
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json").exclude(path_regex="unload")
    operations: list[Any] = [found.ok() for found in cast(Any, schema.get_all_operations())]
    for operation in operations:

        @FEW
        @given(case=operation.as_strategy())
        def holds(case):
            case.call_and_validate(checks=CHECKS, **options)

        holds()
    return {operation.label for operation in operations}


FIRST = {"iqa": "score", "bots": "score", "pointcloud": "reconstruct", "inlining": "advice"}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_keeps_its_document(addresses, service):
    assert f"POST /v1/{service}/{FIRST[service]}" in keeps_its_document(addresses[0][f"services.{service}.api"])


def test_the_gateway_keeps_the_merged_document(addresses):
    seen = keeps_its_document(addresses[0]["gateway.app"], headers={"Authorization": f"Bearer {addresses[1]}"})
    assert {"POST /v1/iqa/score", "POST /v1/bots/score", "POST /v1/keys", "POST /v2/models/{model}/infer"} <= seen
