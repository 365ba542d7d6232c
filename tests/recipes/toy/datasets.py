"""Validation for tests: every file must begin with `good`."""

from shared.datasets import Finding, Report


def validate(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    bad = [path for path in files if not path.read_bytes().startswith(b"good")]
    findings = [Finding(file=path.name, line=1, problem="it is not good") for path in bad]
    state = "invalid" if len(bad) == len(files) else "flawed" if bad else "valid"
    return Report(state=state, findings=findings, counts={"files": len(files)})
