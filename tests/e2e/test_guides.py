"""The guides, followed to the letter: every shell block of a page is run against what `fourfold up` starts."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import skimage
import yaml
from prometheus_client.parser import text_string_to_metric_families

from fourfold import ApiError, Client
from tests.guides import ROOT, Page, Shell
from tests.running import Up

PHOTOS = Path(skimage.__file__).parent / "data"


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    """A product started by somebody whose home folder is new."""
    up = Up(tmp_path_factory.mktemp("newcomer") / ".fourfold")
    yield up
    up.stop()


def _here(text, up):
    return text and re.sub(r"(localhost|127\.0\.0\.1):8080", f"127.0.0.1:{up.port}", text)


@pytest.fixture
def follow(up):
    """Runs the shell blocks of a page in `folder`, and returns what each printed."""
    environment = {**os.environ, "HOME": str(up.home.parent), "COLUMNS": "100"}
    environment.pop("FOURFOLD_HOME", None)
    environment["PATH"] = f"{ROOT / '.venv' / 'bin'}:{environment['PATH']}"
    environment["photos"] = str(PHOTOS)

    def run(name, folder):
        shell = Shell(folder, environment, up.home.parent / f"{name}.state")
        printed = []
        for block in Page(ROOT / "docs" / name).blocks():
            if block.runs:
                text, expected = _here(block.text, up), _here(block.expected, up)
                printed.append(shell.run(replace(block, text=text, expected=expected)))
        return printed

    return run


def test_the_tour(up, follow):
    """After it, with the canary again, two versions share the requests, each counted."""
    follow("tour.md", ROOT)
    photo = PHOTOS / "coffee.png"
    with Client(up.url, up.key) as client:
        client.set_alias("iqa", "canary", 2, weight=0.5)
        up.until(lambda: client.score(photo)["model"] == "iqa/2", 20)
        answered = {client.score(photo)["model"] for _ in range(40)}
        assert answered == {"iqa/1", "iqa/2"}
        rows = client.request("GET", "/v2/models/stats")["model_stats"]
        assert {row["version"] for row in rows if row["name"] == "iqa" and row["inference_count"]} == {"1", "2"}
        client.set_alias("iqa", "canary", None)
        with pytest.raises(ApiError, match="There is no data set 'none'"):
            client.train("iqa", "none", {})


PAGES = ["iqa.md", "bots.md", "pointcloud.md", "inlining.md", "training.md", "auditing.md", "operating.md"]


@pytest.mark.parametrize("name", PAGES)
def test_a_page(follow, tmp_path, name):
    """What is written of the other domains and of operation; `$photos` and the path are those of the tour."""
    assert follow(name, tmp_path)


def test_the_dashboard_and_the_alerts_name_what_is_exported(up):
    """Every metric and every label in them is one that the gateway or a service tells."""
    labels = {}
    with Client(up.url, up.key) as client:
        for path in ("/metrics", "/metrics/iqa"):
            text = client.request("GET", path, raw=True).decode()
            for family in text_string_to_metric_families(text):
                endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
                for ending in endings:
                    labels.setdefault(family.name + ending, set())
                for sample in family.samples:
                    labels.setdefault(sample.name, set()).update(sample.labels)
    board = json.loads((ROOT / "docs" / "dashboard.json").read_text())
    groups = yaml.safe_load((ROOT / "docs" / "alerts.yml").read_text())["groups"]
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [rule["expr"] for group in groups for rule in group["rules"]]
    assert len(asked) > 15
    labels["fourfold_jobs"] |= {"domain", "kind", "state"}  # of which there may be none yet
    for expression in asked:
        plain = re.sub(r'"[^"]*"', '""', expression)
        named = set(re.findall(r"\bfourfold_\w+", plain))
        assert named, expression
        assert named <= set(labels), f"{named - set(labels)} of {expression}"
        known = {"le"}.union(*(labels[name] for name in named))
        inside = ",".join(re.findall(r"\{([^}]*)\}", plain))
        used = set(re.findall(r"(\w+)\s*(?:=|!)", inside)) | set(
            re.findall(r"\w+", " ".join(re.findall(r"\bby \(([^)]*)\)", plain)))
        )
        assert used <= known, f"{used - known} of {expression}"
