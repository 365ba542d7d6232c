"""What each file of the console's tests has: a started product, and a browser."""

import pytest

from tests.browser import browser, browser_path
from tests.running import Up


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """What `make up` starts, for a file of tests of the console."""
    browser_path()  # without one there is nothing to start it for
    up = Up(tmp_path_factory.mktemp("console") / "home")
    yield up
    up.stop()


# A browser's event loop keeps others from running: it ends with its file.
@pytest.fixture(scope="module")
def chrome():
    with browser() as found:
        yield found
