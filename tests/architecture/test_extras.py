"""Each service's extra has all that its process imports, also late: its image has nothing else."""

import sys
from importlib.metadata import packages_distributions, requires

import grimp
import pytest
from packaging.requirements import Requirement

from gateway.routes import SERVICES

# What a service starts as another process.
STARTED = {"pointcloud": ["services.pointcloud.child"], "inlining": ["services.inlining.compiler"]}
IN_EVERY_IMAGE = ("postgres", "s3", "tracing")


def installed_by(*extras):
    """The names of all distributions that `fourfold[extras]` brings."""
    seen, waiting = set(), [("fourfold", extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            wanted = [Requirement(line) for line in requires(name) or []]
        except ModuleNotFoundError:  # for another platform
            continue
        for one in wanted:
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                waiting += [(plain(one.name), more) for more in ("", *one.extras)]
    return {name for name, _ in seen}


def plain(name):
    return name.lower().replace("_", "-").replace(".", "-")


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("services", "shared", include_external_packages=True)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_imports_what_its_own_extra_has(service, graph):
    names: set[str] = set()
    for module in (f"services.{service}.api", *STARTED.get(service, [])):
        names |= {found.partition(".")[0] for found in graph.find_upstream_modules(module)}
    names -= {"services", "shared"} | set(sys.stdlib_module_names)
    assert {"numpy", "onnxruntime", "fastapi"} <= names
    has, origin = installed_by(f"service-{service}", *IN_EVERY_IMAGE), packages_distributions()
    assert not {name for name in names if not {plain(one) for one in origin[name]} & has}
    assert not {"torch", "celery"} & has


def test_the_union_is_the_service_extra():
    assert installed_by("service") == installed_by(*(f"service-{name}" for name in SERVICES))
