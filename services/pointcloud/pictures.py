"""Picture files → what the single-view network takes; clouds → small pictures of them.

Shapes: H, W pixels, N points.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from services.pointcloud.render import render
from shared.problems import InputError, PayloadTooLarge, UnsupportedMedia

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MOST_PIXELS = 50_000_000
SMALLEST = 8  # pixels a side
PREVIEW = 96
Image.MAX_IMAGE_PIXELS = None  # our own limit is taken from the header, before a pixel is read


class NotAPicture(UnsupportedMedia):
    code = "pointcloud-not-a-picture"
    title = "The body is not a picture of a format that is read here"
    advice = "Send a PNG or another picture of the forms that the detail names."


class DamagedPicture(InputError):
    code = "pointcloud-damaged-picture"
    title = "The picture is empty, truncated, damaged or too small"
    advice = "Send the picture again from its source."


class PictureTooLarge(PayloadTooLarge):
    code = "pointcloud-too-many-pixels"
    title = "The picture has too many pixels"
    advice = "Make it smaller: it is looked at in 64 pixels."


def read_picture(data: bytes | bytearray, size: int) -> tuple[NDArray[np.float32], list[str]]:
    """Values 0–1 (3, size, size) of the picture on white, padded to a square, and warnings.

    Raises NotAPicture, DamagedPicture or PictureTooLarge.
    """
    if not data:
        raise DamagedPicture("The picture has no bytes.")
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise NotAPicture(f"The first bytes are those of none of {', '.join(FORMATS)}.") from None
    except Exception as error:  # the header parsers raise many kinds on hostile input
        raise DamagedPicture("The picture's header cannot be read.") from error
    with picture:
        width, height = picture.size
        if width * height > MOST_PIXELS:
            raise PictureTooLarge(f"The picture has {width * height / 1e6:.0f} megapixels; at most 50 are taken.")
        if min(width, height) < SMALLEST:
            raise DamagedPicture(f"A picture has at least {SMALLEST} pixels a side; this one is {width}×{height}.")
        try:
            seen = picture.convert("RGBA" if "A" in picture.getbands() or "transparency" in picture.info else "RGB")
        except Exception as error:
            raise DamagedPicture("The picture ends early or is damaged.") from error
    side = max(width, height)
    square = Image.new("RGB", (side, side), (255, 255, 255))
    place = ((side - width) // 2, (side - height) // 2)
    square.paste(seen, place, seen if seen.mode == "RGBA" else None)
    values = np.asarray(square.resize((size, size), Image.Resampling.BOX), np.float32) / np.float32(255)
    warnings: list[str] = []
    edge = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    if edge.mean() < 0.9:
        warnings.append("the background is not white: the network was trained on renderings on white")
    return np.ascontiguousarray(values.transpose(2, 0, 1)), warnings


def preview_png(points_N3: NDArray[np.float32], size: int = PREVIEW) -> bytes:
    """A picture of points in the unit ball."""
    stream = io.BytesIO()
    Image.fromarray(render(points_N3, size)).convert("L").save(stream, "PNG", optimize=False)
    return stream.getvalue()
