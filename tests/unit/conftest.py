"""Fixtures of several unit suites."""

import pytest

from shared.database import connect, upgrade


@pytest.fixture
def engine(tmp_path):
    """A database of the house with its newest schema."""
    url = f"sqlite:///{tmp_path / 'house.db'}"
    upgrade(url)
    upgrade(url)  # a second start changes nothing
    engine = connect(url)
    yield engine
    engine.dispose()
