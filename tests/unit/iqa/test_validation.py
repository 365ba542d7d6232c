"""What iqa says of a data set: file and line, and what is left to train on."""

import numpy as np
import pytest
from PIL import Image
from skimage import data

from services.iqa.datasets import BadDataset, load_folder, readable_records, validate, with_splits
from services.iqa.schemas import TrainConfig
from services.iqa.train import train
from shared.jobs.context import LocalContext

PHOTOS = {
    "a": data.astronaut(),
    "b": data.coffee(),
    "c": data.rocket(),
    "d": data.chelsea(),
    "e": data.astronaut()[::-1],
}


@pytest.fixture
def folder(tmp_path):
    """Five photographs and a table without splits."""
    lines = ["file,score"]
    for name, photo in PHOTOS.items():
        Image.fromarray(np.ascontiguousarray(photo[:96, :112])).save(tmp_path / f"{name}.png")
        lines.append(f"{name}.png,50")
    (tmp_path / "scores.csv").write_text("\n".join(lines))
    return tmp_path


def test_a_good_table(folder):
    report = validate(folder)
    assert report.state == "valid"
    assert report.findings == []
    assert report.counts == {"images": 5, "sources": 5, "bad": 0, "train": 3, "validation": 1, "test": 1}


def test_splits_are_made_where_none_are_named(folder):
    splits = [record.split for record in with_splits(load_folder(folder))]
    assert sorted(splits) == ["test", "train", "train", "train", "validation"]


def test_a_corrupt_image_in_the_middle_is_reported_excluded_or_refused(folder):
    lines = (folder / "scores.csv").read_text().splitlines()
    (folder / "x.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "scores.csv").write_text("\n".join([*lines[:3], "x.png,50", "b.png,nonsense", *lines[3:]]))
    report = validate(folder)
    assert report.state == "flawed"
    assert [(finding.file, finding.line) for finding in report.findings] == [("x.png", None), ("scores.csv", 5)]
    assert len(readable_records(folder)) == 5
    with pytest.raises(BadDataset, match="line 5"):
        load_folder(folder)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("file,value\na.png,1", "lacks the column 'score'"),
        ("file,score", "split 'train'"),
        ("file,score,split\na.png,1,train", "split 'validation'"),
        (b"file,score\n\xff\xfe", "not a table in UTF-8"),
    ],
)
def test_tables_that_cannot_be_used(folder, table, told):
    (folder / "scores.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    report = validate(folder)
    assert report.state == "invalid"
    assert told in report.findings[0].problem


def test_photographs_alone(folder, tmp_path):
    (folder / "scores.csv").unlink()
    assert validate(folder).counts == {"photographs": 5, "bad": 0}
    for name in "abc":
        (folder / f"{name}.png").write_text("text")
    report = validate(folder)
    assert report.state == "invalid"
    assert "neither a scores.csv nor 4 readable photographs" in report.findings[0].problem
    assert "a.png" in [finding.file for finding in report.findings]


def test_an_empty_or_foreign_folder_is_invalid(tmp_path):
    (tmp_path / "graph.npz").write_bytes(b"x")
    assert validate(tmp_path).state == "invalid"


def test_photographs_that_are_too_small_say_what_to_change(folder):
    (folder / "scores.csv").unlink()
    with pytest.raises(BadDataset, match=r"at least 683 pixels wide.*synthetic_width"):
        train(TrainConfig(epochs=1), folder, LocalContext(folder / "run"))


def test_photographs_in_folders_are_found_and_namesakes_reported(tmp_path):
    for number, name in enumerate(["x/a", "x/b", "y/c", "y/z/d", "y/a"]):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(data.astronaut(), 40 * number, 0)).save(path)
    report = validate(tmp_path)
    assert (report.state, report.counts["photographs"]) == ("flawed", 4)
    assert [(finding.file, "same name" in finding.problem) for finding in report.findings] == [("y/a.png", True)]
    with pytest.raises(BadDataset, match="same name"):
        train(TrainConfig(synthetic_width=256), tmp_path, LocalContext(tmp_path / "run"))
