"""Image files → the pixels that are scored: decoded safely, upright, sRGB, long side at most 512 pixels.

Shapes: H height, W width. Everything here is thread-safe; Pillow releases the interpreter while it decodes.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError

from shared.problems import InputError, PayloadTooLarge, Unprocessable, UnsupportedMedia

LONG_SIDE = 512  # pixels; the scale of the training set
SHORTEST = 32  # pixels; one cell of the network's coarsest grid
MAX_PIXELS = 100_000_000
BACKGROUND = (255, 255, 255)  # what transparent pixels are shown on
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_270,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_90,),
}
# Our own limit, taken from the header before any pixel is read, replaces Pillow's, which only warns up to twice it.
Image.MAX_IMAGE_PIXELS = None


class NotAnImage(UnsupportedMedia):
    code = "iqa-not-an-image"
    title = "The body is not an image of a format that is read here"
    advice = "Send JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF."


class EmptyImage(InputError):
    code = "iqa-empty-image"
    title = "The image has no bytes"
    advice = "Look at what your client sends as the body."


class DamagedImage(InputError):
    code = "iqa-damaged-image"
    title = "The image is truncated or damaged"
    advice = "Send the file again from its source; it ends early."


class ImageTooLarge(PayloadTooLarge):
    code = "iqa-too-many-pixels"
    title = "The image has too many pixels"
    advice = "Make it smaller: it is judged at 512 pixels anyway."


class ImageTooSmall(Unprocessable):
    code = "iqa-too-small"
    title = "The image is too small to be scored"
    advice = "Send a larger picture, or a less narrow one."


@dataclass(frozen=True)
class DecodedImage:
    """`pixels` uint8 (H, W, 3) sRGB at the scored size; sizes are (width, height) in pixels, upright."""

    pixels: NDArray[np.uint8]
    original_size: tuple[int, int]
    format: str
    warnings: list[str] = field(default_factory=list[str])

    @property
    def scored_size(self) -> tuple[int, int]:
        return self.pixels.shape[1], self.pixels.shape[0]


def decode(data: bytes | bytearray, *, content_type: str | None = None, fast: bool = True) -> DecodedImage:
    """Decode one image file. The bytes decide the format; a `content_type` that disagrees is a warning.

    `fast` lets the JPEG decoder skip detail beyond twice the scored size, which moves the score by less than a point.
    Raises EmptyImage, NotAnImage, DamagedImage, ImageTooLarge or ImageTooSmall.
    """
    if not data:
        raise EmptyImage()
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise NotAnImage(f"The first bytes are those of none of {', '.join(FORMATS)}.") from None
    except Exception as error:  # the header parsers raise many kinds on hostile input
        raise DamagedImage("The image's header cannot be read.") from error
    with picture:
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise ImageTooLarge(f"The image has {width * height / 1e6:.0f} megapixels; at most 100 are taken.")
        scale = min(1.0, LONG_SIDE / max(width, height))
        target = (round(width * scale), round(height * scale))
        if min(target) < SHORTEST:
            raise ImageTooSmall(f"At {width}×{height} pixels the scored size is below {SHORTEST} pixels a side.")
        warnings: list[str] = []
        name = picture.format or ""
        if content_type and content_type.startswith("image/") and content_type != Image.MIME.get(name, content_type):
            warnings.append(f"the content type says {content_type}, the bytes are {name}")
        try:
            return _finish(picture, target, name, warnings, fast)
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise DamagedImage(f"The {name} data ends early or is damaged.") from error


def _finish(picture: Image.Image, target: tuple[int, int], name: str, warnings: list[str], fast: bool) -> DecodedImage:
    size = picture.size
    if getattr(picture, "is_animated", False):
        warnings.append("animation: the first frame is scored")
    if fast and name == "JPEG":
        picture.draft(None, (2 * target[0], 2 * target[1]))
    profile, orientation = picture.info.get("icc_profile"), _orientation(picture, warnings)
    picture.load()
    plain = _resizable(picture)
    plain = plain.resize(target, Image.Resampling.BICUBIC, reducing_gap=3.0) if plain.size != target else plain
    plain = _to_srgb(plain, profile, warnings)
    for turn in _UPRIGHT.get(orientation, ()):
        plain = plain.transpose(turn)
    if orientation >= 5:
        size = (size[1], size[0])
    return DecodedImage(np.array(plain, np.uint8), size, name, warnings)


def _orientation(picture: Image.Image, warnings: list[str]) -> int:
    try:
        value: Any = picture.getexif().get(_ORIENTATION, 1)
    except Exception:
        warnings.append("the EXIF data cannot be read; taken as upright")
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _resizable(picture: Image.Image) -> Image.Image:
    """A mode that can be interpolated: L, RGB, RGBA or CMYK, 8 bits a channel."""
    if picture.mode.startswith("I") or picture.mode == "F":
        # 16-bit integers and 0–1 floats are scaled to 8 bits; converting as they are would clip them.
        values = np.asarray(picture, np.float64)
        full = 1.0 if picture.mode == "F" else 65535.0
        return Image.fromarray(np.clip(np.rint(values * (255 / full)), 0, 255).astype(np.uint8))
    if picture.mode in ("LA", "PA", "La") or "transparency" in picture.info:
        return picture.convert("RGBA")
    if picture.mode in ("L", "RGB", "RGBA", "CMYK"):
        return picture
    return picture.convert("L" if picture.mode == "1" else "RGB")


def _to_srgb(picture: Image.Image, profile: bytes | None, warnings: list[str]) -> Image.Image:
    if picture.mode == "RGBA":
        background = Image.new("RGBA", picture.size, (*BACKGROUND, 255))
        picture = Image.alpha_composite(background, picture).convert("RGB")
        warnings.append("transparency: shown on white")
    if not profile:
        return picture.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        return converted or picture.convert("RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        warnings.append("the colour profile cannot be used; taken as sRGB")
        return picture.convert("RGB")
