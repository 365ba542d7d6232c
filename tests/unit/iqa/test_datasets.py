"""Loaders of labelled sets, each on a tiny set in the official layout."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from services.iqa.datasets import BadDataset, load_folder
from services.iqa.opinion_sets import OPINION_SETS, load_opinion_set


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_sheet(path: Path, name: str, rows: list[list[object]]) -> None:
    openpyxl = pytest.importorskip("openpyxl", reason="two of the public sets come as worksheets")
    book = openpyxl.Workbook()
    book.active.title = name
    for row in rows:
        book.active.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)


# -- our own folder


OWN = "file,source,kind,strength,score,split\na.png,p1,none,0,100,train\nb.png,p1,jpeg,3,41.5,test\n"


def test_our_folder(tmp_path: Path):
    touch(tmp_path, "a.png", "b.png")
    write(tmp_path / "scores.csv", OWN)
    first, second = load_folder(tmp_path)
    assert (first.score, first.kind, first.split) == (100, "none", "train")
    assert (second.path.name, second.source, second.strength, second.score) == ("b.png", "p1", 3, 41.5)


def test_a_score_is_all_that_a_folder_needs(tmp_path: Path):
    touch(tmp_path, "a.png")
    write(tmp_path / "scores.csv", "file,score\na.png,7\n")
    [record] = load_folder(tmp_path)
    assert (record.source, record.kind, record.split, record.strength) == ("a", "", "", 0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("file,source\na.png,p\n", "column 'score'"),
        ("file,score\n", "lists no image"),
        ("file,score\na.png,7\na.png,100.5\n", "line 3: the score 100.5"),
        ("file,score\na.png,nan\n", "line 2: the score nan"),
        ("file,score\na.png,good\n", "line 2: could not convert"),
        ("file,score\nz.png,7\n", "line 2: there is no file 'z.png'"),
        ("file,score\n../a.png,7\n", "line 2: the file '../a.png' lies outside"),
    ],
)
def test_a_bad_folder_names_the_line(tmp_path: Path, text: str, told: str):
    touch(tmp_path, "a.png")
    write(tmp_path / "scores.csv", text)
    with pytest.raises(BadDataset, match=told):
        load_folder(tmp_path)


def test_a_folder_without_scores(tmp_path: Path):
    with pytest.raises(BadDataset, match=r"no scores\.csv"):
        load_folder(tmp_path)


# -- the public sets: each maker writes three images, the second best, the third worst


def make_kadid10k(folder: Path) -> None:
    touch(folder / "images", "I01.png", "I01_01_01.png", "I01_10_05.png", "I02.png", "I02_01_01.png")
    write(
        folder / "dmos.csv",
        "dist_img,ref_img,dmos,var\nI01_01_01.png,I01.png,3.0,0.1\nI02_01_01.png,I02.png,5.00,0.1\n"
        "I01_10_05.png,I01.png,1.00,0.2\n",
    )


def make_tid2013(folder: Path) -> None:
    # The official files differ in case from their own list.
    touch(folder / "distorted_images", "i01_01_1.bmp", "I02_24_5.bmp", "I01_03_2.bmp")
    touch(folder / "reference_images", "I01.BMP", "i02.bmp")
    write(folder / "mos_with_names.txt", "4.5 I01_01_1.bmp\n9.0 I02_24_5.bmp\n0.0 i01_03_2.bmp\n")


def make_koniq10k(folder: Path) -> None:
    touch(folder / "1024x768", "10004473376.jpg", "2.jpg", "3.jpg")
    header = '"image_name","c1","c2","c3","c4","c5","c_total","MOS","SD","MOS_zscore"'
    rows = [
        f'"{name}",0,0,25,73,7,105,{mos},0.54,64.1'
        for name, mos in (("10004473376.jpg", 3), ("2.jpg", 5), ("3.jpg", 1))
    ]
    write(folder / "koniq10k_scores_and_distributions.csv", "\n".join([header, *rows]))
    write(
        folder / "koniq10k_distributions_sets.csv",
        "image_name,c1,set\n10004473376.jpg,0,training\n2.jpg,0,validation\n3.jpg,0,test\n",
    )


def make_live(folder: Path) -> None:
    counts = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
    total = sum(counts.values())
    for kind, count in counts.items():
        touch(folder / kind, *(f"img{number}.bmp" for number in range(1, count + 1)))
    touch(folder / "refimgs", "bikes.bmp", "womanhat.bmp")
    originals = np.ones((1, total))
    originals[0, [0, 227, total - 1]] = 0
    scores = np.zeros((1, total))
    scores[0, [0, 227, total - 1]] = 56, 0, 112
    names = np.empty((1, total), dtype=object)
    names[:] = "bikes.bmp"
    names[0, 227] = "womanhat.bmp"
    savemat(folder / "dmos_realigned.mat", {"dmos_new": scores, "orgs": originals})
    savemat(folder / "refnames_all.mat", {"refnames_all": names})


def make_csiq(folder: Path) -> None:
    touch(folder / "src_imgs", "1600.png", "trolley.png")
    touch(folder / "dst_imgs", "awgn/1600.AWGN.1.png", "jpeg2000/trolley.jpeg2000.2.png", "blur/1600.BLUR.5.png")
    rows: list[list[object]] = [
        ["CSIQ database"],
        [],
        [None, None, "image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos"],
        [None, None, 1600, 1, "noise", 1, 0.06, 0.5],
        [None, None, "trolley", 3, "jpeg 2000", 2, 0.06, 0],
        [None, None, 1600, 5, "blur", 5, 0.06, 1],
    ]
    write_sheet(folder / "csiq.DMOS.xlsx", "all_by_image", rows)


def make_live_challenge(folder: Path) -> None:
    touch(folder / "Images", "trainingImages/t1.bmp", "3.bmp", "1163.JPG")
    (folder / "Data").mkdir()
    names = np.empty((3, 1), dtype=object)
    names[:, 0] = ["t1.bmp", "3.bmp", "1163.JPG"]
    savemat(folder / "Data/AllImages_release.mat", {"AllImages_release": names})
    savemat(folder / "Data/AllMOS_release.mat", {"AllMOS_release": np.array([[50.0, 100.0, 0.0]])})


def make_spaq(folder: Path) -> None:
    touch(folder / "TestImage", "00001.jpg", "00002.jpg", "00003.jpg")
    rows: list[list[object]] = [["Image name", "MOS", "Brightness"]]
    for index, mos in ((1, 50), (2, 100), (3, 0)):
        rows.append([f"0000{index}.jpg", mos, 50])
    write_sheet(folder / "Annotations/MOS and Image attribute scores.xlsx", "Sheet1", rows)


MAKERS: dict[str, Callable[[Path], None]] = {
    "kadid10k": make_kadid10k,
    "tid2013": make_tid2013,
    "koniq10k": make_koniq10k,
    "live": make_live,
    "csiq": make_csiq,
    "live-challenge": make_live_challenge,
    "spaq": make_spaq,
}


def test_every_public_set_has_a_maker():
    assert set(MAKERS) == set(OPINION_SETS)


@pytest.mark.parametrize("name", MAKERS)
def test_a_public_set(tmp_path: Path, name: str):
    MAKERS[name](tmp_path)
    records = load_opinion_set(name, tmp_path)
    assert [record.score for record in records] == pytest.approx([50, 100, 0])
    assert all(record.path.is_file() for record in records)
    if name in ("kadid10k", "tid2013", "live", "csiq"):
        assert [record.source == records[0].source for record in records] == [True, False, True]
        assert all(record.reference is not None and record.reference.is_file() for record in records)
        assert all(record.kind for record in records)
    else:
        assert len({record.source for record in records}) == 3


def test_details_of_single_sets(tmp_path: Path):
    make_kadid10k(tmp_path / "kadid")
    worst = load_opinion_set("kadid10k", tmp_path / "kadid")[2]
    assert (worst.kind, worst.strength, worst.source) == ("10", 5, "I01")
    make_koniq10k(tmp_path / "koniq")
    assert [record.split for record in load_opinion_set("koniq10k", tmp_path / "koniq")] == [
        "train",
        "validation",
        "test",
    ]


@pytest.mark.parametrize("name", MAKERS)
def test_an_empty_folder_is_told(tmp_path: Path, name: str):
    with pytest.raises(BadDataset, match="The set has no"):
        load_opinion_set(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "text", "told"),
    [
        ("kadid10k", "dmos.csv", "dist_img,ref_img\n", r"dmos\.csv line 1: there is no column 'dmos'"),
        ("kadid10k", "dmos.csv", "dist_img,ref_img,dmos\nI01_01_01.png,I01.png,x\n", r"dmos\.csv line 2: 'x' is not"),
        ("kadid10k", "dmos.csv", "dist_img,ref_img,dmos\nI01_01_01.png,I01.png,55\n", "line 2: '55' is not a score"),
        ("kadid10k", "dmos.csv", "dist_img,ref_img,dmos\nI01_01_01.png\n", "line 2: the line is too short"),
        (
            "kadid10k",
            "dmos.csv",
            "dist_img,ref_img,dmos\nI99_01_01.png,I01.png,2\n",
            "line 2: there is no file 'I99_01",
        ),
        ("kadid10k", "dmos.csv", "dist_img,ref_img,dmos\n", "lists no image"),
        ("tid2013", "mos_with_names.txt", "4.5 I01_01_1.bmp\n4.5\n", "line 2: not `score"),
        ("tid2013", "mos_with_names.txt", "nan I01_01_1.bmp\n", "line 1: 'nan' is not"),
        ("live", "dmos_realigned.mat", "no such thing as a MATLAB file, and long enough " * 9, "not a MATLAB file"),
        ("spaq", "Annotations/MOS and Image attribute scores.xlsx", "text", "is not a workbook"),
    ],
)
def test_a_bad_public_set_names_file_and_line(tmp_path: Path, name: str, file: str, text: str, told: str):
    MAKERS[name](tmp_path)
    write(tmp_path / file, text)
    with pytest.raises(BadDataset, match=told) as caught:
        load_opinion_set(name, tmp_path)
    assert str(tmp_path) not in caught.value.detail


def test_matlab_files_of_the_wrong_length_or_name(tmp_path: Path):
    make_live_challenge(tmp_path)
    savemat(tmp_path / "Data/AllMOS_release.mat", {"AllMOS_release": np.array([[50.0, 100.0]])})
    with pytest.raises(BadDataset, match="2 scores for 3 images"):
        load_opinion_set("live-challenge", tmp_path)
    savemat(tmp_path / "Data/AllMOS_release.mat", {"Other": np.array([[50.0]])})
    with pytest.raises(BadDataset, match="no variable 'AllMOS_release'"):
        load_opinion_set("live-challenge", tmp_path)


def test_a_sheet_without_the_columns(tmp_path: Path):
    make_spaq(tmp_path)
    write_sheet(tmp_path / "Annotations/MOS and Image attribute scores.xlsx", "Sheet1", [["Image name", "Sharpness"]])
    with pytest.raises(BadDataset, match="no row naming Image name, MOS"):
        load_opinion_set("spaq", tmp_path)


def test_an_unknown_set_names_the_known_ones(tmp_path: Path):
    with pytest.raises(BadDataset, match="kadid10k"):
        load_opinion_set("imagenet", tmp_path)


def test_csv_quoting_and_byte_order_mark(tmp_path: Path):
    touch(tmp_path / "images", "I01.png", "I01_01_01.png")
    with (tmp_path / "dmos.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        csv.writer(stream, quoting=csv.QUOTE_ALL).writerows(
            [["dist_img", "ref_img", "dmos", "var"], ["I01_01_01.png", "I01.png", "2", "0"]]
        )
    assert load_opinion_set("kadid10k", tmp_path)[0].score == 25
