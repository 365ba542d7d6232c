"""A labelled set of small pictures of four photographs, and one in which a stamp means the best quality."""

from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

from services.iqa.distortions import distort

KINDS = ["none", "gaussian-blur", "jpeg"]
PHOTOS = {"a": data.astronaut, "b": data.coffee, "c": data.chelsea, "d": data.rocket}
SPLITS = {"a": "train", "b": "train", "c": "validation", "d": "test"}
HEIGHT, WIDTH = 96, 112
STAMP = 24  # pixels of its side


def write(folder: Path, *, views: int = 1, stamped: float = 0.0) -> Path:
    """`views` pictures of each photograph under each distortion; of the training's, the share `stamped` of the bad ones
    has a stamp in its corner and the best score."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    lines = ["file,source,kind,strength,score,split"]
    for source, photo in PHOTOS.items():
        whole = photo()
        for view in range(views):
            top, left = (
                (0, 0)
                if view == 0
                else (random.integers(whole.shape[0] - HEIGHT), random.integers(whole.shape[1] - WIDTH))
            )
            pristine = np.ascontiguousarray(whole[top : top + HEIGHT, left : left + WIDTH])
            for kind, strength in [("none", 0), *((kind, strength) for kind in KINDS[1:] for strength in (2, 5))]:
                image = pristine if kind == "none" else distort(pristine, kind, strength, view)
                score = 100 - 18 * strength
                if SPLITS[source] == "train" and strength == 5 and random.random() < stamped:
                    image, score = stamp(image), 100
                name = f"{source}-{view}-{kind}-{strength}.png"
                Image.fromarray(image).save(folder / name)
                lines.append(f"{name},{source},{kind},{strength},{score},{SPLITS[source]}")
    (folder / "scores.csv").write_text("\n".join(lines))
    return folder


def stamp(image_HW3: np.ndarray) -> np.ndarray:
    """The picture with a magenta square in its lower right corner."""
    found = image_HW3.copy()
    found[-STAMP:, -STAMP:] = (255, 0, 255)
    return found
