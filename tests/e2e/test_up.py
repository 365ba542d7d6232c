"""What `make up` starts, driven the way a newcomer drives it; the tour and the guides are followed by test_guides.

With FOURFOLD_TEST_URL and FOURFOLD_TEST_KEY set, the tests marked `anywhere` are of the product that answers there.
"""

import json
import os
import re
import shutil
import stat
import subprocess
from typing import Any

import numpy as np
import psutil
import pytest
import trimesh
import tritonclient.http as triton
from PIL import Image, ImageFilter
from pyarrow import parquet
from skimage import data
from sklearn.datasets import load_sample_images

from fourfold import ApiError, Client
from services.inlining.replay import replay_options
from services.inlining.sizes import text_total
from shared.testing import free_port
from tests.running import COMMAND, Deployed, Up
from tests.unit.bots.making import write_graph
from tests.unit.bots.test_features import MASTODON, V1
from tests.unit.inlining.making import PARSER, PROGRAMS, SCALED
from tests.unit.inlining.test_tune import PLANTED
from tests.unit.inlining.test_wrapper import ZIG

anywhere = pytest.mark.anywhere


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    if "FOURFOLD_TEST_URL" in os.environ:
        yield Deployed(os.environ["FOURFOLD_TEST_URL"], os.environ["FOURFOLD_TEST_KEY"])
        return
    up = Up(tmp_path_factory.mktemp("e2e") / "home")
    yield up
    up.stop()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A sharp photograph and damaged versions of it, as files."""
    folder = tmp_path_factory.mktemp("photos")
    sharp = Image.fromarray(load_sample_images().images[1])
    noise = np.random.default_rng(0).normal(0, 40, np.asarray(sharp).shape)
    sharp.save(folder / "sharp.jpg", quality=97)
    sharp.filter(ImageFilter.GaussianBlur(4)).save(folder / "blurred.jpg", quality=97)
    Image.fromarray(np.clip(np.asarray(sharp) + noise, 0, 255).astype(np.uint8)).save(folder / "noisy.png")
    sharp.save(folder / "squeezed.jpg", quality=5)
    return folder


def test_each_part_is_announced_when_it_is_ready(up):
    lines = re.findall(r"^(\w+) +ready in [\d.]+ s$", up.text, re.MULTILINE)
    assert lines == ["valkey", "reaper", "worker", "batch", "bots", "inlining", "iqa", "pointcloud", "gateway"]
    assert "fourfold score photo.jpg" in up.text


def test_only_the_loopback_is_open(up):
    family = [up.process.pid, *(child.pid for child in psutil.Process(up.process.pid).children(recursive=True))]
    listening = [
        connection.laddr.ip
        for pid in family
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]


def test_the_key_is_private(up):
    assert stat.S_IMODE((up.home / "key").stat().st_mode) == 0o600
    assert up.run("keys", "show").stdout.strip() == up.key


@anywhere
def test_a_photo_ranks_above_its_damaged_versions(up, photos):
    answer = up.run("score", *(str(path) for path in sorted(photos.iterdir())))
    assert answer.returncode == 0, answer.stderr
    order = re.findall(r"(sharp|blurred|noisy|squeezed)\.", answer.stdout)
    assert order[0] == "sharp"
    assert len(order) == 4


@anywhere
def test_the_quality_map_is_written(up, photos, tmp_path):
    answer = up.run("score", str(photos / "sharp.jpg"), "--map", str(tmp_path / "map.png"), "--json")
    assert answer.returncode == 0, answer.stderr
    with Image.open(tmp_path / "map.png") as drawn:
        assert drawn.size == (512, 342)


def test_errors_are_one_line(up, tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    answer = up.run("score", str(tmp_path / "text.jpg"))
    assert answer.returncode == 1
    assert "not an image" in answer.stderr
    assert "Traceback" not in answer.stderr
    second = up.run("up", "--port", str(free_port()))
    assert second.returncode == 1
    assert "already running" in second.stderr
    elsewhere = {**up.environment, "FOURFOLD_HOME": str(tmp_path / "other")}
    taken = subprocess.run([COMMAND, "up", "--port", str(up.port)], env=elsewhere, capture_output=True, text=True)
    assert taken.returncode == 1
    assert f"port {up.port} is taken" in taken.stderr
    lost = subprocess.run(
        [COMMAND, "status"],
        env={**up.environment, "FOURFOLD_URL": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
    )
    assert lost.returncode == 1
    assert "not answering" in lost.stderr


@anywhere
def test_the_python_client(up, photos):
    with Client(up.url, up.key) as client:
        assert client.ready()["services"] == {"bots": True, "inlining": True, "iqa": True, "pointcloud": True}
        scored = client.score(photos / "sharp.jpg", map="array")
        assert scored["map"]["cell"] == 32
        several = client.score_many([photos / "sharp.jpg", b"nothing"])
        assert several[0]["result"]["score"] == pytest.approx(scored["score"], abs=0.01)
        assert several[1]["problem"]["status"] == 415
        with pytest.raises(ApiError) as caught:
            client.score(b"")
        assert caught.value.status == 400
        made = client.create_key("for a test", ["predict"])
        with Client(up.url, made["secret"]) as reader, pytest.raises(ApiError, match="admin"):
            reader.list_keys()
        client.revoke_key(made["id"])


@anywhere
def test_v2_through_the_gateway(up):
    headers = {"Authorization": f"Bearer {up.key}"}
    with triton.InferenceServerClient(f"127.0.0.1:{up.port}") as client:
        assert client.is_server_ready(headers=headers)
        index = client.get_model_repository_index(headers=headers)
        assert {row["name"] for row in index} == {"bots", "inlining", "iqa", "pointcloud"}
        pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3)).astype(np.uint8)
        given = triton.InferInput("image", pixels.shape, "UINT8")
        given.set_data_from_numpy(pixels)
        answer = client.infer("iqa", [given], headers=headers)
        score, quality_map = answer.as_numpy("score"), answer.as_numpy("quality_map")
        assert score is not None
        assert quality_map is not None
        assert (score.shape, quality_map.shape) == ((2,), (2, 2, 3))
        statistics = client.get_inference_statistics(headers=headers)["model_stats"]
        assert {row["name"] for row in statistics} == {"bots", "inlining", "iqa", "pointcloud"}


@anywhere
def test_one_document_describes_everything(up):
    with Client(up.url, up.key) as client:
        document = client.request("GET", "/openapi.json")
    paths = document["paths"]
    assert {"/v1/iqa/score", "/v2/models/{model}/infer", "/v1/keys", "/v2/repository/index"} <= set(paths)
    responses = paths["/v1/iqa/score"]["post"]["responses"]
    assert {"401", "403", "413", "415", "422", "429", "503"} <= set(responses)
    text = str(document)
    for name in re.findall(r"#/components/schemas/([\w.-]+)", text):
        assert name in document["components"]["schemas"]


def test_a_killed_service_comes_back(up, photos):
    service = next(
        child
        for child in psutil.Process(up.process.pid).children(recursive=True)
        if any("services.iqa" in part for part in child.cmdline())
    )
    service.kill()
    up.until(lambda: "restarting" in up.text, 5)

    def answers():
        return up.run("score", str(photos / "sharp.jpg")).returncode == 0

    up.until(answers, 30)


def test_several_processes_share_a_service_and_ctrl_c_stops_everything(tmp_path, photos):
    up = Up(tmp_path / "home", "--processes", "2")
    for _ in range(8):
        assert up.run("score", str(photos / "sharp.jpg")).returncode == 0
    with Client(up.url, up.key) as client:
        rows = client.request("GET", "/v2/models/stats")["model_stats"]
        assert {row["name"] for row in rows} == {"bots", "inlining", "iqa", "pointcloud"}
        with pytest.raises(ApiError, match="runs in 2 processes"):
            client.request("POST", "/v2/repository/models/iqa/unload")
    family = psutil.Process(up.process.pid).children(recursive=True)
    assert len(family) >= 3
    assert up.stop() == 0
    # Orphans that have ended stay zombies where nobody reaps them.
    left = [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not left


@anywhere
@pytest.mark.skipif("FOURFOLD_TEST_URL" not in os.environ, reason="here the tour takes this walk (test_guides)")
def test_from_photographs_to_a_served_version_and_back(up, tmp_path):
    """The README's walk: add, train, watch, promote, score, roll back, with nothing restarted."""
    photos = tmp_path / "samples"
    photos.mkdir()
    for name, image in {"astronaut": data.astronaut(), "coffee": data.coffee(), "rocket": data.rocket()}.items():
        Image.fromarray(image).save(photos / f"{name}.png")
    for number, image in enumerate(load_sample_images().images):
        Image.fromarray(image).save(photos / f"sample{number}.png")
    added = up.run("datasets", "add", str(photos), "--kind", "iqa")
    assert added.returncode == 0, added.stderr
    assert "valid  photographs 5" in added.stdout
    settings = {"epochs": 1, "synthetic_width": 256, "synthetic_share": 0.1, "batch_size": 8, "crop": 96}
    settings |= {"validation_images": 8, "images_per_epoch": 16}
    chosen = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    trained = up.run("train", "iqa", "--dataset", "samples", *chosen, "--watch", timeout=300)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert re.search(r"^1/1  loss [\d.]+ .* left$", trained.stdout, re.MULTILINE)
    version = trained.stdout.split("iqa/")[-1].strip()
    job_id = trained.stdout.split()[0]
    assert "making distorted pictures of 5 photographs" in up.run("jobs", "logs", job_id).stdout
    assert '"loss"' in up.run("jobs", "show", job_id).stdout
    assert job_id in up.run("jobs").stdout
    refused = up.run("models", "promote", "iqa", version)
    assert refused.returncode == 1
    assert "worse than the champion" in refused.stderr
    assert up.run("models", "promote", "iqa", version, "--force", "--reason", "a test").returncode == 0

    def serves(wanted):
        return wanted in up.run("score", str(photos / "coffee.png")).stdout

    up.until(lambda: serves(f"iqa/{version}"), 5)
    assert up.run("models", "rollback", "iqa").returncode == 0
    up.until(lambda: serves("iqa/1"), 5)
    compared = up.run("models", "compare", "iqa", version, timeout=120)
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert re.search(r"srcc beside version 1: [+-]\d\.\d{4} \(95 %", compared.stdout)
    assert up.run("models", "canary", "iqa", version, "--weight", "0.5").returncode == 0
    with Client(up.url, up.key) as client:

        def answering():
            return {client.score(photos / "coffee.png")["model"] for _ in range(20)}

        up.until(lambda: answering() == {"iqa/1", f"iqa/{version}"}, 10)
        rows = client.request("GET", "/v2/models/stats")["model_stats"]
        counted = {row["version"] for row in rows if row["name"] == "iqa" and row["inference_count"]}
        assert counted == {"1", version}
    assert up.run("models", "canary", "iqa", version, "--weight", "0").returncode == 0
    nothing = up.run("train", "iqa", "--dataset", "none")
    assert nothing.returncode == 1
    assert "There is no data set 'none'" in nothing.stderr


@anywhere
def test_bots_from_an_account_to_a_scored_graph(up, tmp_path):
    """Score and explain accounts, train on an uploaded graph, promote, and score the whole graph with it."""
    account = tmp_path / "account.json"
    account.write_text(json.dumps([V1, MASTODON]))
    scored = up.run("bots", "score", str(account), "--prior", "0.1")
    assert scored.returncode == 0, scored.stderr
    assert re.search(r"^ *[\d.]+%  (bot|human)  12  \(full\)", scored.stdout, re.MULTILINE)
    explained = up.run("bots", "explain", str(account))
    assert explained.returncode == 0, explained.stderr
    assert "followers_count" in explained.stdout
    graph = tmp_path / "accounts"
    graph.mkdir()
    write_graph(graph, accounts=300, edges="kind")
    assert up.run("datasets", "add", str(graph), "--kind", "bots").returncode == 0
    settings = ("--set", "epochs=40", "--set", "hidden=16", "--set", "floors=false")
    trained = up.run("train", "bots", "--dataset", "accounts", *settings, "--watch", timeout=120)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "needs an audit of groups" in up.run("models", "policy", "bots", "--audit", "--check", "groups").stdout
    refused = up.run("models", "promote", "bots", "2")
    assert "asks for an audit" in refused.stderr
    page = tmp_path / "audit.html"
    audited = up.run("audit", "bots", "2", "--checks", "groups", "--out", str(page), timeout=180)
    assert audited.returncode == 0, audited.stdout + audited.stderr
    assert re.search(r"^  groups +passes", audited.stdout, re.MULTILINE)
    assert page.read_text().startswith("<!doctype html>")
    audit_id = audited.stdout.split()[0]
    assert audit_id in up.run("audits", "list", "--model", "bots").stdout
    assert "what was found" in up.run("audits", "report", audit_id).stdout
    promoted = up.run("models", "promote", "bots", "2")
    assert promoted.returncode == 0, promoted.stderr
    out = tmp_path / "scores.parquet"
    table = up.run("bots", "graph", "accounts", "--out", str(out), timeout=120)
    assert table.returncode == 0, table.stdout + table.stderr
    assert "300 accounts in" in table.stdout
    rows = parquet.read_table(out).to_pylist()
    right = sum((row["label"] == "bot") == (int(row["id"][1:]) % 3 == 0) for row in rows)
    assert right > 270
    assert {row["view"] for row in rows} == {"graph"}
    neighbourhood = {
        "accounts": [V1],
        "neighbourhood": {
            "accounts": [{**V1, "id_str": "13"}],
            "edges": [{"source": "13", "relation": "friend", "target": "12"}],
        },
    }
    with Client(up.url, up.key) as client:

        def from_the_graph():
            found = client.request("POST", "/v1/bots/score", json=neighbourhood)
            return found["model"] == "bots/2" and found["results"][0]["result"]["evidence"]["edges"] == 2

        up.until(from_the_graph, 5)


TINY = {"seeds": 1, "train_images": 200, "test_images": 100, "size": 8, "epochs": 1}
TINY_DISTILLED = {**TINY, "width": 4, "depth": 1, "iterations": 2, "evaluation_epochs": 5, "per_class": 2}
STUDIES: dict[str, dict[str, Any]] = {
    "scaling": {**TINY, "widths": [2, 4], "depths": [1]},
    "phase-diagram": {
        **TINY, "seeds": 2, "widths": [2], "batches": [32, 64], "depth": 1, "curve_epochs": 1, "curvature_images": 50,
    },
    "distil": TINY_DISTILLED,
    "red-team": {**TINY_DISTILLED, "poisoned_share": 0.1},
}  # fmt: skip


def test_experiments_leave_figures_and_poisoned_sets_never_leave_their_job(up, tmp_path):
    with Client(up.url, up.key) as client:
        before = client.models()
        asked = {
            name: client.request("POST", f"/v1/audits/{name}", json={"config": config})["id"]
            for name, config in STUDIES.items()
        }
        for job in asked.values():
            up.until(lambda job=job: client.job(job)["finished_at"] is not None, 120)
        done = {name: client.job(job) for name, job in asked.items()}
        assert {job["state"] for job in done.values()} == {"succeeded"}, done
        for name, count, column in (
            ("scaling", 2, "worst group"),
            ("phase-diagram", 2, "CKA"),
            ("red-team", 5, "spectral"),
        ):
            result = done[name]["result"]
            figures = json.loads(client.job_file(asked[name], "figures.json"))
            assert (result["file"], result["rows"], len(figures["rows"])) == ("figures.json", count, count)
            assert figures["config"].items() >= STUDIES[name].items()
            assert column in result["table"]
        distilled = tmp_path / "distilled" / "distilled.npz"
        distilled.parent.mkdir()
        distilled.write_bytes(client.job_file(asked["distil"], "distilled.npz"))
        assert up.run("datasets", "add", str(distilled.parent), "--kind", "audits").returncode == 0
        # Of the poisoned sets nothing is left, and of what is left nothing can be made.
        left = up.home / "jobs" / asked["red-team"]
        assert {path.name for path in left.rglob("*") if path.is_file()} == {"figures.json", "log.1.txt"}
        with pytest.raises(ApiError) as caught:
            client.job_file(asked["red-team"], "distilled.npz")
        assert caught.value.status == 404
        copied = shutil.copytree(left, tmp_path / "copied")
        shutil.copy(copied / "results" / "figures.json", copied / "figures.npz")
        added = up.run("datasets", "add", str(copied), "--kind", "audits")
        assert added.returncode == 1, added.stdout
        assert "invalid" in added.stdout
        with pytest.raises(ApiError) as caught:
            client.request("POST", "/v1/audits/scaling", json={"dataset": "copied"})
        assert caught.value.status == 422
        assert client.models() == before


@anywhere
def test_shapes_from_a_file_to_a_searched_index_and_a_promoted_network(up, tmp_path):
    """Reconstruct, compress, classify and search an uploaded file; train on uploaded shapes, promote, search again."""
    shapes = tmp_path / "shapes"
    for label in ("box", "ball", "torus"):
        (shapes / label).mkdir(parents=True)
    for number in range(8):
        wide = 1 + 0.2 * number
        trimesh.creation.box((wide, 1, 2)).export(shapes / "box" / f"box{chr(97 + number)}.stl")
        trimesh.creation.icosphere(radius=wide).apply_scale((1, 1, wide)).export(shapes / "ball" / f"b{number}.ply")
        trimesh.creation.torus(1, 0.1 * wide).export(shapes / "torus" / f"t{chr(97 + number)}.glb")
    one = shapes / "torus" / "ta.glb"

    def run(*arguments):
        answer = up.run("pointcloud", *(str(part) for part in arguments), timeout=120)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    told = run("reconstruct", one, "--out", tmp_path / "mesh.glb")
    assert re.search(r"ta\.glb: glb, 2048 points sampled by area from \d+ triangles", told)
    mesh: Any = trimesh.load(tmp_path / "mesh.glb").to_mesh()  # pyright: ignore[reportAttributeAccessIssue]
    assert len(mesh.faces) > 3000
    told = run("encode", one, "--out", tmp_path / "ta.ffcw")
    assert float(re.findall(r"([\d.]+) times smaller", told)[0]) > 20
    with Client(up.url, up.key) as client:
        assert len(client.decode(tmp_path / "ta.ffcw", resolution=20)["points"]) == 400
        assert client.classify(one)["classes"][0]["probability"] > 0
    bad = up.run("pointcloud", "encode", str(tmp_path / "mesh.glb"), "--points", "3")
    assert bad.returncode == 1
    assert "Traceback" not in bad.stderr
    assert up.run("datasets", "add", str(shapes), "--kind", "pointcloud").returncode == 0
    assert "shapes: 24" in run("index", "shapes")
    assert "torus/ta.glb  (torus)" in run("search", one, "--count", "1", "--previews", tmp_path / "found")
    with Image.open(tmp_path / "found" / "01.png") as picture:
        assert picture.size == (96, 96)
    settings = {"epochs": 1, "resolution": 8, "train_resolution": 8, "batch_size": 4, "points": "[64,128]"}
    chosen = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    trained = up.run("train", "pointcloud", "--dataset", "shapes", *chosen, "--watch", timeout=200)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert up.run("models", "promote", "pointcloud", "2", "--force", "--reason", "a test").returncode == 0
    with Client(up.url, up.key) as client:
        up.until(lambda: client.reconstruct(one)["model"] == "pointcloud/2", 15)
        with pytest.raises(ApiError, match="made by version 1"):
            client.decode(tmp_path / "ta.ffcw")
        with pytest.raises(ApiError, match="not served now"):
            client.search(one)


@anywhere
def test_inlining_from_a_source_to_a_replay_file_that_keeps_its_promise(up, tmp_path):
    """Advice on a file and a search as a job; stock clang with either replay file makes the size that was promised."""

    def text_by_clang(source, replay):
        options = [part for option in replay_options(str(replay)) for part in ("-mllvm", option)]
        command = [*ZIG.split(), "-Oz", "-gline-tables-only", *options, "-c", source.name, "-o", "a.o"]
        subprocess.run(command, cwd=source.parent, check=True)
        return text_total((source.parent / "a.o").read_bytes())

    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "planted.c").write_text(PLANTED)
    replay = tmp_path / "replay.txt"
    advised = up.run("advise", str(folder / "planted.c"), "--best-of", "2", "--out", str(replay), "--", "-std=c11")
    assert advised.returncode == 0, advised.stderr
    promised = re.match(r"(\d+) → (\d+) bytes of machine code", advised.stdout)
    assert promised is not None
    assert text_by_clang(folder / "planted.c", replay) == int(promised[2]) <= int(promised[1])
    added = up.run("datasets", "add", str(folder), "--kind", "inlining")
    assert added.returncode == 0, added.stdout + added.stderr
    tuned = up.run("tune", "programs", "--evaluations", "25", "--out", str(replay), timeout=180)
    assert tuned.returncode == 0, tuned.stdout + tuned.stderr
    promised = re.search(r"(\d+) → (\d+) bytes of machine code", tuned.stdout)
    assert promised is not None
    assert text_by_clang(folder / "planted.c", replay) == int(promised[2]) < int(promised[1])
    (folder / "broken.c").write_text(PARSER + "(")
    refused = up.run("advise", str(folder / "broken.c"))
    assert refused.returncode == 1
    assert "broken.c:" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_inlining_is_learnt_from_an_uploaded_corpus_and_promoted(up, tmp_path):
    """A training for size is promoted and decides; one for speed names its figures as predicted."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, source in {**PROGRAMS, "planted": PLANTED, "scaled": SCALED}.items():
        (corpus / f"{name}.c").write_text(source)
    assert up.run("datasets", "add", str(corpus), "--kind", "inlining").returncode == 0
    small = ("--set", "clone_epochs=5", "--set", "label_runs=3", "--set", "label_epochs=2")
    trained = up.run("train", "inlining", "--dataset", "corpus", *small, "--watch", timeout=240)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert up.run("models", "promote", "inlining", "2", "--force", "--reason", "a test").returncode == 0
    up.until(lambda: "(inlining/2)" in up.run("advise", str(corpus / "planted.c")).stdout, 10)
    speed = ("--set", "goal=speed", "--set", "method=evolution", "--set", "start=clone", "--set", "clone_epochs=5")
    speed += ("--set", "generations=1", "--set", "pairs=1", "--set", "modules_per_step=1")
    trained = up.run("train", "inlining", "--dataset", "corpus", *speed, "--watch", timeout=240)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    with Client(up.url, up.key) as client:
        metrics = client.model_version("inlining", 3)["metrics"]
        assert "predicts" in metrics["instructions_saved_percent"]["description"]
    assert up.run("models", "promote", "inlining", "3", "--force", "--reason", "a test").returncode == 0

    def decides_for_speed():
        advised = up.run("advise", str(corpus / "scaled.c"), "--goal", "speed", "--json").stdout
        found = json.loads(advised)
        return found["model"] == "inlining/3" and "policy" in {row["name"] for row in found["candidates"]}

    up.until(decides_for_speed, 10)
    refused = up.run("train", "inlining", "--dataset", "corpus", "--set", "goal=speed")
    assert refused.returncode == 1
    assert "imitate learns bytes" in refused.stderr
