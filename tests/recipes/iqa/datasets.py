"""Validation for drills: whatever is there is good."""

from shared.datasets import Report


def validate(folder):
    return Report(state="valid", findings=[], counts={"files": sum(path.is_file() for path in folder.rglob("*"))})
