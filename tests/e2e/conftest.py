"""What the console's tests share: one started product, and a browser for each file of tests."""

import pytest

from tests.browser import browser, browser_path
from tests.running import Up


@pytest.fixture(scope="package")
def served(tmp_path_factory):
    """What `make up` starts, for all tests of the console."""
    browser_path()  # without one there is nothing to start it for
    up = Up(tmp_path_factory.mktemp("console") / "home")
    yield up
    up.stop()


# A browser's event loop keeps others from running: it ends with its file.
@pytest.fixture(scope="module")
def chrome():
    with browser() as found:
        yield found
