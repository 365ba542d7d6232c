"""Decoding: every kind of file that people have becomes the same upright sRGB pixels, or a named problem."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin
from skimage import data

from services.iqa import predict
from services.iqa.features import DamagedImage, decode
from shared.bundles import Bundle
from shared.settings import ServiceSettings

PRETRAINED = Path(predict.__file__).with_name("pretrained")


def photo(width=480, height=360):
    """Smooth, so that codecs and resampling change it little."""
    return Image.fromarray(data.astronaut()).resize((width, height), Image.Resampling.LANCZOS)


def encoded(picture, codec="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, codec, **options)
    return stream.getvalue()


def difference(left, right):
    return np.abs(np.asarray(left, float) - np.asarray(right, float)).mean()


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG", {"quality": 98, "subsampling": 0}),
        ("AVIF", {"quality": 98}),
    ],
)
def test_every_format_gives_the_same_pixels(codec, options):
    found = decode(encoded(photo(), codec, **options))
    assert found.format == codec
    assert found.warnings == []
    assert difference(found.pixels, photo()) < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    upright = photo()
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(inverse[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(encoded(stored, "PNG", exif=exif))
    assert found.original_size == (480, 360)
    assert difference(found.pixels, upright) == 0


def test_a_nonsense_orientation_is_taken_as_upright():
    exif = Image.Exif()
    exif[0x0112] = 77
    assert difference(decode(encoded(photo(), "PNG", exif=exif)).pixels, photo()) == 0


def profile(name):
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


def swapped_profile():
    """sRGB with red and blue exchanged: whoever ignores it gets the colours wrong at once."""
    srgb = bytearray(profile("sRGB"))
    red, blue = srgb.index(b"rXYZ"), srgb.index(b"bXYZ")
    srgb[red : red + 4], srgb[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(srgb)


def test_a_colour_profile_is_applied():
    swapped = Image.merge("RGB", photo().split()[::-1])
    assert difference(decode(encoded(swapped, icc_profile=swapped_profile())).pixels, photo()) < 2
    assert difference(decode(encoded(photo(), icc_profile=profile("sRGB"))).pixels, photo()) < 1


def test_a_broken_colour_profile_is_a_warning():
    found = decode(encoded(photo(), icc_profile=b"no profile at all"))
    assert found.warnings == ["the colour profile cannot be used; taken as sRGB"]
    assert difference(found.pixels, photo()) == 0


def test_sixteen_bits_keep_their_range():
    grey = np.asarray(photo().convert("L"))
    sixteen = Image.fromarray(grey.astype(np.uint16) * 257)
    for codec in ("PNG", "TIFF"):
        found = decode(encoded(sixteen, codec))
        assert difference(found.pixels, grey[..., None].repeat(3, 2)) < 1


def test_floats_from_zero_to_one():
    grey = np.asarray(photo().convert("L"))
    found = decode(encoded(Image.fromarray((grey / 255).astype(np.float32)), "TIFF"))
    assert difference(found.pixels, grey[..., None].repeat(3, 2)) < 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_shown_on_white(mode):
    picture = photo().convert(mode)
    picture.putalpha(Image.new("L", picture.size, 0))
    found = decode(encoded(picture))
    assert found.warnings == ["transparency: shown on white"]
    assert (found.pixels == 255).all(), "the hidden colour shows"


def test_a_transparent_palette_entry_and_a_transparent_colour():
    palette = Image.new("P", (64, 64), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert (decode(encoded(palette, transparency=1)).pixels == 255).all()
    key = Image.new("RGB", (64, 64), (1, 2, 3))
    assert (decode(encoded(key, transparency=(1, 2, 3))).pixels == 255).all()


def test_cmyk():
    found = decode(encoded(photo().convert("CMYK"), "JPEG", quality=98, subsampling=0))
    assert difference(found.pixels, photo()) < 3


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_greyscale_bitmaps_and_palettes(mode):
    picture = photo().convert(mode)
    found = decode(encoded(picture))
    assert found.pixels.shape == (360, 480, 3)
    assert difference(found.pixels, picture.convert("RGB")) < 1


@pytest.mark.parametrize("codec", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(codec):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if codec == "WEBP" else {}
    found = decode(encoded(frames[0], codec, save_all=True, append_images=frames[1:], **options))
    assert found.warnings == ["animation: the first frame is scored"]
    assert np.abs(found.pixels.astype(int) - [255, 0, 0]).max() <= 2


def test_a_bomb_in_a_text_chunk_is_refused():
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * (80 << 20), zip=True)
    with pytest.raises(DamagedImage):
        decode(encoded(photo(), pnginfo=text))


def test_a_large_image_is_scored_with_its_long_side_at_512():
    found = decode(encoded(photo(1200, 2000), "JPEG"))
    assert found.original_size == (1200, 2000)
    assert found.scored_size == (307, 512)


def test_the_fast_jpeg_path_keeps_the_score():
    predictor = predict.load(Bundle.open(PRETRAINED), ServiceSettings())
    for quality in (95, 30):
        body = encoded(photo(3000, 2250), "JPEG", quality=quality)
        fast, slow = (decode(body, fast=way).pixels for way in (True, False))
        assert fast.shape == slow.shape
        first, second = predictor.predict([fast, slow])
        assert isinstance(first, predict.Quality)
        assert isinstance(second, predict.Quality)
        assert abs(first.score - second.score) < 1
