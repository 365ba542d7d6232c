"""Image sets: what is read, what is refused, and the stripe that misleads."""

import gzip
import struct

import numpy as np
import pytest
import torch

from services.audits.image_sets import IDX, BadImageSet, digits, load_image_set, striped


def idx(array, kind=8):
    return gzip.compress(
        bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    )


def write_idx(folder, images=30, size=10):
    random = np.random.default_rng(0)
    for split, names in IDX.items():
        count = images if split == "train" else images // 3
        (folder / names[0]).write_bytes(idx(random.integers(0, 256, (count, size, size), np.uint8)))
        (folder / names[1]).write_bytes(idx((np.arange(count) % 10).astype(np.uint8)))
    return folder


def test_idx_files_are_read(tmp_path):
    found = load_image_set(write_idx(tmp_path))
    assert found.image_NCHW.shape == (30, 1, 10, 10)
    assert len(found.test_label_N) == 10
    assert found.classes == 10
    assert 0 <= float(found.image_NCHW.min()) < float(found.image_NCHW.max()) <= 1
    assert found.resized(5).image_NCHW.shape[-1] == 5
    assert found.resized(64) is found


def test_arrays_are_read(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), np.uint8)
    np.savez(tmp_path / "set.npz", images=image, labels=np.arange(20) % 4)
    found = load_image_set(tmp_path)
    assert found.image_NCHW.shape == (16, 3, 8, 8)
    assert torch.equal((found.test_image_NCHW * 255).round().byte(), torch.from_numpy(image[4::5]))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("train", b"no gzip", "gz"),
        ("train", gzip.compress(b"\0\0\x08"), "IDX"),
        ("train", gzip.compress(b"\0\0\x0d\x01" + struct.pack(">I", 4) + b"abcd"), "IDX"),
        ("train", gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 2**31, 2**31, 2**31) + b"x"), "IDX"),
        ("train", idx(np.zeros((7, 10, 10), np.uint8)), "label for each"),
    ],
    # gzip writes the time into its header, and two workers of pytest need the same names.
    ids=["no gzip", "too short", "another type", "larger than can be", "fewer labels"],
)
def test_a_bad_idx_file_is_named(tmp_path, name, content, problem):
    write_idx(tmp_path)
    (tmp_path / IDX[name][0]).write_bytes(content)
    with pytest.raises(BadImageSet, match=problem):
        load_image_set(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"images": np.zeros((4, 8, 8), np.uint8)}, "lacks"),
        ({"images": np.zeros((4, 8, 8), np.float32), "labels": np.arange(4)}, "uint8"),
        ({"images": np.zeros((4, 8, 9), np.uint8), "labels": np.arange(4)}, "square"),
        ({"images": np.zeros((6, 8, 8), np.uint8), "labels": np.full(6, -1)}, "labels"),
        ({"images": np.zeros((6, 8, 8), np.uint8), "labels": np.arange(6) * 1000}, "classes"),
        ({"images": np.zeros((6, 8, 8), np.uint8), "labels": np.array([object()] * 6)}, "pickle|allow"),
    ],
)
def test_bad_arrays_are_refused(tmp_path, arrays, problem):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(BadImageSet, match=problem):
        load_image_set(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(BadImageSet, match="four IDX files"):
        load_image_set(tmp_path)


def test_the_stripe_agrees_with_the_class_as_often_as_asked():
    two = striped(digits(), correlation=0.9, seed=0)
    assert set(two.label_N.tolist()) == {0, 1}
    assert two.group_N is not None
    assert two.test_group_N is not None
    assert float((two.group_N % 2 == two.label_N).float().mean()) == pytest.approx(0.9, abs=0.06)
    assert float((two.test_group_N % 2 == two.test_label_N).float().mean()) == pytest.approx(0.5, abs=0.15)
    top = two.image_NCHW[two.group_N % 2 == 0]
    assert float(top[:, :, 0].min()) == 1
