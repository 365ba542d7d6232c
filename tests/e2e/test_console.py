"""The console in a browser, against what `make up` starts."""

import csv
import re
import signal

import psutil
import pytest

from fourfold import Client
from tests.browser import Visit, enter, expect
from tests.unit.bots.making import write_graph

PAGES = ("", "try", "jobs", "train", "models", "models/bots", "datasets", "audits")
FIRST_LOAD_BYTES = 300 << 10
WORKER_MS = 120_000  # a worker's child imports torch first


@pytest.fixture
def client(served):
    with Client(served.url, served.key) as client:
        yield client


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs") / "accounts"
    folder.mkdir()
    return write_graph(folder, accounts=240, edges="kind")


@pytest.mark.parametrize(
    "look",
    [
        {"color_scheme": "light"},
        {"color_scheme": "dark"},
        {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
    ],
    ids=["light", "dark", "phone"],
)
def test_every_page_opens_and_none_is_wider_than_the_window(chrome, served, look):
    with Visit(chrome, served, **look) as page:
        assert page.locator("html").get_attribute("data-theme") == look["color_scheme"]
        for address in PAGES:
            page.goto(f"/#/{address}")
            expect(page.locator(".page h1")).to_be_visible()
            expect(page.locator(".spinner")).to_have_count(0)
            assert page.locator(".problem").count() == 0, address
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), address


def test_the_first_load_is_small(chrome, served):
    sizes = {}
    with Visit(chrome, served, key=False) as page:
        page.on("response", lambda answer: sizes.update({answer.url: int(answer.headers.get("content-length", 0))}))
        page.reload()
        enter(page, served.key)
        expect(page.get_by_role("region", name="iqa")).to_be_visible()
    assert len(sizes) > 5
    assert not any("plotly" in url for url in sizes)
    assert sum(sizes.values()) <= FIRST_LOAD_BYTES


def test_a_wrong_key_is_told_and_the_right_one_stays_in_the_tab(chrome, served, client):
    with Visit(chrome, served, key=False, expected=["401"]) as page:
        enter(page, "ff_wrong")
        expect(page.get_by_role("alert")).to_contain_text("A valid API key or token is required")
        expect(page.get_by_role("alert").locator("code")).to_have_text(re.compile("^[0-9a-f]+$"))  # the request's id
        made = client.create_key("of a visitor", ["predict"])
        enter(page, made["secret"])
        expect(page.get_by_role("heading", name="Home")).to_be_visible()
        page.reload()
        expect(page.get_by_role("heading", name="Home")).to_be_visible()
        assert made["secret"] not in page.url
        assert page.evaluate("JSON.stringify(localStorage)") == "{}"
        page.goto("/#/jobs")
        expect(page.locator(".page")).to_contain_text("It lacks the scope train.")
        client.revoke_key(made["id"])
        page.goto("/#/")
        expect(page.get_by_label("Key", exact=True)).to_be_visible()
        expect(page.get_by_role("alert")).to_contain_text("unknown, expired or revoked")
        assert page.evaluate("sessionStorage.getItem('fourfold.key')") is None


def test_a_gateway_that_is_away_is_told(chrome, served):
    with Visit(chrome, served, expected=["ERR_INTERNET_DISCONNECTED", "dynamically imported"]) as page:
        page.context.set_offline(True)
        page.goto("/#/models")
        expect(page.get_by_role("alert")).to_contain_text("This page could not be loaded")
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("alert")).to_contain_text("The gateway is not answering")
        page.context.set_offline(False)
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("link", name="iqa")).to_be_visible()


def test_what_a_server_sends_is_text(chrome, served, client):
    hostile = "<img src=x onerror=\"document.title='taken'\">"
    client.set_alias("bots", "canary", 1, weight=0.01, reason=hostile)
    with Visit(chrome, served) as page:
        page.goto("/#/models/bots")
        expect(page.get_by_role("cell", name=hostile, exact=True)).to_be_visible()
        assert page.locator("main img").count() == 0
        page.get_by_role("button", name="End the canary").click()
        page.get_by_role("dialog").get_by_role("button", name="End it").click()
        expect(page.get_by_text("it answers every request")).to_be_visible()
    assert "canary" not in client.model("bots")["aliases"]["aliases"]


def test_with_the_keyboard_alone(chrome, served):
    with Visit(chrome, served) as page:
        page.goto("/#/models/bots")
        expect(page.locator("main")).to_be_focused()  # a reader begins with the new page, not with the links above it
        page.reload()
        expect(page.get_by_role("heading", name="Versions")).to_be_visible()
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="To the content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Try").last).to_be_focused()


def test_a_flawed_upload_says_where(chrome, served, graph, tmp_path):
    """A file of more than one part arrives; what the domain then finds is named with its place."""
    folder = tmp_path / "flawed"
    folder.mkdir()
    with (graph / "accounts.csv").open() as stream:
        rows = list(csv.reader(stream))
    rows[3][rows[0].index("followers_count")] = "many"
    with (folder / "accounts.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    (folder / "large.bin").write_bytes(bytes(33 << 20))
    with Visit(chrome, served, expected=["409"]) as page:  # which says what to upload first
        page.goto("/#/datasets")
        page.get_by_label("A folder").set_input_files(folder)
        expect(page.get_by_text("2 files, 33 MiB.")).to_be_visible()
        expect(page.get_by_label("Name")).to_have_value("flawed")
        page.get_by_label("For the model").first.select_option("bots")
        page.get_by_role("button", name="Upload").click()
        expect(page.get_by_role("heading", name="flawed")).to_be_visible()
        expect(page.get_by_role("row", name=re.compile("accounts.csv.*followers_count"))).to_be_visible()


def test_a_training_from_the_upload_to_the_promotion(chrome, served, client, graph):
    """A person's whole way; on it the gateway dies, and the page is loaded again."""
    with Visit(chrome, served, expected=["409", "ERR_"]) as page:
        page.goto("/#/datasets")
        page.get_by_label("A folder").set_input_files(graph)
        page.get_by_label("For the model").first.select_option("bots")
        page.get_by_role("button", name="Upload").click()
        page.get_by_role("link", name="Train on it").click()
        page.get_by_label("Epochs").fill("60")
        page.get_by_label("Patience").fill("60")
        page.get_by_label("Floors").uncheck()
        page.get_by_label("Given encoder").fill("none of these")
        page.get_by_role("button", name="Train", exact=True).click()
        expect(page.get_by_role("heading", name="Train: bots")).to_be_visible()

        curve = page.locator("[data-figure=loss] .scatterlayer path.js-line")
        expect(curve).to_be_visible(timeout=WORKER_MS)
        _kill_gateway(served)
        expect(page.get_by_text("The connection is lost")).to_be_visible()
        expect(page.get_by_text("The connection is lost")).to_have_count(0)
        before = _step(page)
        page.reload()
        expect(curve).to_be_visible()
        assert _step(page) >= before
        expect(page.locator("h1 .tag")).to_have_text("succeeded", timeout=WORKER_MS)
        expect(page.locator(".log")).to_contain_text("published as bots/2")
        job = client.jobs(state="succeeded", limit=1)[0]
        points = client.job_points(job["id"])
        expect(page.locator("[data-figure=loss]")).to_have_attribute(
            "aria-label", re.compile(f"over {len(points)} steps")
        )

        page.get_by_role("link", name="Look at it and promote").click()
        dialog = page.get_by_role("dialog")
        page.get_by_role("button", name="Change the policy").click()
        dialog.get_by_label("An audit is required").check()
        dialog.get_by_role("button", name="Set the policy").click()
        expect(page.get_by_text("A new champion needs an audit")).to_be_visible()
        page.get_by_role("button", name="Promote version 2").click()
        expect(dialog).to_contain_text("takes the place of version 1")
        dialog.get_by_role("button", name="Promote").click()
        expect(dialog.get_by_role("alert")).to_contain_text("policy asks for an audit")
        dialog.get_by_label(re.compile("against the gate")).check()
        dialog.get_by_label("Reason", exact=True).fill("a trial")
        dialog.get_by_role("button", name="Promote").click()
        expect(page.get_by_text("Version 2 is the champion")).to_be_visible()
        page.goto("/#/")
        expect(page.get_by_role("region", name="bots")).to_contain_text("Version 2")
        page.goto("/#/models/bots")
        page.get_by_role("button", name="Roll back to version 1").click()
        page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
        expect(page.get_by_text("Version 1 is the champion")).to_be_visible()
    history = client.model("bots")["history"]
    assert [table["reason"] for table in history[-2:]] == ["forced: a trial", "rollback from 2"]


def test_settings_that_are_refused_are_marked_and_a_job_is_cancelled(chrome, served, client, graph):
    client.add_dataset(graph, "bots", "accounts")
    with Visit(chrome, served, expected=["422"]) as page:
        page.goto("/#/train?domain=bots")
        tasks = page.get_by_label("Tasks")
        tasks.fill("bot, fame")
        page.get_by_role("button", name="Train", exact=True).click()
        expect(tasks).to_have_attribute("aria-invalid", "true")
        expect(page.get_by_role("alert")).to_contain_text("The training configuration is not valid")
        tasks.fill("bot")
        page.get_by_label("Epochs").fill("2000")
        page.get_by_label("Patience").fill("2000")
        page.get_by_role("button", name="Train", exact=True).click()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
        expect(page.locator("h1 .tag")).to_have_text("cancelled", timeout=WORKER_MS)
        page.goto("/#/jobs?state=cancelled&domain=bots")
        expect(page.get_by_role("link", name="train bots")).to_be_visible()


def test_an_audit_is_started_followed_and_read_in_place(chrome, served, client, graph):
    client.add_dataset(graph, "bots", "accounts")
    with Visit(chrome, served) as page:
        page.goto("/#/audits?model=bots&version=1")
        page.get_by_label("On the data set").select_option(label="accounts")
        for check in ("Groups", "Landscape", "Backdoor"):
            page.get_by_label(re.compile(check)).uncheck()
        page.get_by_role("button", name="Start the audit").click()
        expect(page.get_by_role("heading", name="Audit of bots/1")).to_be_visible()
        expect(page.get_by_role("heading", name="robustness")).to_be_visible(timeout=WORKER_MS)
        expect(page.locator(".plot .main-svg").first).to_be_visible()
        with page.expect_download() as downloading:
            page.get_by_role("button", name="Download as a page").click()
        assert "<html" in downloading.value.path().read_text()
        page.goto("/#/models/bots")
        expect(page.get_by_role("row", name=re.compile("^Verdicts")).locator("a .tag, .tag").first).to_be_visible()


def _kill_gateway(served):
    for process in psutil.Process(served.process.pid).children(recursive=True):
        if any("gateway.app" in part for part in process.cmdline()):
            process.send_signal(signal.SIGKILL)
            return
    raise AssertionError("no gateway runs")


def _step(page):
    found = re.search(r"step (\d+) of", page.locator(".page").inner_text())
    return int(found[1]) if found else 0
