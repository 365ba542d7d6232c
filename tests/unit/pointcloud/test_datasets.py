import numpy as np
import pytest

from services.pointcloud.datasets import (
    BadShapes,
    Shapes,
    capped,
    iter_shapes,
    known_labels,
    load_shapes,
    masked,
    validate,
    with_splits,
)
from tests.unit.pointcloud import files
from tests.unit.pointcloud.shapes import write_set


def shapes_of(labels, families, splits=None):
    count = len(labels)
    names = [f"{label}{number}" for number, label in enumerate(labels)]
    words = tuple(sorted(set(labels)))
    return Shapes(
        [np.zeros((4, 3), np.float32)] * count,
        names,
        words,
        np.array([words.index(label) for label in labels]),
        list(families),
        np.full(count, -1) if splits is None else np.array(splits),
    )


def test_modelnets_layout(tmp_path):
    for kind in ("chair", "desk"):
        for split in ("train", "test"):
            folder = tmp_path / "ModelNet10" / kind / split
            folder.mkdir(parents=True)
            for number in range(3):
                (folder / f"{kind}_{number:04}.off").write_bytes(files.exported("off"))
    (tmp_path / "ModelNet10" / "README.txt").write_text("not a shape")
    found = load_shapes(tmp_path / "ModelNet10", points=100)
    assert found.labels == ("chair", "desk")
    assert len(found) == 12
    assert found.cloud(0).shape == (100, 3)
    assert np.linalg.norm(found.cloud(0), axis=1).max() == pytest.approx(1, abs=1e-5)
    split_S = with_splits(found)
    # What the data set states as test stays; a part of what it states as train becomes validation.
    assert all(("/test/" in name) == (split == 2) for name, split in zip(found.names, split_S, strict=True))
    assert sorted(np.bincount(split_S)) == [1, 5, 6]


def test_shapenets_layout(tmp_path):
    for synset in ("02691156", "03001627"):
        for model in ("1a04e3", "9f31bc"):
            folder = tmp_path / synset / model / "models"
            folder.mkdir(parents=True)
            (folder / "model_normalized.obj").write_bytes(files.exported("obj"))
    found = load_shapes(tmp_path, points=50)
    assert found.labels == ("02691156", "03001627")
    assert len(set(zip(found.label_S.tolist(), found.families, strict=True))) == 4  # each model is its own family


def test_a_list_of_splits_and_files_without_class(tmp_path):
    for number in range(5):
        (tmp_path / f"part{number}.stl").write_bytes(files.exported("stl"))
    (tmp_path / "splits.csv").write_text("file,split\npart0.stl,test\npart1.stl,validation\npart2.stl,train\n")
    found = load_shapes(tmp_path, points=40)
    assert found.labels == ()
    assert (found.label_S == -1).all()
    assert with_splits(found).tolist() == [2, 1, 0, 0, 0]


def test_arrays_with_and_without_names(tmp_path):
    found = load_shapes(write_set(tmp_path / "set.npz"))
    assert found.labels == ("ball", "box", "ring")
    assert len(found) == 36
    nameless = load_shapes(write_set(tmp_path / "plain.npz", named=False))
    assert nameless.labels == ()
    np.save(tmp_path / "clouds.npy", np.random.default_rng(0).normal(size=(6, 30, 3)))
    assert len(load_shapes(tmp_path / "clouds.npy")) == 6
    assert len(list(iter_shapes(tmp_path))) == 78


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"points": np.zeros((5, 8, 2))}, "not (S, N, 3)"),
        ({"points": np.full((5, 8, 3), np.nan)}, "not finite"),
        ({"points": np.ones((5, 8, 3)), "category": np.array(["a"])}, "not one value a shape"),
        ({"points": np.array([None, {}], dtype=object)}, "nothing in it was run"),
        ({"other": np.zeros(3)}, "no array of the name points"),
    ],
)
def test_bad_arrays_are_refused_by_name(tmp_path, arrays, words):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(BadShapes, match=r"set\.npz") as caught:
        load_shapes(tmp_path)
    assert words in caught.value.detail


def test_an_archive_that_claims_more_than_is_read_is_refused_before_it_is_unpacked(tmp_path):
    write_set(tmp_path / "bomb.npz")
    data = bytearray((tmp_path / "bomb.npz").read_bytes())
    entry = 0
    for _ in range(3):  # entries of the central directory: the unpacked size is at 24
        entry = data.index(b"PK\x01\x02", entry + 4)
        data[entry + 24 : entry + 28] = (0xFFFFFFF0).to_bytes(4, "little")
    (tmp_path / "bomb.npz").write_bytes(data)
    with pytest.raises(BadShapes, match="at most"):
        load_shapes(tmp_path)


def test_a_bad_file_is_named_left_out_or_refused(tmp_path):
    for number in range(4):
        (tmp_path / f"{'abcd'[number]}.ply").write_bytes(files.ply())
    (tmp_path / "broken.ply").write_bytes(files.ply()[:300])
    with pytest.raises(BadShapes, match=r"broken\.ply"):
        load_shapes(tmp_path, points=30)
    assert len(load_shapes(tmp_path, points=30, exclude=True)) == 4
    report = validate(tmp_path)
    assert report.state == "flawed"
    assert [item.file for item in report.findings] == ["broken.ply"]
    assert report.counts["shapes"] == 4


def test_a_set_of_too_few_shapes_is_invalid(tmp_path):
    (tmp_path / "one.ply").write_bytes(files.ply())
    assert validate(tmp_path).state == "invalid"
    with pytest.raises(BadShapes, match="it takes 4"):
        load_shapes(tmp_path, points=30)


def test_no_family_is_in_two_splits_and_every_class_is_trained_on():
    random = np.random.default_rng(0)
    labels = [label for label in "abcdef" for _ in range(30)]
    families = [f"{label}{random.integers(0, 8)}" for label in labels]
    shapes = shapes_of(labels, families)
    for seed in range(5):
        split_S = with_splits(shapes, seed, "family")
        places = {}
        for family, split in zip(families, split_S, strict=True):
            places.setdefault(family, set()).add(int(split))
        assert all(len(place) == 1 for place in places.values())
        assert set(shapes.label_S[split_S == 0]) == set(range(6))
        assert 0.1 < (split_S == 2).mean() < 0.45
    assert (with_splits(shapes, 0, "family") != with_splits(shapes, 1, "family")).any()


def test_numbered_files_are_split_by_shape():
    labels = [label for label in "ab" for _ in range(20)]
    shapes = shapes_of(labels, ["part#"] * 40)
    assert np.bincount(with_splits(shapes), minlength=3).tolist() == [26, 6, 8]
    with pytest.raises(BadShapes, match="too few families"):
        with_splits(shapes, 0, "family")


def test_small_classes_lose_their_label_and_long_families_count_as_a_few():
    shapes = known_labels(shapes_of(["a"] * 3 + ["b"] * 6, ["x"] * 5 + ["y"] * 4), 5)
    assert shapes.labels == ("b",)
    assert shapes.label_S.tolist() == [-1] * 3 + [0] * 6
    chosen = capped(shapes, np.arange(9), 2, np.random.default_rng(0))
    assert len(chosen) == 6  # two each of −1/x, b/x and b/y
    assert masked("SOIC-8_3.9x4.9mm") == "SOIC-#_#.#x#.#mm"
