"""POST /v1/iqa/score: good pictures, and every row of bad input that concerns the service."""

import io
import struct
import time
import zlib

import numpy as np
import psutil
import pytest
from PIL import Image, ImageFilter
from skimage import data

from services.iqa.api import DOMAIN
from shared.service import create_service
from shared.settings import ServiceSettings
from shared.testing import running


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(data.astronaut())


def encoded(picture, codec="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, codec, **options)
    return stream.getvalue()


@pytest.fixture
async def client(tmp_path):
    settings = ServiceSettings(home=tmp_path, max_body_bytes=8 << 20)
    async with running(create_service(DOMAIN, settings)) as client:
        yield client


async def score(client, body, content_type="image/png", query=""):
    return await client.post(f"/v1/iqa/score{query}", content=body, headers={"Content-Type": content_type})


async def test_a_score_with_all_that_explains_it(client, photo):
    answer = await score(client, encoded(photo))
    assert answer.status_code == 200
    assert answer.headers["Fourfold-Model"] == "iqa/1"
    found = answer.json()
    assert found["model"] == "iqa/1"
    assert 0 <= found["score"] <= 100
    mean = sum(level["value"] * level["probability"] for level in found["levels"])
    assert mean == pytest.approx(found["score"], abs=0.01)
    assert sum(level["probability"] for level in found["levels"]) == pytest.approx(1)
    assert sum(found["distortion"]["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    assert found["original"] == {"width": 512, "height": 512}
    assert found["direction"] == "higher-is-better"


async def test_the_map_as_numbers_and_as_a_picture(client, photo):
    grid = (await score(client, encoded(photo), query="?map=true")).json()["map"]["values"]
    assert (len(grid), len(grid[0])) == (16, 16)
    overlay = (await score(client, encoded(photo), query="?map=overlay")).json()["map"]["overlay_png"]
    import base64

    assert Image.open(io.BytesIO(base64.b64decode(overlay))).size == (512, 512)


async def test_the_same_image_has_the_same_score_alone_and_among_others(client, photo):
    body, other = encoded(photo), encoded(photo.resize((300, 200)))
    alone = [(await score(client, body)).json()["score"] for _ in range(2)]
    files = [("images", (f"{n}.png", content, "image/png")) for n, content in enumerate([body, other, body])]
    together = (await client.post("/v1/iqa/score", files=files)).json()["results"]
    scores = [*alone, together[0]["result"]["score"], together[2]["result"]["score"]]
    assert max(scores) - min(scores) <= 0.01


async def test_a_sharp_photo_ranks_above_its_damaged_versions(client, photo):
    sharp = (await score(client, encoded(photo))).json()["score"]
    noise = np.random.default_rng(0).normal(0, 40, (512, 512, 3))
    noisy = Image.fromarray(np.clip(np.asarray(photo) + noise, 0, 255).astype(np.uint8))
    for damaged in (
        encoded(photo.filter(ImageFilter.GaussianBlur(4))),
        encoded(noisy),
        encoded(photo, "JPEG", quality=5),
    ):
        assert (await score(client, damaged)).json()["score"] < sharp - 5


def bomb_png(width=12_000, height=12_000):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    pixels = zlib.compress(b"\0" * ((width // 8 + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


BAD = {
    "not an image": (b"hello, world " * 50, "image/jpeg", 415, "iqa-not-an-image"),
    "zero bytes": (b"", "image/jpeg", 400, "iqa-empty-image"),
    "1x1": (encoded(Image.new("RGB", (1, 1))), "image/png", 422, "iqa-too-small"),
    "truncated": (encoded(Image.fromarray(data.coffee()), "JPEG")[:20_000], "image/jpeg", 400, "iqa-damaged-image"),
    "truncated png": (encoded(Image.fromarray(data.coffee()))[:20_000], "image/png", 400, "iqa-damaged-image"),
    "wrong content type": (b"{}", "application/json", 415, "unsupported-media-type"),
    "json nesting": (b"[" * 100_000, "application/json", 415, "unsupported-media-type"),
    "144 megapixels": (bomb_png(), "image/png", 413, "iqa-too-many-pixels"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image/svg+xml", 415, "iqa-not-an-image"),
    "too long": (b"\xff\xd8" + b"x" * (9 << 20), "image/jpeg", 413, "payload-too-large"),
    "form without file": (b"--b--\r\n", "multipart/form-data; boundary=b", 400, "invalid-input"),
}


@pytest.mark.parametrize("row", BAD)
async def test_bad_input_is_named_and_the_next_good_one_answered(client, photo, row):
    body, content_type, status, code = BAD[row]
    answer = await score(client, body, content_type)
    assert answer.status_code == status, answer.text
    assert answer.json()["type"] == f"urn:fourfold:problem:{code}"
    assert "/" not in answer.json()["detail"].replace("image/", "").replace("multipart/", "").replace(
        "application/", ""
    )
    assert (await score(client, encoded(photo))).status_code == 200


async def test_the_bomb_is_refused_from_its_header(client):
    body = bomb_png()
    assert len(body) < 25_000
    await score(client, body)
    before = time.process_time()
    await score(client, body)
    assert time.process_time() - before < 0.1  # the goal of 10 ms is measured in benchmarks; decoding takes seconds


async def test_an_endless_body_is_cut_off(client):
    async def endless():
        while True:
            yield b"x" * 65_536

    answer = await client.post("/v1/iqa/score", content=endless(), headers={"Content-Type": "image/jpeg"})
    assert answer.status_code == 413


async def test_one_bad_file_spares_the_others(client, photo):
    files = [
        ("images", ("good.png", encoded(photo), "image/png")),
        ("images", ("bad.png", b"nothing", "image/png")),
    ]
    results = (await client.post("/v1/iqa/score", files=files)).json()["results"]
    assert results[0]["result"]["score"] >= 0
    assert results[1]["problem"]["type"].endswith("iqa-not-an-image")


async def test_memory_stays_flat_under_bad_input(client):
    process = psutil.Process()
    rounds = []
    for _ in range(2):
        for _ in range(15):
            for body, content_type, *_ in BAD.values():
                await score(client, body, content_type)
        rounds.append(process.memory_info().rss)
    assert rounds[1] - rounds[0] < 32 << 20
