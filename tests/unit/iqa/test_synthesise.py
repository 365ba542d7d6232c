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
    read_list,
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
    splits = split_sources(dict(zip(sources, sources, strict=True)))
    assert set(splits) == set(sources)
    counts = {name: list(splits.values()).count(name) for name in module.SPLITS}
    assert counts == {"train": 25, "validation": 7, "test": 8}
    assert splits == split_sources({source: source for source in sources[::-1]}), (
        "the order of the files must not matter"
    )


def test_photographs_of_one_scene_stay_together():
    splits = split_sources({f"photo{index}": f"scene{index % 12}" for index in range(24)})
    assert all(splits[f"photo{index}"] == splits[f"photo{index + 12}"] for index in range(12))


def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_views_have_one_size_and_are_reduced(tmp_path: Path):
    assert pristine_views(photograph(tmp_path / "small.png", 682), 5, random()) == []
    for width, count in ((684, 1), (1100, 1), (1400, 4), (2100, 5)):
        views = pristine_views(photograph(tmp_path / f"{width}.png", width), 5, random())
        assert [view.shape for view in views] == [(384, 512, 3)] * count
    assert not np.array_equal(views[0], views[1])


def test_upright_pictures_are_turned(tmp_path: Path):
    Image.fromarray(data.astronaut()).resize((1100, 1600)).save(tmp_path / "tall.png")
    [view] = pristine_views(tmp_path / "tall.png", 1, random())
    assert view.shape == (384, 512, 3)


def test_gradients_and_line_art_are_no_photographs():
    ramp = np.broadcast_to(np.linspace(0, 255, 512)[None, :, None], (384, 512, 3)).astype(np.uint8)
    assert not is_photographic(ramp)
    assert not is_photographic(np.full((384, 512, 3), 90, np.uint8))
    assert is_photographic(data.astronaut())


def test_a_folder_of_photographs(tmp_path: Path):
    photos = [photograph(tmp_path / name, 700) for name in ("b.png", "a.jpg")]
    (tmp_path / "alias.png").symlink_to(photos[0])
    (tmp_path / "readme.txt").write_text("no picture")
    assert find_photographs(tmp_path) == {photos[1]: "a", photos[0]: "b"}


def test_a_list_of_photographs(tmp_path: Path):
    theme = tmp_path / "root" / "Autumn" / "contents" / "images"
    theme.mkdir(parents=True)
    photos = [photograph(theme / "700x525.png", 700), photograph(tmp_path / "root" / "my photo.png", 700)]
    table = tmp_path / "list.csv"
    table.write_text("package,path,scene\ntheme,Autumn/contents/images/700x525.png,park\nother,my photo.png,\n")
    assert read_list(table, tmp_path / "root") == {photos[0]: "park", photos[1]: "my_photo"}
    assert [source_of(path) for path in photos] == ["Autumn", "my_photo"]
    table.write_text("package,path\ntheme,none.png\n")
    with pytest.raises(ValueError, match=r"line 2: the root has no 'none.png'; unpack the package theme"):
        read_list(table, tmp_path / "root")
    table.write_text("path\nnone.png\n")
    with pytest.raises(ValueError, match="lacks the column 'package'"):
        read_list(table, tmp_path / "root")


def test_the_committed_list_names_every_photograph_once():
    with Path(module.__file__).with_name("photographs.csv").open() as stream:
        names = [row["path"] for row in csv.DictReader(stream)]
    assert len(names) > 80
    assert len({source_of(Path(name)) for name in names}) == len(names)


@pytest.fixture
def few_distortions(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ("jpeg", "white-noise")
    monkeypatch.setattr(module, "DISTORTIONS", {kind: module.DISTORTIONS[kind] for kind in kept})
    monkeypatch.setattr(module, "STRENGTHS", (1, 5))


@pytest.mark.usefixtures("few_distortions")
def test_a_whole_set(tmp_path: Path):
    photographs = [photograph(tmp_path / f"photo{index}.png", 1100, index) for index in range(4)]
    synthesise({path: path.stem for path in photographs}, tmp_path / "set", views=1, share=1.0)
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
    photographs = {photograph(tmp_path / f"photo{name}.png", 800): name for name in "abc"}  # one picture, three names
    first = synthesise(photographs, tmp_path / "a", views=1, share=1.0)
    assert first == synthesise(photographs, tmp_path / "b", views=1, share=1.0)
    noisy = [item.file for item in first if item.kind == "white-noise" and item.strength == 5]
    pixels = [read_pixels(tmp_path / "a" / file) for file in noisy]
    assert np.array_equal(pixels[0], read_pixels(tmp_path / "b" / noisy[0]))
    assert not np.array_equal(pixels[0], pixels[1])


def test_two_photographs_of_one_name_are_refused(tmp_path: Path):
    (tmp_path / "other").mkdir()
    photographs = {photograph(tmp_path / name, 700): name for name in ("a.png", "other/a.png")}
    with pytest.raises(ValueError, match="same name"):
        synthesise(photographs, tmp_path / "set")


def test_nothing_usable_is_told(tmp_path: Path):
    with pytest.raises(ValueError, match="at least 683 pixels"):
        synthesise({photograph(tmp_path / "small.png", 600): "small"}, tmp_path / "set")
