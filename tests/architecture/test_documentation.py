"""The documentation holds together: links lead somewhere, lists are whole, what is made of code is in step with it."""

import subprocess
from urllib.parse import unquote, urlsplit

import pytest

from tests.guides import ROOT, Page
from tests.problems_page import PAGE, page

TRACKED = subprocess.run(
    ["git", "ls-files", "*.md"], capture_output=True, text=True, check=True, cwd=ROOT
).stdout.split()
PAGES = [name for name in TRACKED if (ROOT / name).is_file()]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    here = Page(ROOT / name)
    for target in here.links():
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            assert parts.scheme in ("http", "https", "mailto"), target
            continue
        place = (here.path.parent / unquote(parts.path)).resolve() if parts.path else here.path
        assert place.exists(), f"{name} links to {target}, which is not there"
        assert place.is_relative_to(ROOT), f"{name} links out of the repository: {target}"
        if parts.fragment:
            assert parts.fragment in Page(place).anchors(), f"{name} links to {target}: there is no such heading"


def test_every_page_is_on_the_map():
    """Whoever starts at docs/index.md finds every guide, and every decision in its list."""
    docs = ROOT / "docs"
    linked = {(docs / target.partition("#")[0]).resolve() for target in Page(docs / "index.md").links()}
    assert {path for path in docs.glob("*.*") if path.name != "index.md"} <= linked
    decided = set(Page(docs / "decisions" / "README.md").links())
    assert {path.name for path in (docs / "decisions").glob("0*.md")} == decided


def test_the_errors_page_is_what_the_classes_say():
    assert PAGE.read_text() == page(), "make it again: python -m tests.problems_page"
