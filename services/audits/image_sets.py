"""Reads a labelled image set for the recipes: IDX files (MNIST's form), arrays in an .npz, or scikit-learn's digits;
and makes the version with a misleading stripe that worst groups are measured on.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import gzip
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from shared.problems import InputError

IDX = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
MOST_BYTES = 512 * 2**20  # of one file, unpacked
MOST_CLASSES = 1000


class BadImageSet(InputError):
    """An image set that cannot be read; names the file."""

    code = "audits-bad-image-set"
    title = "The image set is not valid"


@dataclass(frozen=True)
class ImageSet:
    """Images are (N, C, H, W) float32 in 0–1, labels (N,) int64; `group_*` are (N,) or None."""

    image_NCHW: Tensor
    label_N: Tensor
    test_image_NCHW: Tensor
    test_label_N: Tensor
    group_N: Tensor | None = None
    test_group_N: Tensor | None = None

    @property
    def classes(self) -> int:
        return int(max(self.label_N.max(), self.test_label_N.max())) + 1

    @property
    def size(self) -> int:
        return self.image_NCHW.shape[-1]

    @property
    def channels(self) -> int:
        return self.image_NCHW.shape[1]

    def resized(self, size: int) -> ImageSet:
        """Averaged down to `size`; as it is where it is no larger."""
        if self.size <= size:
            return self
        parts = [F.adaptive_avg_pool2d(one, size) for one in (self.image_NCHW, self.test_image_NCHW)]
        return replace(self, image_NCHW=parts[0], test_image_NCHW=parts[1])

    def taken(self, train: int, test: int, seed: int) -> ImageSet:
        """At most so many images of each part, drawn at random."""
        rng = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(self.label_N), generator=rng)[:train]
        test_rows = torch.randperm(len(self.test_label_N), generator=rng)[:test]
        return replace(
            self,
            image_NCHW=self.image_NCHW[rows],
            label_N=self.label_N[rows],
            test_image_NCHW=self.test_image_NCHW[test_rows],
            test_label_N=self.test_label_N[test_rows],
            group_N=None if self.group_N is None else self.group_N[rows],
            test_group_N=None if self.test_group_N is None else self.test_group_N[test_rows],
        )


def load_image_set(path: Path) -> ImageSet:
    """A folder with MNIST's four IDX files, or with one .npz of `images` (N, H, W) or (N, C, H, W) uint8 and `labels`
    (N,), of which every fifth is held out, or with `test_images` and `test_labels` besides. Raises BadImageSet.
    """
    arrays = sorted(path.glob("*.npz"))
    if (path / IDX["train"][0]).exists():
        parts = [_read_idx(path / name) for split in ("train", "test") for name in IDX[split]]
        return _image_set(*parts, name=path.name)
    if len(arrays) != 1:
        raise BadImageSet("An image set is MNIST's four IDX files or one .npz.")
    file = arrays[0]
    try:
        with np.load(file, allow_pickle=False) as found:
            names = set(found.files)
            if not {"images", "labels"} <= names:
                raise BadImageSet(f"{file.name}: it lacks the arrays images and labels.", file=file.name)
            image, label = found["images"], found["labels"]
            held = (found["test_images"], found["test_labels"]) if {"test_images", "test_labels"} <= names else None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BadImageSet(f"{file.name}: {error}", file=file.name) from None
    if held is None:
        test = np.arange(len(label)) % 5 == 4
        return _image_set(image[~test], label[~test], image[test], label[test], name=file.name)
    return _image_set(image, label, *held, name=file.name)


def digits() -> ImageSet:
    """Scikit-learn's 1,797 digits of 8×8 points, every fifth held out: what a trial needs no file for."""
    from sklearn.datasets import load_digits

    pixel_ND, label_N = load_digits(return_X_y=True)
    image = np.round(pixel_ND.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    test = np.arange(len(image)) % 5 == 4
    return _image_set(image[~test], label_N[~test], image[test], label_N[test], name="digits")


def striped(images: ImageSet, *, correlation: float, seed: int) -> ImageSet:
    """Two classes told apart with difficulty (pullover 2 and shirt 6 of Fashion-MNIST; else the two first), with a
    stripe of three bright rows along the top or the bottom that agrees with the class for the share `correlation` of
    the training images and for half of the test images. Groups are 2·class + stripe: the two in which the stripe
    misleads are rare in training (waterbirds in small; Sagawa and others, 2020).
    """
    pair = (2, 6) if images.classes > 6 else (0, 1)
    rng = torch.Generator().manual_seed(seed)
    parts: list[Tensor] = []
    for image_NCHW, label_N, share in (
        (images.image_NCHW, images.label_N, correlation),
        (images.test_image_NCHW, images.test_label_N, 0.5),
    ):
        mine = (label_N == pair[0]) | (label_N == pair[1])
        kept_NCHW, kind_N = image_NCHW[mine].clone(), (label_N[mine] == pair[1]).long()
        agrees_N = torch.rand(len(kind_N), generator=rng) < share
        place_N = torch.where(agrees_N, kind_N, 1 - kind_N)
        rows = max(1, images.size // 9)
        kept_NCHW[place_N == 0, :, :rows] = 1.0
        kept_NCHW[place_N == 1, :, -rows:] = 1.0
        parts += [kept_NCHW, kind_N, 2 * kind_N + place_N]
    return ImageSet(parts[0], parts[1], parts[3], parts[4], parts[2], parts[5])


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """IDX: two zero bytes, the type (8: unsigned byte), the number of dimensions, each as a big-endian uint32."""
    try:
        with gzip.open(path) as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, EOFError) as error:
        raise BadImageSet(f"{path.name}: {error}", file=path.name) from None
    if len(data) > MOST_BYTES:
        raise BadImageSet(f"{path.name}: unpacked it is larger than {MOST_BYTES >> 20} MiB.", file=path.name)
    dimensions = data[3] if len(data) > 4 and data[:3] == b"\0\0\x08" else 0
    start = 4 + 4 * dimensions
    shape = tuple(np.frombuffer(data[4:start], ">u4").tolist()) if dimensions and len(data) >= start else ()
    if not shape or int(np.prod([int(side) for side in shape], dtype=object)) != len(data) - start:
        raise BadImageSet(f"{path.name}: it is no IDX file of bytes, or is cut off.", file=path.name)
    return np.frombuffer(data[start:], np.uint8).reshape(shape)


def _image_set(
    image: NDArray[np.generic],
    label: NDArray[np.generic],
    test_image: NDArray[np.generic],
    test_label: NDArray[np.generic],
    *,
    name: str,
) -> ImageSet:
    made: list[Tensor] = []
    for one, labels in ((image, label), (test_image, test_label)):
        if one.dtype != np.uint8 or one.ndim not in (3, 4) or len(one) != len(labels) or labels.ndim != 1:
            raise BadImageSet(f"{name}: images are uint8 (N, H, W) or (N, C, H, W), with a label for each.", file=name)
        if not len(one) or not np.issubdtype(labels.dtype, np.integer) or not 0 <= labels.min() <= labels.max():
            raise BadImageSet(f"{name}: there are no images, or labels that are not 0, 1, 2, …", file=name)
        if labels.max() >= MOST_CLASSES:
            raise BadImageSet(f"{name}: more than {MOST_CLASSES} classes.", file=name)
        four = one[:, None] if one.ndim == 3 else one
        if four.shape[1] not in (1, 3) or four.shape[2] != four.shape[3]:
            raise BadImageSet(f"{name}: images are square, with one channel or three.", file=name)
        made += [torch.from_numpy(four.astype(np.float32) / 255), torch.from_numpy(labels.astype(np.int64))]
    return ImageSet(*made)
