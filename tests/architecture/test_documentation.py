"""The documentation holds together: links lead somewhere, lists are whole, what is made of code is in step with it."""

import subprocess
from urllib.parse import unquote, urlsplit

import pytest

from tests.guides import ROOT, Page, prints
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


def test_what_is_printed_is_held_against_the_page():
    assert prints("iqa/2  …\n…\n━━━━━\nscore 74.2\n", "iqa/2 is\nserved\nnow\n━━━━━━━━\nscore   74.3\n")
    assert prints("250 → 194 bytes", " 250 → 194  bytes\n\n")
    for expected, output in [
        ("iqa/2", "iqa/3"),
        ("iqa/2", "iqa/2\nmore"),
        ("one\n…\ntwo", "one\nthree"),
        ("score 74.2", "score 50.1"),
        ("250 → 194 bytes", "250 → 200 bytes"),
        ("something", ""),
    ]:
        assert not prints(expected, output), (expected, output)


def test_blocks_of_a_page_are_found(tmp_path):
    (tmp_path / "page.md").write_text(
        "# A page\n\n```sh\nfourfold up\n```\n```text fails\nfourfold: no\n```\n\n"
        "```python a/b.py\nx = 1\n```\n\n    not run\n\n```sh\nls\n```\n\n## Other\n\n```text\nnothing of it\n```\n"
    )
    page = Page(tmp_path / "page.md")
    first, file, last, aside = page.blocks()
    assert (first.runs, first.expected, first.fails, first.line) == (True, "fourfold: no\n", True, 3)
    assert (file.runs, file.name, file.text) == (False, "a/b.py", "x = 1\n")
    assert (last.runs, last.expected) == (True, None)
    assert not aside.runs
    assert page.anchors() == {"a-page", "other"}
