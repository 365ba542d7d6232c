"""Writes docs/errors.md, the list of every problem that the product can answer with, from the classes themselves.

python -m tests.problems_page
"""

import importlib
import pkgutil

import gateway
import services
import shared
from shared.problems import FourfoldError
from tests.guides import ROOT

PAGE = ROOT / "docs" / "errors.md"
TABLE = "| status | code | what happened | what to do |\n|---|---|---|---|\n"
PARTS = {"shared": "Of every service", "gateway": "Of the gateway"}
HEAD = """# Errors

<!-- Made by `python -m tests.problems_page` of the classes below shared/problems.py: change those. -->

An error is one JSON document (RFC 9457, `application/problem+json`):

    {"type": "urn:fourfold:problem:not-found", "title": "There is no such thing", "status": 404,
     "detail": "There is no data set 'x'.", "request_id": "4bf9…"}

`type` is `urn:fourfold:problem:` and a code of the lists below. It keeps its meaning: let programs decide by it.
`detail` is for people: what happened to this request, and what to change; it may be worded otherwise tomorrow. Some
types have further members, such as `errors`, `findings` or `missing`. `request_id` is also in the header `X-Request-ID`
and in the server's log; send that header to choose your own. Below `/v2` an error is `{"error": detail}`, as that
protocol has it. An item of a request with several (images, accounts) has a problem of its own beside the answers of the
others. A job that fails ends with one (`problem`); where the cause is none of these, such as too little memory or no
GPU, with `title` and `detail` alone.

**Repeating.** 429 and 503 have `Retry-After` where the wait is known. Scoring may always be repeated. What makes a job
may be repeated with the same `Idempotency-Key`, and is then done once.
"""


def every_kind():
    """Each kind of error once, by its code: those that several domains share are listed with the kit's."""
    for package in (gateway, services, shared):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if ".migrations." not in module.name and module.name != "shared.testing":
                importlib.import_module(module.name)
    kinds = {}
    waiting = [FourfoldError]
    while waiting:
        kind = waiting.pop(0)
        if kind.__module__.partition(".")[0] in ("shared", "gateway", "services"):  # not those of tests
            kinds.setdefault(kind.code, []).append(kind)
        waiting += kind.__subclasses__()
    return kinds


def page():
    """The whole page."""
    sections = {}
    for code, kinds in every_kind().items():
        parts = {kind.__module__.split(".")[1 if kind.__module__.startswith("services.") else 0] for kind in kinds}
        part = parts.pop() if len(parts) == 1 else "shared"
        sections.setdefault(part, []).append((kinds[0].status, code, kinds[0]))
    text = HEAD
    for part in sorted(sections, key=lambda part: (list(PARTS).index(part) if part in PARTS else len(PARTS), part)):
        text += f"\n## {PARTS.get(part, f'Of {part}')}\n\n{TABLE}"
        for status, code, kind in sorted(sections[part], key=lambda row: row[:2]):
            text += f"| {status} | `{code}` | {kind.title} | {kind.advice} |\n"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
