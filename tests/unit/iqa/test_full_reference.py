"""The four full-reference metrics against an independent implementation and against what their definitions promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from services.iqa.full_reference import METRICS

Pixels = NDArray[np.uint8]
BEST = {"mdsi": 0.0, "vsi": 1.0, "haarpsi": 1.0, "ms_gmsdc": 0.0}


def picture(height: int = 288, width: int = 320) -> Pixels:
    """A deterministic image with edges, texture and colour."""
    y, x = np.mgrid[:height, :width].astype(float)
    waves = [np.sin(x / (5 + c) + 0.002 * x * y / (c + 2)) + np.cos(y / (9 - 2 * c)) for c in range(3)]
    noise = np.random.default_rng(7).normal(0, 6, (height, width, 3))
    return np.clip(np.rint(127 + 55 * np.stack(waves, 2) + noise), 0, 255).astype(np.uint8)


def noisy(image: Pixels, deviation: float = 15) -> Pixels:
    noise = np.random.default_rng(3).normal(0, deviation, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def blurred(image: Pixels, side: int = 5) -> Pixels:
    planes = [ndimage.uniform_filter(image[..., plane].astype(float), side) for plane in range(3)]
    return np.rint(np.stack(planes, 2)).astype(np.uint8)


def tinted(image: Pixels) -> Pixels:
    return np.rint(image * np.array([1, 0.8, 0.9])).astype(np.uint8)


def tensor(image: Pixels, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[None].to(dtype)


# Computed once with piq 0.8.0, in float32.
GOLDEN = {
    "noise": {"mdsi": 0.361705, "vsi": 0.963420, "haarpsi": 0.896774, "ms_gmsdc": 0.035622},
    "blur": {"mdsi": 0.254847, "vsi": 0.990564, "haarpsi": 0.961351, "ms_gmsdc": 0.020518},
    "tint": {"mdsi": 0.282423, "vsi": 0.989621, "haarpsi": 0.786395, "ms_gmsdc": 0.072810},
}
CHANGES = {"noise": noisy, "blur": blurred, "tint": tinted}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("change", CHANGES)
def test_agrees_with_an_independent_implementation(name: str, change: str):
    metric, _ = METRICS[name]
    image = picture()
    assert float(metric(tensor(image), tensor(CHANGES[change](image)))) == pytest.approx(GOLDEN[change][name], abs=1e-5)


@pytest.mark.parametrize("name", METRICS)
def test_identical_images_are_best(name: str):
    metric, _ = METRICS[name]
    image = tensor(picture(96, 128), torch.float64)
    assert float(metric(image, image.clone())) == pytest.approx(BEST[name], abs=1e-4)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("steps", [(noisy, (4, 10, 25, 60)), (blurred, (3, 5, 9, 15))], ids=["noise", "blur"])
def test_stronger_is_worse(name: str, steps: tuple):
    metric, sign = METRICS[name]
    image = picture()
    change, strengths = steps
    values = [sign * float(metric(tensor(image), tensor(change(image, strength)))) for strength in strengths]
    assert values == sorted(values, reverse=True)
    assert values[0] < sign * BEST[name]


@pytest.mark.parametrize("name", METRICS)
def test_batch_equals_single_and_dtype_is_kept(name: str):
    metric, _ = METRICS[name]
    image = picture(96, 128)
    changed = torch.cat([tensor(change(image)) for change in CHANGES.values()])
    reference = tensor(image).expand(3, -1, -1, -1)
    together = metric(reference, changed)
    assert together.shape == (3,)
    assert together.dtype == torch.float32
    alone = torch.cat([metric(reference[:1], changed[index : index + 1]) for index in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    double = metric(reference.double(), changed.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), together, rtol=1e-3, atol=1e-4)


# VSI weighs by the larger saliency and HaarPSI by the larger detail, MS-GMSD has symmetric terms throughout; MDSI's
# structure term compares each image with the mean of the two with opposite signs, so it is not symmetric.
@pytest.mark.parametrize("name", ["vsi", "haarpsi", "ms_gmsdc"])
def test_symmetric_by_definition(name: str):
    metric, _ = METRICS[name]
    reference, changed = (tensor(image, torch.float64) for image in (picture(96, 128), noisy(picture(96, 128))))
    torch.testing.assert_close(metric(reference, changed), metric(changed, reference))


def test_mdsi_is_not_symmetric():
    metric, _ = METRICS["mdsi"]
    reference, changed = tensor(picture(96, 128)), tensor(blurred(picture(96, 128)))
    assert abs(float(metric(reference, changed) - metric(changed, reference))) > 1e-3


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**16), height=st.integers(64, 100), width=st.integers(64, 100))
def test_any_image_has_a_finite_value_no_better_than_identity(name: str, seed: int, height: int, width: int):
    metric, sign = METRICS[name]
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (2, height, width, 3)).astype(np.uint8)
    value = float(metric(tensor(images[0]), tensor(images[1])))
    assert np.isfinite(value)
    assert sign * value <= sign * BEST[name] + 1e-6
