"""A policy scanner (checkov, in an environment of its own) over the rendered overlays, against a baseline."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deployment.rendered import render

CHECKOV = Path(sys.prefix) / "policy" / "bin" / "checkov"
# What it finds and we keep: check, where (overlay and resource), and why.
BASELINE = [
    ("CKV_K8S_11", ".*", "CPU limits throttle a pod beside idle cores; requests share them out, memory is limited."),
    ("CKV_K8S_15", ".*", "Tags are never moved, and a trial's images are loaded into the node and lie in no registry."),
    ("CKV_K8S_43", ".*", "Digests are of a registry's images; who has one sets them in an overlay (`images: digest`)."),
    (
        "CKV_K8S_35",
        ".*",
        "Settings are variables in every place where the product runs; nothing it starts prints them.",
    ),
    ("CKV_K8S_9", r".*Deployment\.fourfold\.(reaper|worker-.*)", "No Service sends them requests."),
    ("CKV_K8S_8", r".*Deployment\.fourfold\.worker-.*", "A worker mends its connections; to end it ends its job."),
    ("CKV_K8S_40", r"dev StatefulSet\.fourfold\.(postgres|valkey)", "Their images' own user has the uid 999."),
    ("CKV2_K8S_6", "dev .*", "A trial on one node; the network policies are a component, which prod has."),
]


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """(check, "overlay resource") of everything that fails."""
    if not CHECKOV.exists():
        pytest.skip("checkov is not installed: make setup")
    folder = tmp_path_factory.mktemp("policy")
    command = [CHECKOV, "--framework", "kubernetes", "--output", "json", "--skip-download", "--soft-fail", "--file"]
    found: set[tuple[str, str]] = set()
    for overlay in ("dev", "prod"):  # each for itself: a policy of one would count for both
        file = folder / f"{overlay}.yaml"
        file.write_text(yaml.safe_dump_all(render(f"overlays/{overlay}")))
        report = json.loads(subprocess.run([*command, file], capture_output=True, text=True, check=True).stdout)
        assert report["summary"]["parsing_errors"] == 0
        assert report["summary"]["passed"] > 500
        found |= {(item["check_id"], f"{overlay} {item['resource']}") for item in report["results"]["failed_checks"]}
    return found


def test_nothing_is_found_but_what_the_baseline_explains(findings):
    new = {
        (check, where)
        for check, where in findings
        if not any(check == known and re.fullmatch(place, where) for known, place, _ in BASELINE)
    }
    assert not new


def test_the_baseline_explains_nothing_that_is_not_there(findings):
    for known, place, _ in BASELINE:
        assert any(check == known and re.fullmatch(place, where) for check, where in findings), known
