"""CI's rule for the images: walked when a file that makes them changed, else one line that says why not."""

import pytest

from tests import images
from tests.deployment.walked import FILES, ROOT, passed


def test_the_images_are_walked_when_what_makes_them_changed():
    if day := passed():
        pytest.skip(f"images-test: not run, its files are those with which it passed on {day}")
    status = images.main([])
    if status == 2:
        pytest.skip("images-test: its files have changed, but there is no Docker engine here and none can be started")
    assert status == 0


def test_every_file_that_makes_an_image_is_watched():
    found = {path.name for pattern in ("Dockerfile*", "*compose*.yml", "image-*") for path in ROOT.glob(pattern)}
    assert found <= set(FILES)
