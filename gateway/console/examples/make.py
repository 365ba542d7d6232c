"""Makes the console's examples that are no text: a rendered picture, the same squeezed, and a mesh of a chip.

    python gateway/console/examples/make.py     (needs numpy and Pillow, which the services' extra brings)

Shapes: N = rays, 3 = x to the right, y up, z away from the camera.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]
HERE = Path(__file__).parent
WIDTH, HEIGHT, SAMPLES = 640, 432, 4  # SAMPLES² rays a pixel
SUN = np.array([-0.55, 0.62, -0.56])
# Centre, radius, two colours, how often the texture repeats, how glossy.
BALLS = (
    ((-1.25, 0.62, 0.35), 0.62, (0.80, 0.36, 0.08), (0.93, 0.55, 0.16), 9.0, 0.15),
    ((0.15, 0.85, 1.25), 0.85, (0.10, 0.22, 0.36), (0.74, 0.78, 0.80), 2.2, 0.5),
    ((1.35, 0.48, 0.1), 0.48, (0.22, 0.36, 0.10), (0.55, 0.62, 0.22), 6.0, 0.2),
    ((0.25, 0.30, -0.55), 0.30, (0.45, 0.08, 0.10), (0.70, 0.20, 0.18), 12.0, 0.35),
)


def noise(at_N3: Floats, octaves: int) -> Floats:
    """(N,) in 0–1: values on a lattice, smoothly between them, summed over octaves with halving weight."""
    total, weight, sum_of_weights = np.zeros(len(at_N3)), 1.0, 0.0
    for octave in range(octaves):
        point = at_N3 * 2.0**octave + 17.3 * octave
        cell = np.floor(point).astype(np.int64)
        part = point - cell
        part = part * part * (3 - 2 * part)
        value = np.zeros(len(at_N3))
        for corner in np.ndindex(2, 2, 2):
            x, y, z = (cell + corner).T
            mixed = (x * 374761393 + y * 668265263 + z * 2147483647 + octave * 982451653) & 0xFFFFFFFF
            mixed = ((mixed ^ (mixed >> 13)) * 1274126177) & 0xFFFFFFFF
            mixed ^= mixed >> 16
            share = np.prod(np.where(np.array(corner) == 1, part, 1 - part), axis=1)
            value += share * (mixed & 0xFFFF) / 0xFFFF
        total += weight * value
        sum_of_weights += weight
        weight /= 2
    return total / sum_of_weights


def meet(origin_N3: Floats, way_N3: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Distance to the first thing met, and which: a ball's number, len(BALLS) for the ground, -1 for the sky."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ground = np.where(way_N3[:, 1] < -1e-6, -origin_N3[:, 1] / way_N3[:, 1], np.inf)
    distance, thing = ground, np.where(np.isfinite(ground), len(BALLS), -1)
    for number, (centre, radius, *_) in enumerate(BALLS):
        offset = origin_N3 - np.array(centre)
        half = (offset * way_N3).sum(1)
        root = half**2 - (offset**2).sum(1) + radius**2
        near = np.where(root > 0, -half - np.sqrt(np.maximum(root, 0)), np.inf)
        nearer = (near > 1e-4) & (near < distance)
        distance, thing = np.where(nearer, near, distance), np.where(nearer, number, thing)
    return distance, thing


def sky(way_N3: Floats) -> Floats:
    """(N, 3) colours: haze at the horizon, clouds above."""
    height = np.clip(way_N3[:, 1:2], 0, 1)
    blue = (1 - height) ** 4 * np.array([0.86, 0.88, 0.90]) + (1 - (1 - height) ** 4) * np.array([0.25, 0.45, 0.75])
    clouds = noise(np.column_stack([way_N3[:, 0], way_N3[:, 1] * 3, way_N3[:, 2]]) * 3 + 5, 6)[:, None]
    cover = np.clip((clouds - 0.5) * 5, 0, 1) * np.clip(height * 6, 0, 1)
    return blue * (1 - cover) + cover * (0.78 + 0.2 * clouds)


def surface(point_N3: Floats, thing_N: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Colours and normals, (N, 3) each, roughened by noise, and the gloss (N,)."""
    colour, normal = np.zeros_like(point_N3), np.tile([0.0, 1.0, 0.0], (len(point_N3), 1))
    gloss = np.zeros(len(point_N3))
    ground = thing_N == len(BALLS)
    if ground.any():
        at = point_N3[ground]
        board = np.floor(at[:, 0] * 1.6)
        grain = noise(np.column_stack([at[:, 0] * 22 + board * 7, board * 3.1, at[:, 2] * 1.3]), 6)
        pores = noise(at * np.array([90.0, 1.0, 12.0]), 3)
        tone = noise(np.column_stack([board, board * 0, board * 0]) + 0.5, 1)
        seam = np.abs(at[:, 0] * 1.6 - board - 0.5) > 0.487
        wood = np.array([0.36, 0.23, 0.13]) + grain[:, None] * np.array([0.40, 0.28, 0.16])
        wood *= (0.75 + 0.4 * tone + 0.35 * (pores - 0.5))[:, None]
        colour[ground] = np.where(seam[:, None], 0.3 * wood, wood)
        gloss[ground] = 0.06
    for number, (centre, radius, dark, light, often, shine) in enumerate(BALLS):
        mine = thing_N == number
        if not mine.any():
            continue
        at = point_N3[mine]
        pattern = np.clip(noise(at * often + 40 * number, 7) * 2.2 - 0.6, 0, 1)[:, None]
        colour[mine] = np.array(dark) * (1 - pattern) + np.array(light) * pattern
        out = (at - np.array(centre)) / radius
        steps = np.eye(3) * 0.004
        here = noise(at * often * 5, 4)
        slope = np.column_stack([noise((at + step) * often * 5, 4) - here for step in steps])
        out = out - slope * 3.0
        normal[mine] = out / np.linalg.norm(out, axis=1, keepdims=True)
        gloss[mine] = shine
    return colour, normal, gloss


def openness(point_N3: Floats, normal_N3: Floats, thing_N: NDArray[np.int64]) -> Floats:
    """(N,): the part of the sky that the balls leave, roughly."""
    left = np.ones(len(point_N3))
    for number, (centre, radius, *_) in enumerate(BALLS):
        there = np.array(centre) - point_N3
        far = np.linalg.norm(there, axis=1)
        facing = np.clip((there * normal_N3).sum(1) / far, 0, 1)
        left *= np.where(thing_N == number, 1, 1 - facing * np.minimum(1, radius / far) ** 2)
    return left


def trace(origin_N3: Floats, way_N3: Floats, bounces: int = 1) -> Floats:
    """(N, 3) linear light."""
    distance, thing = meet(origin_N3, way_N3)
    light = sky(way_N3)
    hit = thing >= 0
    if not hit.any():
        return light
    way, thing = way_N3[hit], thing[hit]
    point = origin_N3[hit] + way * distance[hit, None]
    colour, normal, gloss = surface(point, thing)
    sun = SUN / np.linalg.norm(SUN)
    lit = meet(point + normal * 1e-3, np.tile(sun, (len(point), 1)))[1] < 0
    direct = np.clip((normal * sun).sum(1), 0, 1) * lit
    ambient = openness(point, normal, thing) * (0.25 + 0.3 * (0.5 + 0.5 * normal[:, 1]))
    shaded = colour * (direct[:, None] * np.array([1.25, 1.15, 1.0]) + ambient[:, None] * np.array([0.9, 1.0, 1.15]))
    if bounces:
        mirrored = way - 2 * (way * normal).sum(1, keepdims=True) * normal
        seen = trace(point + normal * 1e-3, mirrored, bounces - 1)
        edge = (1 - np.clip(-(way * normal).sum(1), 0, 1)) ** 5
        share = (gloss * (0.15 + 0.85 * edge))[:, None]
        highlight = np.clip((mirrored * sun).sum(1), 0, 1) ** 60 * gloss * lit * 1.5
        shaded = shaded * (1 - share) + seen * share + highlight[:, None]
    fog = np.exp(-np.maximum(distance[hit] - 5, 0) * 0.06)[:, None]
    light[hit] = shaded * fog + np.array([0.86, 0.88, 0.90]) * (1 - fog)
    return light


def picture() -> Image.Image:
    """WIDTH × HEIGHT; shades by the square root, and half of a smooth step for contrast."""
    total = np.zeros((HEIGHT * WIDTH, 3))
    eye = np.array([0.1, 1.35, -4.2])
    for down, right in np.ndindex(SAMPLES, SAMPLES):
        y, x = np.mgrid[0:HEIGHT, 0:WIDTH].reshape(2, -1)
        across = (x + (right + 0.5) / SAMPLES - WIDTH / 2) / WIDTH
        up = (HEIGHT / 2 - y - (down + 0.5) / SAMPLES) / WIDTH
        way = np.column_stack([across, up - 0.16, np.full(len(x), 1.05)])
        total += np.minimum(trace(np.tile(eye, (len(way), 1)), way / np.linalg.norm(way, axis=1, keepdims=True)), 1.0)
    shades = np.sqrt(total / SAMPLES**2).reshape(HEIGHT, WIDTH, 3)
    shades = (shades + shades**2 * (3 - 2 * shades)) / 2
    return Image.fromarray((shades * 255).round().astype(np.uint8))


def box(low: tuple[float, float, float], high: tuple[float, float, float]) -> Floats:
    """Triangles (12, 3, 3) of an axis-aligned box, outwards."""
    corners = np.array([[(low, high)[bit][axis] for axis, bit in enumerate(bits)] for bits in np.ndindex(2, 2, 2)])
    faces = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
    return np.array([corners[[a, *rest]] for a, b, c, d in faces for rest in ((b, c), (c, d))])


def chip() -> Floats:
    """Triangles (T, 3, 3), in millimetres: a small-outline package with eight bent legs."""
    parts = [box((-2.45, -1.95, 0.25), (2.45, 1.95, 1.75))]
    for leg in range(4):
        middle = (leg - 1.5) * 1.27
        left, right = middle - 0.21, middle + 0.21
        for side in (-1, 1):
            for inner, outer, low, high in ((1.95, 2.45, 0.85, 1.05), (2.25, 2.45, 0.0, 1.05), (2.25, 3.1, 0.0, 0.2)):
                near, far = sorted((side * inner, side * outer))
                parts.append(box((left, near, low), (right, far, high)))
    return np.concatenate(parts)


def stl(triangles_T33: Floats) -> bytes:
    """Binary STL."""
    rows = np.zeros(len(triangles_T33), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("rest", "<u2")])
    a, b, c = triangles_T33.transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    rows["normal"] = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    rows["corners"] = triangles_T33
    return b"Fourfold: a chip in millimetres".ljust(80) + struct.pack("<I", len(rows)) + rows.tobytes()


if __name__ == "__main__":
    drawn = picture()
    drawn.save(HERE / "balls.jpg", quality=92)
    drawn.save(HERE / "balls-squeezed.jpg", quality=5)
    (HERE / "chip.stl").write_bytes(stl(chip()))
