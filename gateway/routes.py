"""The table of what goes where: a path prefix → the service behind it, and the scope that a request needs."""

from __future__ import annotations

from dataclasses import dataclass

# One line a domain: /v1/<name>/… and the V2 model <name> belong to the service <name>.
SERVICES = ("iqa", "bots", "pointcloud", "inlining")
AUDITS = "audits"  # answered by the gateway and made by workers: it has recipes and data sets, and no service
SUBMISSIONS = ("training-jobs", "graphs", "index", "dispersion", "tune")  # paths below a service that make jobs


@dataclass(frozen=True)
class Target:
    """Where a request goes. `label` is its name in the metrics; `repeatable` says that doing it twice is harmless."""

    service: str
    scope: str
    label: str
    repeatable: bool


_V2_REPOSITORY = "/v2/repository/models/"
_V2_MODELS = "/v2/models/"


def match(method: str, path: str) -> Target | None:
    """The target of a proxied request, or None for what the gateway answers itself."""
    if path.startswith("/v1/"):
        service, _, rest = path[4:].partition("/")
        if service in SERVICES:
            submits = rest.partition("/")[0] in SUBMISSIONS
            return Target(service, "train" if submits else "predict", f"/v1/{service}", not submits)
    elif path.startswith(_V2_MODELS):
        service = path[len(_V2_MODELS) :].partition("/")[0]
        if service in SERVICES:
            return Target(service, "predict", f"/v2/models/{service}", True)
    elif path.startswith(_V2_REPOSITORY):
        service = path[len(_V2_REPOSITORY) :].partition("/")[0]
        if service in SERVICES and method == "POST":
            return Target(service, "admin", f"/v2/repository/models/{service}", True)
    return None
