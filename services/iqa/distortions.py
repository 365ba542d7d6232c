"""Twenty-seven kinds of image distortion at five strengths, after the kinds of KADID-10k.

Each takes `image_HW3` (uint8 sRGB, H × W × 3), the strength's parameter and a seeded generator, and returns the same
shape and type. The same source, kind, strength and seed give the same pixels.
"""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage import color, restoration

Pixels = NDArray[np.uint8]
Random = np.random.Generator

STRENGTHS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Distortion:
    """One kind: its function and the parameter at each of the five strengths, weakest first."""

    apply: Callable[[Pixels, Any, Random], Pixels]
    parameters: tuple[Any, Any, Any, Any, Any]


def distort(image_HW3: Pixels, kind: str, strength: int, seed: int = 0) -> Pixels:
    """`image_HW3` under `kind` at `strength` 1–5; raises KeyError for an unknown kind, IndexError for a strength."""
    if not 1 <= strength <= 5:
        raise IndexError(f"strength {strength} is not in 1–5")
    distortion = DISTORTIONS[kind]
    random = np.random.default_rng([seed, zlib.crc32(kind.encode()), strength])
    return distortion.apply(image_HW3, distortion.parameters[strength - 1], random)


def _pixels(values: NDArray[Any]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _floats(image_HW3: Pixels) -> NDArray[np.float32]:
    return image_HW3.astype(np.float32)


def _disk(radius: float) -> NDArray[np.float64]:
    side = np.arange(-np.ceil(radius), np.ceil(radius) + 1)
    inside = (side[:, None] ** 2 + side[None, :] ** 2 <= radius**2 + 0.5).astype(np.float64)
    return inside / inside.sum()


def _convolve(image_HW3: Pixels, kernel: NDArray[np.float64]) -> Pixels:
    planes = [ndimage.convolve(plane, kernel, mode="reflect") for plane in np.moveaxis(_floats(image_HW3), 2, 0)]
    return _pixels(np.stack(planes, 2))


def _gaussian_blur(image: Pixels, sigma: float, _: Random) -> Pixels:
    return _pixels(ndimage.gaussian_filter(_floats(image), (sigma, sigma, 0)))


def _lens_blur(image: Pixels, radius: float, _: Random) -> Pixels:
    return _convolve(image, _disk(radius))


def _motion_blur(image: Pixels, length: int, random: Random) -> Pixels:
    angle = random.uniform(0, np.pi)
    kernel = np.zeros((length, length))
    steps = np.linspace(-(length - 1) / 2, (length - 1) / 2, 4 * length)
    rows = np.rint((length - 1) / 2 + steps * np.sin(angle)).astype(int)
    columns = np.rint((length - 1) / 2 + steps * np.cos(angle)).astype(int)
    kernel[rows, columns] = 1
    return _convolve(image, kernel / kernel.sum())


def _lab(image: Pixels, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Pixels:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # colours outside sRGB are meant to be clipped
        return _pixels(color.lab2rgb(change(color.rgb2lab(image))) * 255)


def _colour_diffusion(image: Pixels, sigma: float, _: Random) -> Pixels:
    return _lab(image, lambda lab: np.dstack([lab[..., :1], ndimage.gaussian_filter(lab[..., 1:], (sigma, sigma, 0))]))


def _colour_shift(image: Pixels, shift: int, random: Random) -> Pixels:
    angle = random.uniform(0, 2 * np.pi)
    offset = (round(shift * np.sin(angle)), round(shift * np.cos(angle)))
    shifted = image.copy()
    shifted[..., 1] = ndimage.shift(image[..., 1], offset, order=0, mode="reflect")
    return shifted


def _colour_quantisation(image: Pixels, colours: int, _: Random) -> Pixels:
    palette = Image.fromarray(image).quantize(colours, dither=Image.Dither.NONE)
    return np.asarray(palette.convert("RGB"))


def _desaturate(image: Pixels, factor: float, _: Random) -> Pixels:
    grey = _floats(image) @ np.array([0.299, 0.587, 0.114], np.float32)
    return _pixels(grey[..., None] + factor * (_floats(image) - grey[..., None]))


def _oversaturate(image: Pixels, factor: float, _: Random) -> Pixels:
    return _lab(image, lambda lab: lab * np.array([1, factor, factor]))


def _recompress(image: Pixels, codec: str, **options: Any) -> Pixels:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, codec, **options)
    return np.asarray(Image.open(stream).convert("RGB"))


def _jpeg(image: Pixels, quality: int, _: Random) -> Pixels:
    return _recompress(image, "JPEG", quality=quality)


def _jpeg2000(image: Pixels, ratio: int, _: Random) -> Pixels:
    return _recompress(image, "JPEG2000", quality_mode="rates", quality_layers=[ratio], irreversible=True)


def _webp(image: Pixels, quality: int, _: Random) -> Pixels:
    return _recompress(image, "WEBP", quality=quality)


def _white_noise(image: Pixels, deviation: float, random: Random) -> Pixels:
    return _pixels(_floats(image) + random.normal(0, deviation, image.shape))


def _chroma_noise(image: Pixels, deviation: float, random: Random) -> Pixels:
    ycbcr = np.asarray(Image.fromarray(image).convert("YCbCr")).astype(np.float32)
    ycbcr[..., 1:] += random.normal(0, deviation, (*image.shape[:2], 2))
    return np.asarray(Image.fromarray(_pixels(ycbcr), "YCbCr").convert("RGB"))


def _impulse_noise(image: Pixels, share: float, random: Random) -> Pixels:
    hit = random.random(image.shape)
    return np.where(hit < share / 2, 0, np.where(hit > 1 - share / 2, 255, image)).astype(np.uint8)


def _multiplicative_noise(image: Pixels, deviation: float, random: Random) -> Pixels:
    return _pixels(_floats(image) * (1 + random.normal(0, deviation, image.shape)))


def _denoise(image: Pixels, deviation: float, random: Random) -> Pixels:
    noisy = _white_noise(image, deviation, random)
    smooth = restoration.denoise_tv_chambolle(noisy / 255, weight=deviation / 120, channel_axis=2, max_num_iter=30)
    return _pixels(smooth * 255)


def _curve(image: Pixels, power: float, _: Random) -> Pixels:
    return _pixels(255 * (_floats(image) / 255) ** power)


def _mean_shift(image: Pixels, shift: float, random: Random) -> Pixels:
    return _pixels(_floats(image) + shift * (1 if random.random() < 0.5 else -1))


def _jitter(image: Pixels, spread: float, random: Random) -> Pixels:
    rows, columns = np.indices(image.shape[:2])
    rows = rows + random.normal(0, spread, rows.shape)
    columns = columns + random.normal(0, spread, columns.shape)
    planes = [
        ndimage.map_coordinates(image[..., plane], (rows, columns), order=1, mode="reflect") for plane in range(3)
    ]
    return np.stack(planes, 2).astype(np.uint8)


def _patches(image: Pixels, count: int, random: Random) -> Pixels:
    """Small patches copied to a place nearby."""
    changed, side = image.copy(), 16
    for _ in range(count):
        row, column = (int(random.integers(16, size - side - 16)) for size in image.shape[:2])
        down, right = random.integers(-16, 17, 2)
        patch = image[row : row + side, column : column + side]
        changed[row + down : row + down + side, column + right : column + right + side] = patch
    return changed


def _pixelate(image: Pixels, factor: float, _: Random) -> Pixels:
    picture = Image.fromarray(image)
    small = picture.resize((round(picture.width / factor), round(picture.height / factor)), Image.Resampling.BOX)
    return np.asarray(small.resize(picture.size, Image.Resampling.NEAREST))


def _quantise(image: Pixels, levels: int, _: Random) -> Pixels:
    step = 256 / levels
    return _pixels((np.floor(_floats(image) / step) + 0.5) * step)


def _colour_blocks(image: Pixels, count: int, random: Random) -> Pixels:
    changed, side = image.copy(), 32
    for _ in range(count):
        row, column = (int(random.integers(0, size - side)) for size in image.shape[:2])
        changed[row : row + side, column : column + side] = random.integers(0, 256, 3)
    return changed


def _oversharpen(image: Pixels, amount: float, _: Random) -> Pixels:
    smooth = ndimage.gaussian_filter(_floats(image), (1.5, 1.5, 0))
    return _pixels(_floats(image) + amount * (_floats(image) - smooth))


def _contrast(image: Pixels, factor: float, _: Random) -> Pixels:
    mean = _floats(image).mean()
    return _pixels(mean + factor * (_floats(image) - mean))


def _upscale(image: Pixels, factor: float, _: Random) -> Pixels:
    """Enlarged from too few pixels, as a thumbnail shown large."""
    picture = Image.fromarray(image)
    small = picture.resize((round(picture.width / factor), round(picture.height / factor)), Image.Resampling.BICUBIC)
    return np.asarray(small.resize(picture.size, Image.Resampling.BICUBIC))


DISTORTIONS: dict[str, Distortion] = {
    "gaussian-blur": Distortion(_gaussian_blur, (0.6, 1.1, 1.9, 3.2, 5.0)),
    "lens-blur": Distortion(_lens_blur, (1, 2, 3, 5, 8)),
    "motion-blur": Distortion(_motion_blur, (3, 6, 10, 15, 23)),
    "colour-diffusion": Distortion(_colour_diffusion, (2, 5, 9, 15, 24)),
    "colour-shift": Distortion(_colour_shift, (1, 3, 5, 8, 12)),
    "colour-quantisation": Distortion(_colour_quantisation, (96, 48, 24, 12, 6)),
    "desaturation": Distortion(_desaturate, (0.75, 0.5, 0.3, 0.15, 0.0)),
    "oversaturation": Distortion(_oversaturate, (1.4, 1.9, 2.6, 3.6, 5.0)),
    "jpeg2000": Distortion(_jpeg2000, (24, 48, 90, 150, 240)),
    "jpeg": Distortion(_jpeg, (55, 30, 18, 10, 5)),
    "webp": Distortion(_webp, (60, 30, 15, 6, 0)),
    "white-noise": Distortion(_white_noise, (5, 10, 18, 30, 50)),
    "chroma-noise": Distortion(_chroma_noise, (6, 12, 22, 36, 60)),
    "impulse-noise": Distortion(_impulse_noise, (0.003, 0.01, 0.03, 0.07, 0.15)),
    "multiplicative-noise": Distortion(_multiplicative_noise, (0.05, 0.1, 0.18, 0.3, 0.5)),
    "denoise": Distortion(_denoise, (8, 14, 22, 34, 50)),
    "brighten": Distortion(_curve, (0.85, 0.7, 0.55, 0.4, 0.28)),
    "darken": Distortion(_curve, (1.2, 1.5, 2.0, 2.8, 4.0)),
    "mean-shift": Distortion(_mean_shift, (12, 24, 40, 60, 90)),
    "jitter": Distortion(_jitter, (0.25, 0.5, 0.9, 1.6, 3.0)),
    "displaced-patches": Distortion(_patches, (10, 25, 50, 90, 160)),
    "pixelation": Distortion(_pixelate, (2, 3, 4, 6, 9)),
    "quantisation": Distortion(_quantise, (24, 14, 9, 6, 4)),
    "colour-blocks": Distortion(_colour_blocks, (2, 5, 9, 15, 24)),
    "oversharpening": Distortion(_oversharpen, (0.8, 1.6, 2.8, 4.5, 7.0)),
    "low-contrast": Distortion(_contrast, (0.8, 0.6, 0.45, 0.3, 0.18)),
    "upscaling": Distortion(_upscale, (1.4, 2, 3, 4.5, 7)),
}
