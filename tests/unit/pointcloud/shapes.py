"""Small sets of shapes for the tests: boxes, balls and rings of several families."""

import numpy as np

from services.pointcloud.neighbours import normalise

KINDS = ("ball", "box", "ring")


def cloud(kind, random, points=64, stretch=(1.0, 1.0, 1.0)):
    """Points (N, 3) of a surface in the unit ball."""
    direction = random.normal(size=(points, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    if kind == "box":
        direction = direction / np.abs(direction).max(axis=1, keepdims=True)
    elif kind == "ring":
        direction[:, 2] *= 0.1
    return normalise(direction * np.array(stretch)).points_N3


def write_set(path, *, each=12, families=4, points=64, seed=0, named=True):
    """An .npz of `each` shapes of each kind, in as many families."""
    random = np.random.default_rng(seed)
    rows, category, family, name = [], [], [], []
    for kind in KINDS:
        for number in range(each):
            own = number % families
            stretch = np.random.default_rng([own, seed]).uniform(0.6, 1.4, 3)
            rows.append(cloud(kind, random, points, stretch))
            category.append(kind)
            family.append(f"{kind}-{'abcdefghij'[own]}")
            name.append(f"{kind}_{number}")
    columns = {"category": np.array(category), "family": np.array(family), "name": np.array(name)}
    columns = {"points": np.stack(rows).astype(np.float16), **(columns if named else {})}
    np.savez(path, allow_pickle=False, **columns)
    return path
