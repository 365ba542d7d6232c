"""What is wrong with an image set, for the experiments over one."""

from __future__ import annotations

from pathlib import Path

from services.audits.image_sets import load_image_set
from shared.datasets import Finding, Report
from shared.problems import FourfoldError


def validate(folder: Path) -> Report:
    """Whether the folder holds a set of images (see image_sets.py), and how many."""
    try:
        images = load_image_set(folder)
    except FourfoldError as error:
        finding = Finding(file=str(error.extra.get("file", ".")), problem=error.detail)
        return Report(state="invalid", findings=[finding])
    counts = {"images": len(images.label_N), "test": len(images.test_label_N), "classes": images.classes}
    return Report(state="valid", counts=counts)
