"""The synthetic set: what counts as pristine, how it is split and labelled, and that it can be made again."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from services.iqa import synthesise as module
from services.iqa.datasets import load_folder
from services.iqa.evaluate import read_pixels
from services.iqa.synthesise import (
    Row,
    consensus,
    find_photographs,
    is_photographic,
    pristine_views,
    source_of,
    split_sources,
    synthesise,
)


def photograph(path: Path, width: int = 1100, seed: int = 0) -> Path:
    """A tall or wide picture with the texture of a photograph."""
    picture = Image.fromarray(np.roll(data.astronaut(), seed * 40, axis=1)).resize((width, width * 3 // 4))
    picture.save(path)
    return path


def row(file: str, kind: str = "jpeg", **values: float) -> Row:
    metrics = {"mdsi": 0.1, "vsi": 0.9, "haarpsi": 0.9, "ms_gmsdc": 0.1} | values
    return Row(file, "p", kind, 0 if kind == "none" else 1, "train", **metrics)


def test_the_consensus_is_the_mean_rank_of_four_metrics():
    rows = [
        row("pristine", "none", mdsi=0, vsi=1, haarpsi=1, ms_gmsdc=0),
        row("best", mdsi=0.1, vsi=0.99, haarpsi=0.9, ms_gmsdc=0.01),
        row("worst", mdsi=0.5, vsi=0.80, haarpsi=0.2, ms_gmsdc=0.30),
        row("split", mdsi=0.4, vsi=0.90, haarpsi=0.95, ms_gmsdc=0.02),
    ]
    scores = {item.file: item.score for item in consensus(rows)}
    # Ranks of three distorted images, 3 is best: best 3 3 2 3, split 2 2 3 2, worst 1 1 1 1.
    assert scores["pristine"] == 100
    assert scores["best"] == pytest.approx(100 * (2.75 - 0.5) / 3, abs=1e-3)
    assert scores["split"] == pytest.approx(100 * (2.25 - 0.5) / 3, abs=1e-3)
    assert scores["worst"] == pytest.approx(100 * 0.5 / 3, abs=1e-3)


def test_no_photograph_is_in_two_splits_and_all_splits_are_used():
    sources = [f"photo{index}" for index in range(40)]
    splits = split_sources(sources)
    assert set(splits) == set(sources)
    counts = {name: list(splits.values()).count(name) for name in module.SPLITS}
    assert counts == {"train": 25, "validation": 7, "test": 8}
    assert splits == split_sources(sources[::-1]), "the order of the files must not matter"


def test_pictures_are_at_least_halved(tmp_path: Path):
    assert pristine_views(photograph(tmp_path / "small.png", 1000), 5) == []
    [whole] = pristine_views(photograph(tmp_path / "medium.png", 1100), 5)
    assert whole.shape == (384, 512, 3)
    views = pristine_views(photograph(tmp_path / "large.png", 2100), 3)
    assert len(views) == 3
    assert not np.array_equal(views[0], views[1])


def test_upright_pictures_are_turned(tmp_path: Path):
    Image.fromarray(data.astronaut()).resize((1100, 1600)).save(tmp_path / "tall.png")
    [view] = pristine_views(tmp_path / "tall.png", 1)
    assert view.shape == (384, 512, 3)


def test_gradients_and_line_art_are_no_photographs():
    ramp = np.broadcast_to(np.linspace(0, 255, 512)[None, :, None], (384, 512, 3)).astype(np.uint8)
    assert not is_photographic(ramp)
    assert not is_photographic(np.full((384, 512, 3), 90, np.uint8))
    assert is_photographic(data.astronaut())


def test_the_largest_file_of_a_theme_is_taken(tmp_path: Path):
    folder = tmp_path / "Autumn" / "contents" / "images"
    folder.mkdir(parents=True)
    photograph(folder / "1100x825.png", 1100)
    large = photograph(folder / "1300x975.png", 1300)
    other = photograph(tmp_path / "my photo.png", 1100)
    (tmp_path / "alias.png").symlink_to(other)
    (tmp_path / "readme.txt").write_text("no picture")
    found = find_photographs([tmp_path])
    assert sorted(found) == sorted([large, other])
    assert {source_of(path) for path in found} == {"Autumn", "my_photo"}


@pytest.fixture
def few_distortions(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ("jpeg", "white-noise")
    monkeypatch.setattr(module, "DISTORTIONS", {kind: module.DISTORTIONS[kind] for kind in kept})
    monkeypatch.setattr(module, "STRENGTHS", (1, 5))


@pytest.mark.usefixtures("few_distortions")
def test_a_whole_set(tmp_path: Path):
    photographs = [photograph(tmp_path / f"photo{index}.png", 1100, index) for index in range(5)]
    synthesise(photographs, tmp_path / "set", views=1, share=1.0)
    records = load_folder(tmp_path / "set")
    assert {record.split for record in records} == {"train", "validation", "test"}
    for record in records:
        assert read_pixels(record.path).shape == (384, 512, 3)
        assert (record.score == 100) == (record.kind == "none")
    for source in {record.source for record in records}:
        own = {(record.kind, record.strength): record.score for record in records if record.source == source}
        assert own["none", 0] > own["jpeg", 1] > own["jpeg", 5]
    with (tmp_path / "set" / "scores.csv").open() as stream:
        assert next(csv.reader(stream))[:5] == ["file", "source", "kind", "strength", "split"]


@pytest.mark.usefixtures("few_distortions")
def test_the_same_seed_makes_the_same_set_and_every_picture_has_its_own_noise(tmp_path: Path):
    photographs = [photograph(tmp_path / f"photo{index}.png", 1100) for index in range(3)]  # one picture, three names
    first = synthesise(photographs, tmp_path / "a", views=1, share=1.0)
    assert first == synthesise(photographs, tmp_path / "b", views=1, share=1.0)
    noisy = [item.file for item in first if item.kind == "white-noise" and item.strength == 5]
    pixels = [read_pixels(tmp_path / "a" / file) for file in noisy]
    assert np.array_equal(pixels[0], read_pixels(tmp_path / "b" / noisy[0]))
    assert not np.array_equal(pixels[0], pixels[1])


def test_nothing_usable_is_told(tmp_path: Path):
    with pytest.raises(ValueError, match="at least 1024 pixels"):
        synthesise([photograph(tmp_path / "small.png", 800)], tmp_path / "set")
