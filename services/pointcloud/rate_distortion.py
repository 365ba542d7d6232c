"""Bytes against distortion: codewords in each precision beside Draco, on shapes that were never trained on.

    python -m services.pointcloud.rate_distortion --data FILE_OR_FOLDER [--bundle DIR] [--shapes 200]

Draco (of the dev extra) compresses the same points; its rate is set by the bits a coordinate is rounded to. Distances
are Chamfer distances in the max form, in the unit ball. Two of them are reported, because they answer different
questions: to the points that were encoded, and to other samples of the same shape where there are any. Draco keeps the
points themselves, a codeword only the surface they came from. Shapes: N points, G points of the surface.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.pointcloud import codec
from services.pointcloud.chamfer import chamfer_max
from services.pointcloud.datasets import load_shapes, with_splits
from services.pointcloud.features import Cloud
from services.pointcloud.neighbours import local_features, normalise
from services.pointcloud.predict import PointcloudPredictor, load
from shared.bundles import Bundle
from shared.settings import ServiceSettings

RAW = 12  # bytes a point as float32
BITS = (4, 5, 6, 7, 8, 10, 12)
Floats = NDArray[np.float32]
Coder = Callable[[Cloud], tuple[int, Floats]]  # bytes of the file, and the points that come back in the unit ball


def coders(predictor: PointcloudPredictor) -> dict[str, Coder]:
    """Every codec by its name; a codeword's bytes are those of its whole file, header and all."""

    def of_codeword(precision: codec.Precision) -> Coder:
        def coder(cloud: Cloud) -> tuple[int, Floats]:
            word = codec.Codeword(predictor.encode(cloud), cloud.centre_3, cloud.scale, predictor.fingerprint)
            data = codec.pack(word, precision)
            return len(data), predictor.decode(codec.unpack(data).values_W)

        return coder

    def of_draco(bits: int) -> Coder:
        def coder(cloud: Cloud) -> tuple[int, Floats]:
            import DracoPy

            data = DracoPy.encode(cloud.unit_N3, quantization_bits=bits, compression_level=10, preserve_order=False)
            return len(data), np.asarray(DracoPy.decode(data).points, np.float32)

        return coder

    found: dict[str, Coder] = {f"codeword {precision}": of_codeword(precision) for precision in codec.PRECISIONS}
    found |= {f"Draco {bits} bits": of_draco(bits) for bits in BITS}
    # What a few points kept as they are would do, at the rate of a codeword: the floor.
    for keep in (40, 80, 170):
        found[f"{keep} points, fp16"] = lambda cloud, keep=keep: (keep * 6 + 40, cloud.unit_N3[:keep])
    return found


def measure(predictor: PointcloudPredictor, clouds: list[Floats], points: int) -> list[dict[str, Any]]:
    """A row a codec: mean bytes, and mean distances with their 95 % intervals over the shapes."""
    rows: list[dict[str, Any]] = []
    read: list[tuple[Cloud, Floats]] = []
    for points_N3 in clouds:
        unit = normalise(points_N3[:points])
        held_out = ((points_N3[points:] - unit.centre_3) / unit.scale).astype(np.float32)
        read.append((Cloud(*local_features(unit.points_N3), unit.centre_3, unit.scale), held_out))
    for name, coder in coders(predictor).items():
        sizes: list[int] = []
        same: list[float] = []
        other: list[float] = []
        begun = time.process_time()
        for cloud, held_out in read:
            size, decoded = coder(cloud)
            sizes.append(size)
            same.append(chamfer_max(cloud.unit_N3, decoded))
            other.append(chamfer_max(held_out, decoded) if len(held_out) else np.nan)
        rows.append(
            {
                "codec": name,
                "bytes": float(np.mean(sizes)),
                "ratio": RAW * points / float(np.mean(sizes)),
                "same": _interval(same),
                "other": _interval(other),
                "seconds": time.process_time() - begun,
            }
        )
    return rows


def _interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval."""
    return float(np.mean(values)), float(1.96 * np.std(values) / np.sqrt(len(values)))


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| codec | bytes | times smaller | to the points | to other samples |", "|---|---|---|---|---|"]
    if np.isnan(rows[0]["other"][0]):  # the shapes have no points beyond those that were encoded
        lines = ["| codec | bytes | times smaller | to the points |", "|---|---|---|---|"]
    for row in rows:
        (same, about), (other, about_other) = row["same"], row["other"]
        sizes = f"{row['bytes']:.0f} | {row['ratio']:.1f}"
        beyond = "" if np.isnan(other) else f" {other:.4f} ± {about_other:.4f} |"
        lines.append(f"| {row['codec']} | {sizes} | {same:.4f} ± {about:.4f} |{beyond}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="a folder as datasets.py describes, or a file of arrays"
    )
    parser.add_argument("--bundle", type=Path, default=Path(__file__).with_name("pretrained"))
    parser.add_argument("--shapes", type=int, default=200, help="of the test split, drawn with seed 0")
    parser.add_argument("--points", type=int, default=2048, help="encoded; what a shape has beyond them is held out")
    given = parser.parse_args()
    shapes = load_shapes(given.data, points=max(2048, 2 * given.points), seed=0)
    test = np.flatnonzero(with_splits(shapes) == 2)
    chosen = np.random.default_rng(0).permutation(test)[: given.shapes]
    clouds = [shapes.cloud(int(index)) for index in chosen]
    predictor = load(Bundle.open(given.bundle), ServiceSettings())
    print(
        f"{len(clouds)} shapes of the test split, {given.points} points each, {RAW * given.points} bytes as float32\n"
    )
    print(table(measure(predictor, clouds, given.points)))


if __name__ == "__main__":
    main()
