"""The console's Try pages in a browser: they show what the API answers, for their examples and for bad files."""

import base64
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from playwright.sync_api import expect

from fourfold import Client
from tests.browser import Visit
from tests.running import COMMAND

EXAMPLES = Path(__file__).parents[2] / "gateway" / "console" / "examples"
PLOTLY = ("willReadFrequently", "GPU stall")  # remarks of the browser on how plotly.js draws
EYE = "element => JSON.stringify(element._fullLayout?.scene?.camera?.eye)"  # from where a shape is seen
DRAWN_MS = 90_000  # in three dimensions, without a graphics processor
PHONE = {"width": 390, "height": 844}


@pytest.fixture
def client(served):
    with Client(served.url, served.key) as client:
        yield client


def visit(chrome, served, domain, *expected, **context):
    """A tab at a Try page. Nothing turns by itself: a software renderer has better things to do."""
    context.setdefault("reduced_motion", "reduce")
    return At(Visit(chrome, served, expected=(*PLOTLY, *expected), **context), f"#/try/{domain}")


class At:
    def __init__(self, tab, address):
        self.tab, self.address = tab, address

    def __enter__(self):
        page = self.tab.__enter__()
        page.evaluate(f"location.hash = {self.address!r}")
        expect(page.get_by_role("heading", name="The same without this page")).to_be_visible()
        return page

    def __exit__(self, *error):
        self.tab.__exit__(*error)


def example(page, name):
    page.locator(f"[data-example='{name}']").first.click()


def tell(page, name):
    """The text of the first element that says `data-name`."""
    return page.locator(f"[data-{name}]").first.inner_text()


def command(page, name):
    return page.locator(f"[data-command={name}]").inner_text()


def saved(page, button):
    """The bytes that a click saves, and the name of their file."""
    with page.expect_download() as found:
        page.get_by_role("button", name=button).click()
    return found.value.path().read_bytes(), found.value.suggested_filename


def percent(share):
    return f"{100 * share:.1f} %"


def test_the_overview_leads_to_every_domain(chrome, served):
    with Visit(chrome, served) as page:
        page.get_by_role("link", name="Try", exact=True).click()
        for name in ("Image quality", "Bots", "Point clouds", "Inlining"):
            page.get_by_role("link", name=name).click()
            expect(page.get_by_role("heading", level=1)).to_have_text(name)
            page.go_back()


def test_two_photos_and_the_map_over_one(chrome, served, client):
    sharp, squeezed = (client.score(EXAMPLES / name, map="array") for name in ("balls.jpg", "balls-squeezed.jpg"))
    with visit(chrome, served, "iqa") as page:
        example(page, "balls.jpg")
        expect(page.locator("[data-score]")).to_have_text(f"{sharp['score']:.1f}")
        kind = sharp["distortion"]["kind"]
        assert f"{kind} {100 * sharp['distortion']['probabilities'][kind]:.0f} %" in tell(page, "kind")
        assert tell(page, "confidence").startswith(f"{sharp['confidence']:.4g} ")
        lowest = min(min(row) for row in sharp["map"]["values"])
        assert tell(page, "readout").startswith(f"From {lowest:.1f} ")
        # The map's own pixels lie over the picture, as many as the answer's cells, as opaque as the slider says.
        layer = page.locator("canvas.over")
        shape = [len(sharp["map"]["values"][0]), len(sharp["map"]["values"])]
        assert layer.evaluate("canvas => [canvas.width, canvas.height]") == shape
        slider = page.get_by_label("Opacity of the quality map")
        slider.focus()
        page.keyboard.press("End")
        assert layer.evaluate("canvas => getComputedStyle(canvas).opacity") == "1"
        expect(page.locator(".js-plotly-plot .bars .point")).to_have_count(len(sharp["levels"]))
        page.get_by_role("button", name="Compare with a second photo").click()
        page.locator("[data-slot=second]").locator("[data-example='balls-squeezed.jpg']").click()
        apart = sharp["score"] - squeezed["score"]
        assert apart > 20
        expect(page.locator("[data-verdict]")).to_contain_text(f"first photo is better by {apart:.1f} points")
        assert "fourfold score balls.jpg balls-squeezed.jpg" in command(page, "fourfold")


# The example, what the page tells of it, and where the answers of the three lines tell the same.
LINES = {
    "iqa": ("balls.jpg", "score", lambda out: f"{json.loads(out)['score']:.1f}", r"^([\d.]+)", r"([\d.]+)"),
    "bots": (
        "account.json",
        "probability",
        lambda out: percent(json.loads(out)["results"][0]["result"]["probability"]),
        r"'probability': ([\d.]+)",
        r"([\d.]+)%",
    ),
    "pointcloud": ("chip.stl", "chamfer", lambda _: None, r"'chamfer': ([\d.]+)", r"off by ([\d.]+)"),
    "inlining": (
        "sensors.c",
        "advised",
        lambda out: str(json.loads(out)["text_advised"]),
        r"→ (\d+)",
        r"→ (\d+) bytes",
    ),
}


@pytest.mark.parametrize("domain", LINES)
def test_the_lines_that_a_page_shows_answer_as_the_page(chrome, served, domain, tmp_path):
    name, told, by_curl, by_python, by_command = LINES[domain]
    with visit(chrome, served, domain, viewport=PHONE) as page:
        example(page, name)
        expect(page.locator(f"[data-{told}]")).to_be_visible(timeout=DRAWN_MS)
        value = tell(page, told).split(" on ")[0]
        curl, python, fourfold = (command(page, kind) for kind in ("curl", "Python", "fourfold"))
        assert served.key not in page.content()
    shutil.copy(EXAMPLES / name, tmp_path)
    path = f"{Path(COMMAND).parent}:{os.environ['PATH']}"
    environment = {**served.environment, "FOURFOLD_URL": served.url, "PATH": path}

    def run(*arguments):
        answer = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    def found(pattern, text):
        match = re.search(pattern, text, re.MULTILINE)
        assert match, text
        return float(match[1])

    number = float(value.removesuffix(" %")) / (100 if "%" in value else 1)
    assert found(by_python, run("python", "-c", python)) == pytest.approx(number, rel=0.01)
    printed = found(by_command, run("sh", "-c", fourfold.splitlines()[0]))
    assert printed / (100 if domain == "bots" else 1) == pytest.approx(number, rel=0.01)
    if shutil.which("curl") and (shutil.which("jq") or "jq" not in curl):
        out = run("sh", "-c", curl)
        if domain == "pointcloud":
            assert (tmp_path / "chip-folded.glb").read_bytes().startswith(b"glTF")
        else:
            assert by_curl(out) == value


def test_an_account_its_prior_and_its_explanation(chrome, served, client):
    account = json.loads((EXAMPLES / "account.json").read_text())
    (plain,), (rare,) = (client.score_accounts([account], **more) for more in ({}, {"prior": 0.1}))
    (explained,) = client.explain_accounts([account])
    found, why = plain["result"], explained["result"]
    with visit(chrome, served, "bots") as page:
        example(page, "account.json")
        expect(page.locator("[data-probability]")).to_have_text(percent(found["probability"]))
        expect(page.locator("[data-label]")).to_have_text(found["label"])
        expect(page.locator("[data-unusual]")).to_have_count(int(found["out_of_distribution"]))
        expect(page.locator("[data-declared]")).to_be_visible()
        assert len(tell(page, "used").split(", ")) == len(found["evidence"]["used"])
        assert len(tell(page, "missing").split(", ")) == len(found["evidence"]["missing"])
        page.get_by_text("As a table").click()
        first = page.locator("[data-contributions] tbody tr").first
        strongest = why["contributions"][0]
        expect(first.locator("td").nth(1)).to_have_text(f"{strongest['contribution']:.3f}")
        expect(page.locator("[data-bars] .bars .point")).to_have_count(len(why["contributions"]))
        assert percent(why["fidelity"]["without_top"]) in tell(page, "fidelity")
        page.get_by_label("Share of bots that you expect").fill("10")
        expect(page.locator("[data-probability]")).to_have_text(percent(rare["result"]["adjusted_probability"]))
        expect(page.locator("[data-unadjusted]")).to_have_text(percent(found["probability"]))
        assert command(page, "fourfold").startswith("fourfold bots score account.json --prior 0.1")
        page.get_by_label("Withhold a label below").fill("99")
        page.get_by_label("Share of bots that you expect").fill("1")
        expect(page.locator("[data-label]")).to_have_text("abstain")


def test_a_table_and_a_neighbourhood(chrome, served, client):
    asked = json.loads((EXAMPLES / "neighbourhood.json").read_text())
    (around,) = client.score_accounts(**asked)
    with visit(chrome, served, "bots") as page:
        example(page, "accounts.csv")
        rows = page.locator("[data-accounts] tbody tr")
        expect(rows).to_have_count(4)
        content, name = saved(page, "Save the table as accounts.json")
        assert name == "accounts.json"
        for number, row in enumerate(client.score_accounts(json.loads(content))):
            expect(rows.nth(number)).to_contain_text(percent(row["result"]["probability"]))
        rows.nth(2).get_by_role("button", name="local_paper").press("Enter")
        expect(page.locator("[data-unadjusted]")).to_have_text(rows.nth(2).locator("td").nth(1).inner_text())
        example(page, "neighbourhood.json")
        expect(page.locator("[data-probability]")).to_have_text(percent(around["result"]["probability"]))
        picture = page.locator("[data-neighbourhood]")
        expect(picture).to_have_attribute("aria-label", "6 accounts and 9 edges around dealz_2017_x7")
        expect(picture.locator(".textpoint")).to_have_count(6)
        expect(picture.locator(".legendtext")).to_have_text(["followers", "friends", "mention"])
        expect(page.locator("[data-looked]")).to_contain_text("looks at no edges")


def test_a_long_id_keeps_its_digits_and_markup_stays_text(chrome, served):
    hostile = '<img src=x onerror="window.broken=1"><b>x</b>'
    accounts = [{"id": 1, "screen_name": hostile, "followers_count": 3, "friends_count": 5, "statuses_count": 9}]
    around = {
        "accounts": [{"id": 2, "screen_name": "<a href='javascript:window.broken=1'>y</a>", "followers_count": 1}],
        "edges": [{"source": "2", "relation": "friends", "target": "1234567890123456789"}],
    }
    text = json.dumps({"accounts": accounts, "neighbourhood": around}).replace('"id": 1,', '"id": 1234567890123456789,')
    with visit(chrome, served, "bots") as page:
        page.get_by_label("Or paste").fill(text)
        page.get_by_role("button", name="Score", exact=True).click()
        picture = page.locator("[data-neighbourhood]")
        expect(picture.locator(".textpoint").first).to_contain_text("<img src=x")
        assert picture.locator("a, img, b").count() == 0
        assert page.evaluate("window.broken") is None


def test_a_mesh_beside_its_reconstruction(chrome, served, client):
    found = client.reconstruct(EXAMPLES / "chip.stl", input_points=True)
    classes = client.classify(EXAMPLES / "chip.stl")["classes"]
    coded = client.encode(EXAMPLES / "chip.stl", out="json")
    with visit(chrome, served, "pointcloud") as page:
        example(page, "chip.stl")
        expect(page.locator("[data-chamfer]")).to_contain_text(f"{found['distance']['chamfer']:.4g} on average")
        data = "element => element.data.map(trace => [trace.type, trace.x.length, (trace.i || []).length])"
        expect(page.locator("[data-shape=reconstruction] canvas").first).to_be_visible(timeout=DRAWN_MS)
        assert page.locator("[data-shape=input]").evaluate(data) == [["scatter3d", found["input"]["taken"], 0]]
        mesh = ["mesh3d", len(found["points"]), len(found["triangles"])]
        assert page.locator("[data-shape=reconstruction]").evaluate(data) == [mesh]
        before = page.locator("[data-shape=input]").evaluate(EYE)
        page.get_by_role("button", name="From above").click()
        for shape in ("input", "reconstruction"):
            moved = f"before => ({EYE})(document.querySelector('[data-shape={shape}]')) !== before"
            page.wait_for_function(moved, arg=before)
        expect(page.locator("[data-codeword]")).to_contain_text(f"{coded['bytes']} B: {len(coded['codeword'])} numbers")
        rows = page.locator("[data-classes] tbody tr")
        expect(rows.first).to_contain_text(classes[0]["label"])
        expect(rows.first).to_contain_text(percent(classes[0]["probability"]))
        expect(page.locator("[data-no-index]")).to_contain_text("fourfold pointcloud index shapes")
        content, name = saved(page, "Download the mesh (GLB)")
        assert (content[:4], name) == (b"glTF", "chip-folded.glb")
        content, name = saved(page, "Download the codeword")
        assert (content, name) == (base64.b64decode(coded["encoded"]), "chip.ffcw")


def test_the_nearest_shapes_of_an_index(chrome, served, client, tmp_path):
    chips = tmp_path / "chips" / "chip"
    chips.mkdir(parents=True)
    chip: Any = trimesh.load(EXAMPLES / "chip.stl")
    for stretch in (1, 2, 4, 8):
        chip.copy().apply_transform(np.diag([stretch, 1, 1, 1])).export(chips / f"by{stretch}.stl")
    client.add_dataset(tmp_path / "chips", "pointcloud", "chips")
    served.until(lambda: client.dataset("chips")["state"] == "valid", 60)
    job = client.index_shapes("chips")["id"]
    served.until(lambda: client.job(job)["finished_at"] is not None, 120)
    found = client.search(EXAMPLES / "chip.stl", count=6)
    assert found["hits"][0]["name"] == "chip/by1.stl"
    with visit(chrome, served, "pointcloud", viewport=PHONE) as page:
        example(page, "chip.stl")
        hits = page.locator("[data-hits] li")
        expect(hits).to_have_count(len(found["hits"]))
        for number, hit in enumerate(found["hits"]):
            expect(hits.nth(number)).to_contain_text(f"{hit['name']} (chip)")
        assert hits.first.locator("img").evaluate("image => image.naturalWidth") == 96


def test_a_source_and_what_to_inline(chrome, served, client):
    found = client.advise(EXAMPLES / "sensors.c")
    assert found["text_advised"] < found["text_stock"]
    with visit(chrome, served, "inlining") as page:
        example(page, "sensors.c")
        expect(page.locator("[data-stock]")).to_have_text(str(found["text_stock"]))
        expect(page.locator("[data-advised]")).to_have_text(str(found["text_advised"]))
        assert found["winner"] in tell(page, "winner")
        expect(page.locator("[data-candidates] tbody tr")).to_have_count(len(found["candidates"]))
        expect(page.locator("[data-candidates] tr", has_text="wins")).to_contain_text(found["winner"])
        rows = page.locator("[data-sites] tbody tr")
        expect(rows).to_have_count(len(found["sites"]))
        site = found["sites"][0]
        expect(rows.first).to_contain_text(f"sensors.c:{site['line']}:{site['column']}")
        differing = [site for site in found["sites"] if site["stock"] not in (None, site["inline"])]
        page.get_by_label("Only those where the advice differs").check()
        expect(rows).to_have_count(len(differing))
        changed = page.locator("[data-functions] tbody tr").first
        expect(changed).to_contain_text(found["functions"][0]["name"])
        expect(changed.locator("td").first).to_have_text(str(found["functions"][0]["stock"]))
        content, name = saved(page, "Download the replay file")
        assert (content.decode(), name) == (found["artefact"]["content"], "sensors-replay.txt")
        assert "-cgscc-inline-replay=sensors-replay.txt" in tell(page, "options")
        page.get_by_role("button", name="Show annotated IR").click()
        expect(page.locator("[data-annotated]")).to_contain_text("define dso_local")
        content, name = saved(page, "Download the annotated IR")
        assert (content[:15], name) == (b"source_filename", "sensors.ll")


BAD = {
    "iqa": ("#photo-first", "note.jpg", "no picture", "not an image"),
    "bots": ("#file", "account.json", '{"screen_name": "x", "followers_count": -3}', "a count cannot be negative"),
    "pointcloud": ("#shape", "shape.ply", "ply\nformat ascii 1.0\nelement vertex 3\nend_header\n", "PLY"),
    "inlining": ("#file", "broken.c", "int f( { return 1; }\n", "broken.c:1:8"),
}


@pytest.mark.parametrize("domain", BAD)
def test_a_bad_file_is_answered_with_the_problems_text(chrome, served, domain):
    field, name, content, said = BAD[domain]
    with visit(chrome, served, domain, "Failed to load resource", viewport=PHONE) as page:
        page.locator(field).set_input_files({"name": name, "mimeType": "", "buffer": content.encode()})
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text(said)
        assert re.search(r"Request [0-9a-f]{32}", alert.inner_text())
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        expect(alert.get_by_role("button", name="Try again")).to_have_count(0)


@pytest.mark.parametrize(
    ("text", "said"),
    {
        "": "nothing to score",
        "{": "not JSON",
        "just words": "neither JSON nor a table",
        "a,b\n1,2,3": "Line 2 of the table has 3 cells",
        'a,b\n"1,2': "does not end",
    }.items(),
)
def test_what_cannot_be_read_as_accounts_is_told_without_asking(chrome, served, text, said):
    with visit(chrome, served, "bots") as page:
        page.get_by_label("Or paste").fill(text)
        page.get_by_role("button", name="Score", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text(said)


def test_a_dropped_file_is_taken_like_a_chosen_one(chrome, served):
    with visit(chrome, served, "inlining") as page:
        drop = page.evaluate_handle(
            "() => { const held = new DataTransfer();"
            " held.items.add(new File(['int one(void) { return 1; }'], 'one.c')); return held }"
        )
        page.dispatch_event(".drop", "drop", {"dataTransfer": drop})
        expect(page.locator("[data-winner]")).to_contain_text("nothing to change")
        assert "fourfold advise one.c" in command(page, "fourfold")


def test_shapes_turn_by_themselves_unless_motion_is_unwanted(chrome, served):
    with visit(chrome, served, "pointcloud", reduced_motion="no-preference", viewport=PHONE) as page:
        example(page, "chip.stl")
        left, right = (page.locator(f"[data-shape={shape}]") for shape in ("input", "reconstruction"))
        expect(right.locator("canvas").first).to_be_visible(timeout=DRAWN_MS)
        first = left.evaluate(EYE)
        page.wait_for_function(f"first => ({EYE})(document.querySelector('[data-shape=input]')) !== first", arg=first)
        turning = page.get_by_role("button", name="Turn")
        if turning.get_attribute("aria-pressed") == "true":  # a browser that draws too slowly has stopped by itself
            turning.press("Enter")
        expect(turning).to_have_attribute("aria-pressed", "false")
        page.wait_for_timeout(100)
        assert left.evaluate(EYE) == right.evaluate(EYE)
