"""The console in a headless browser, for end-to-end tests: a page that fails on what must never happen in it."""

import shutil
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# No sandbox: tests run as root in a machine of their own. No line to anywhere: the page must do without.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
PATIENCE_MS = 60_000  # of two cores that do other things as well

expect.set_options(timeout=PATIENCE_MS)


def browser_path():
    """Where this machine's Chromium is; skips the tests where there is none."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no chromium or google-chrome is on the path: the console is not tested (apt-get install chromium)")
    return path


@contextmanager
def browser():
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=browser_path(), args=ARGUMENTS)
        yield found
        found.close()


class Visit:
    """One person's tab at the gateway `up`; `with Visit(...) as page` ends with a look at what went wrong in it.

    `expected` are parts of console errors that a test provokes (a browser reports every refused request as one).
    """

    def __init__(self, browser, up, *, key=True, expected=(), **context):
        self.context = browser.new_context(base_url=up.url, **context)
        self.context.set_default_timeout(PATIENCE_MS)
        self.page: Page = self.context.new_page()
        self.up, self.key = up, key
        self.expected = list(expected)
        self.wrong: list[str] = []
        self.page.on("console", self.heard)
        self.page.on("pageerror", lambda error: self.note(str(error)))
        self.page.on("request", self.same_host)

    def heard(self, message):
        if message.type in ("error", "warning"):
            self.note(message.text)

    def note(self, text):
        if not any(part in text for part in self.expected):
            self.wrong.append(text)

    def same_host(self, request):
        parts = urlsplit(request.url)
        if parts.scheme not in ("blob", "data") and f"{parts.scheme}://{parts.netloc}" != self.up.url:
            self.wrong.append(f"a request to {request.url}")

    def __enter__(self):
        self.page.goto("/")
        if self.key:
            enter(self.page, self.up.key)
            expect(self.page.locator(".page h1")).to_be_visible()
        return self.page

    def __exit__(self, kind, *_):
        self.context.close()
        if kind is None:
            assert not self.wrong, self.wrong


def enter(page, key):
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_role("button", name="Enter").click()
