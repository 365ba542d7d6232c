"""The commands of docs/kubernetes.md: those that need no cluster are run, the others held against what they name.

Those of docs/compose.md are run by `make images-test`.
"""

import base64
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from fourfold.cli import app
from gateway.settings import GatewaySettings
from tests.deployment.documents import blocks, commands
from tests.deployment.rendered import KUBECTL, ROOT, container, named, of_kind, render

KUBERNETES, COMPOSE = ROOT / "docs" / "kubernetes.md", ROOT / "docs" / "compose.md"
START = "From an empty cluster to a scored photo"


def shell(script, cwd):
    done = subprocess.run(["bash", "-euc", script], cwd=cwd, capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


def test_from_an_empty_cluster_to_a_scored_photo_in_ten_commands():
    whole = re.sub(r"\\\n\s*", "", blocks(KUBERNETES)[START][-1])
    assert len(whole.splitlines()) <= 10
    assert whole.splitlines()[-1] == "fourfold score photo.jpg"


def test_the_namespace_and_the_secret_are_those_that_the_product_takes(tmp_path, monkeypatch):
    lines = [line for line in commands(KUBERNETES) if re.match(r"export \w+_|kubectl .*\bcreate\b", line)]
    made = [f"{line} --dry-run=client -o yaml; echo ---" if line.startswith("kubectl") else line for line in lines]
    script = "\n".join(made).replace("kubectl", str(KUBECTL))
    namespace, secret, _ = shell(script, tmp_path)
    assert namespace == named(render("overlays/dev"), "Namespace", "fourfold") | {
        "metadata": {"name": "fourfold"},
        "spec": {},
        "status": {},
    }
    assert secret["metadata"] == {"name": "fourfold", "namespace": "fourfold"}
    values = {name: base64.b64decode(value).decode() for name, value in secret["data"].items()}
    for name in [name for name in values if name.startswith("FOURFOLD_")]:
        monkeypatch.setenv(name, values[name])
    settings = GatewaySettings()
    assert settings.database_url == f"postgresql+psycopg://fourfold:{values['POSTGRES_PASSWORD']}@postgres/fourfold"
    assert settings.redis_url == f"redis://:{values['BROKER_PASSWORD']}@{values['BROKER_ADDRESS']}/0"
    assert settings.first_key is not None
    objects = render("overlays/dev")
    host, port = values["BROKER_ADDRESS"].split(":")
    assert int(port) in {entry["port"] for entry in named(objects, "Service", host)["spec"]["ports"]}
    assert named(objects, "Service", "postgres")


def test_every_command_is_known():
    """A command that no test knows would go out of date unseen."""
    inside = {line.partition(" postgres ")[2] for line in commands(COMPOSE) if " exec -T postgres " in line}
    inside |= {line.partition(" gateway ")[2] for line in commands(COMPOSE) if " exec -T gateway " in line}
    for line in commands(KUBERNETES):
        words = shlex.split(line, comments=True)
        match words:
            case ["export", *_] | ["kubectl", "create", "namespace", "fourfold"]:
                pass
            case ["kubectl", "-n", "fourfold", "create", "secret", "generic", "fourfold", *_]:
                pass
            case ["docker", "compose", "build"]:
                assert any(" up --build " in known for known in commands(COMPOSE))
            case ["kubectl", "apply", "-k", overlay]:
                assert render(overlay.removeprefix("k8s/"))
            case ["kubectl", "-n", "fourfold", "wait", "--for=condition=Available", _, "deployment", "--all"]:
                pass
            case ["kubectl", "-n", "fourfold", "port-forward", "service/gateway", ports, "&"]:
                gateway = named(render("overlays/dev"), "Service", "gateway")
                assert int(ports.partition(":")[2]) in {entry["port"] for entry in gateway["spec"]["ports"]}
            case ["kubectl", "-n", "fourfold", "rollout", "undo", what]:
                kind, _, name = what.partition("/")
                assert (kind, bool(named(render("overlays/prod"), "Deployment", name))) == ("deployment", True)
            case ["kubectl", "-n", "fourfold", "exec", "postgres-0" | "-i", *_] if "postgres-0" in words:
                assert named(render("overlays/dev"), "StatefulSet", "postgres")
                assert line.partition(" -- ")[2] in inside
            case ["kubectl", "-n", "fourfold", "exec", "deployment/gateway" | "-i", *_] if (
                "deployment/gateway" in words
            ):
                mounts = container(named(render("overlays/dev"), "Deployment", "gateway"))["volumeMounts"]
                assert "/state" in {mount["mountPath"] for mount in mounts}
                assert line.partition(" -- ")[2] in inside
            case ["fourfold", *_]:
                assert line in commands(COMPOSE)
            case _:
                pytest.fail(f"no test knows this command of {KUBERNETES.name}: {line}")


def test_images_are_built_under_the_names_that_the_manifests_have():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    built = {one["image"].partition(":")[0] for one in compose.values() if "build" in one}
    gpu = yaml.safe_load((ROOT / "compose.gpu.yml").read_text())["services"]["worker-gpu"]["image"]
    wanted = {container(item)["image"].partition(":")[0] for item in of_kind(render("overlays/prod"), "Deployment")}
    assert wanted == built | {gpu.partition(":")[0]}


def test_commands_of_the_product_in_any_document_exist():
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {group.name for group in app.registered_groups}
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for line in commands(Path(document)):
            if found := re.match(r"fourfold (\w+)", line):
                assert found[1] in known, line
