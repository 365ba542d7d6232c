"""CI's rule for the images: walked when a file that makes them has changed, else one line that says why not."""

import shutil
import subprocess

import pytest

from tests import images
from tests.deployment.walked import FILES, ROOT, passed


def test_the_images_are_walked_when_what_makes_them_changed():
    if day := passed():
        pytest.skip(f"images-test: not run, its files are those with which it passed on {day}")
    if shutil.which("docker") is None or subprocess.run(["docker", "version"], capture_output=True).returncode:
        # Here the suite does as it is told by hand alone: an engine of one's own changes the machine's packet filters.
        pytest.skip(
            "images-test: not run, no Docker engine answers; its files have changed: make images-test starts one"
        )
    assert images.main([]) == 0


def test_every_file_that_makes_an_image_is_watched():
    found = {path.name for pattern in ("Dockerfile*", "*compose*.yml", "image-*") for path in ROOT.glob(pattern)}
    assert found <= set(FILES)
