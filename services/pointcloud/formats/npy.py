"""NumPy's .npy → points: an array (N, ≥ 3) of numbers. Objects, which would be unpickled, are refused."""

from __future__ import annotations

import io
import math

import numpy as np

from services.pointcloud.formats.geometry import Geometry, claim, damaged

MAGIC = b"\x93NUMPY"


def read(data: bytes) -> Geometry:
    stream = io.BytesIO(data)
    try:
        major = np.lib.format.read_magic(stream)[0]
        header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = header(stream)
    except Exception:  # the header is a Python literal, read by a parser with errors of many kinds
        raise damaged("The .npy header cannot be read.") from None
    if dtype.kind not in "fiu":
        raise damaged(f"The array holds {dtype.name}, not numbers.")
    if len(shape) != 2 or shape[1] < 3:
        raise damaged(f"The array has the shape {shape}; points have (N, 3).")
    claim("values", math.prod(shape), dtype.itemsize, len(data) - stream.tell())
    flat = np.frombuffer(data, dtype, math.prod(shape), stream.tell())
    rows = flat.reshape(shape, order="F" if by_columns else "C")[:, :3]
    return Geometry(rows if dtype.kind == "f" else rows.astype(np.float64))
