"""axe-core over every page of the console, light and dark, empty and filled: no violation of WCAG 2.2 A and AA."""

import json
import re
import shutil

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from fourfold import Client
from gateway.assets import FOLDER
from tests.browser import Visit, enter
from tests.unit.bots.making import write_graph

EXAMPLES = FOLDER / "examples"
PHONE = {"width": 390, "height": 844}
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
# What a page shows once its example was clicked, and the last thing that comes.
RESULTS = {
    "try/iqa": ("balls.jpg", "[data-score]"),
    "try/bots": ("neighbourhood.json", "[data-fidelity]"),
    "try/pointcloud": ("chip.stl", "[data-shape=reconstruction] canvas >> nth=0"),
    "try/inlining": ("sensors.c", "[data-winner]"),
}


def patterns():
    """The addresses that app.js knows."""
    table = (FOLDER / "app.js").read_text().partition("const ROUTES = [")[2].partition("\n];")[0]
    return re.findall(r'^  \["([^"]*)", "', table, re.MULTILINE)


@pytest.fixture(scope="module")
def shown(served, tmp_path_factory):
    """What each `:name` of an address stands for: a data set, a job that was cancelled, a model, an audit."""
    folder = tmp_path_factory.mktemp("accessible")
    for name in ("photos", "accounts"):
        (folder / name).mkdir()
    for number in range(4):
        shutil.copy(EXAMPLES / "balls.jpg", folder / "photos" / f"{number}.jpg")
    write_graph(folder / "accounts", accounts=240, edges="kind")
    with Client(served.url, served.key) as client:

        def ended(job):
            served.until(lambda: client.job(job)["finished_at"] is not None, 120)
            return job

        dataset = client.add_dataset(folder / "photos", "iqa", "photos")
        audited = client.add_dataset(folder / "accounts", "bots", "accounts")
        served.until(lambda: all(client.dataset(name)["state"] == "valid" for name in ("photos", "accounts")), 60)
        job = client.train("iqa", dataset["digest"])["id"]
        client.cancel_job(job)
        audit = client.audit("bots", 1, dataset=audited["digest"], checks=["groups", "robustness"])["id"]
        ended(job)
        assert client.job(ended(audit))["state"] == "succeeded"
        known = {"jobs/:id": job, "models/:name": "bots", "datasets/:reference": dataset["digest"], "audits/:id": audit}
        return known


@pytest.fixture
def tab(chrome, served, request):
    """A tab that may be refused things: pages without what they are about are looked at as well."""
    with Visit(chrome, served, expected=("",), reduced_motion="reduce", **request.param) as page:
        yield page


def violations(page):
    """Each broken rule with the first elements that break it."""
    found = Axe().run(page, options={"runOnly": RULES, "resultTypes": ["violations"]}).response["violations"]
    return [(rule["id"], rule["help"], [node["html"][:200] for node in rule["nodes"][:3]]) for rule in found]


def both(page, where):
    """Look at the page in its colours and in the others."""
    wrong = []
    for _ in range(2):
        theme = page.evaluate("document.documentElement.dataset.theme")
        wrong += [(where, theme, *rule) for rule in violations(page)]
        page.get_by_role("button", name="Light" if theme == "dark" else "Dark", exact=True).click()
    return wrong


def goto(page, address):
    """A page of the console, at rest."""
    page.evaluate(f"location.hash = {f'#/{address}'!r}")
    expect(page.locator(".page h1, .page .problem").first).to_be_visible()
    expect(page.locator(".spinner")).to_have_count(0)


@pytest.mark.parametrize("tab", [{"color_scheme": "light"}], indirect=True, ids=["desktop"])
def test_every_page_is_without_violations(tab, shown):
    known = patterns()
    assert {"", "jobs/:id", *RESULTS} <= set(known)
    wrong = []
    for pattern in known:
        address = re.sub(r":\w+", lambda _, pattern=pattern: shown[pattern], pattern)
        goto(tab, address)
        expect(tab.locator(".page .problem")).to_have_count(0)
        wrong += both(tab, pattern)
    assert not wrong, json.dumps(wrong, indent=1)


@pytest.mark.parametrize("tab", [{"color_scheme": "dark", "viewport": PHONE}], indirect=True, ids=["phone"])
@pytest.mark.parametrize("address", RESULTS)
def test_what_the_examples_show_is_without_violations(tab, address):
    name, last = RESULTS[address]
    goto(tab, address)
    tab.locator(f"[data-example='{name}']").first.click()
    expect(tab.locator(last)).to_be_visible(timeout=90_000)  # a shape, without a graphics processor
    expect(tab.locator(".spinner")).to_have_count(0)
    for details in tab.locator("details:not([open]) > summary").all():
        details.click()
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    wrong = both(tab, address)
    assert not wrong, json.dumps(wrong, indent=1)


def test_the_form_for_the_key_and_its_refusal_are_without_violations(chrome, served):
    with Visit(chrome, served, key=False, expected=("401",), color_scheme="dark") as page:
        expect(page.get_by_label("Key", exact=True)).to_be_focused()
        wrong = violations(page)
        enter(page, "wrong")
        expect(page.get_by_role("alert")).to_be_visible()
        wrong += violations(page)
        assert not wrong, json.dumps(wrong, indent=1)


def test_every_page_can_be_used_with_the_keyboard_alone(chrome, served):
    """From the key to a score without a pointer; the focus is seen at every stop."""
    with Visit(chrome, served, expected=("willReadFrequently",)) as page:
        goto(page, "try/iqa")
        seen = set()
        for _ in range(40):
            page.keyboard.press("Tab")
            where = page.evaluate(
                "() => { const e = document.activeElement, s = getComputedStyle(e);"
                " return [e.dataset.example || e.id || e.tagName, s.outlineStyle !== 'none'] }"
            )
            assert where[1], where
            seen.add(where[0])
            if where[0] == "balls.jpg":
                break
        assert {"photo-first", "balls.jpg"} <= seen
        page.keyboard.press("Enter")
        expect(page.locator("[data-score]")).to_be_visible()
