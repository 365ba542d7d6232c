"""Draws a quality map over the image it belongs to."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Bad to good, growing in lightness, so that it reads without colour vision too.
_COLOURS = np.array([(20, 20, 110), (30, 90, 160), (40, 150, 140), (150, 200, 70), (250, 235, 60)], np.float64)
_OPACITY = 0.55


def overlay_png(pixels_HW3: NDArray[np.uint8], map_hw: NDArray[np.float32]) -> bytes:
    """PNG of the image (uint8 sRGB) under its map (scores 0–100), blue where bad, yellow where good."""
    height, width = pixels_HW3.shape[:2]
    smooth = Image.fromarray(map_hw.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    place = np.clip(np.asarray(smooth) / 100, 0, 1) * (len(_COLOURS) - 1)
    steps = np.arange(len(_COLOURS))
    colours_HW3 = np.stack([np.interp(place, steps, _COLOURS[:, channel]) for channel in range(3)], 2)
    grey_HW1 = pixels_HW3.mean(2, keepdims=True)
    mixed = _OPACITY * colours_HW3 + (1 - _OPACITY) * grey_HW1
    stream = io.BytesIO()
    Image.fromarray(mixed.astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()
