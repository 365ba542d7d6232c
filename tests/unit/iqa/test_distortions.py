"""The table of distortions: every kind at every strength, its determinism and its direction."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data

from services.iqa.distortions import DISTORTIONS, STRENGTHS, distort

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def photo() -> Pixels:
    return np.ascontiguousarray(data.astronaut()[20:180, 140:332])


def distance(left: Pixels, right: Pixels) -> float:
    return float(np.abs(left.astype(float) - right.astype(float)).mean())


def test_there_are_at_least_twenty_kinds():
    assert len(DISTORTIONS) >= 20
    assert "none" not in DISTORTIONS


@pytest.mark.parametrize("kind", DISTORTIONS)
def test_a_kind(photo: Pixels, kind: str):
    before = photo.copy()
    images = [distort(photo, kind, strength, seed=4) for strength in STRENGTHS]
    assert np.array_equal(photo, before), "the source must not change"
    for image in images:
        assert image.shape == photo.shape
        assert image.dtype == np.uint8
    changes = [distance(image, photo) for image in images]
    assert changes[0] > 0
    assert changes == sorted(changes), "a stronger distortion changes more"
    assert changes[-1] > 1.5 * changes[0]


@pytest.mark.parametrize("kind", DISTORTIONS)
def test_the_same_seed_gives_the_same_pixels(photo: Pixels, kind: str):
    assert np.array_equal(distort(photo, kind, 3, seed=1), distort(photo, kind, 3, seed=1))


@pytest.mark.parametrize("kind", ["white-noise", "colour-blocks", "motion-blur", "displaced-patches"])
def test_another_seed_gives_other_pixels(photo: Pixels, kind: str):
    assert not np.array_equal(distort(photo, kind, 3, seed=1), distort(photo, kind, 3, seed=2))


def test_kinds_draw_their_own_noise(photo: Pixels):
    # One generator for all kinds would make the noises of one strength copies of each other.
    white = distort(photo, "white-noise", 3).astype(float) - photo
    speckle = distort(photo, "multiplicative-noise", 3).astype(float) - photo
    assert abs(np.corrcoef(white.ravel(), speckle.ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("strength", [0, 6, -1])
def test_a_strength_off_the_scale_is_refused(photo: Pixels, strength: int):
    with pytest.raises(IndexError, match=f"strength {strength}"):
        distort(photo, "jpeg", strength)


def test_an_unknown_kind_is_refused(photo: Pixels):
    with pytest.raises(KeyError, match="sepia"):
        distort(photo, "sepia", 1)
