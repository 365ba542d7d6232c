"""Reading in confined children: what they cannot do, how they are replaced, and that memory stays flat."""

import os
import random
import sys
import threading
import time

import numpy as np
import psutil
import pytest

from services.pointcloud import features
from services.pointcloud.confinement import Child, ChildLost
from services.pointcloud.features import PROBLEMS, Reader
from services.pointcloud.neighbours import local_features, normalise
from shared.problems import DeadlineExceeded, InputError, Overloaded
from tests.unit.pointcloud.files import GOOD, VERTICES, exported, las, npy, pcd, xyz


@pytest.fixture(scope="module")
def reader():
    with Reader(1) as reader:
        yield reader


def test_a_cloud_is_normalised_and_that_is_undone(reader):
    moved = VERTICES.astype(np.float64) * 250 + [500_000, 5_000_000, 100]
    cloud = reader.read(npy(moved))
    unit = normalise(moved)
    np.testing.assert_allclose(cloud.unit_N3, unit.points_N3, atol=1e-6)
    assert np.linalg.norm(cloud.unit_N3, axis=1).max() == pytest.approx(1)
    np.testing.assert_allclose(cloud.points_N3, moved, atol=1e-4)
    expected, neighbours = local_features(unit.points_N3)
    np.testing.assert_allclose(cloud.features_N12, expected, atol=1e-6)
    np.testing.assert_array_equal(cloud.neighbours_NK, neighbours)
    assert (cloud.format, cloud.points, cloud.reduction, cloud.notes) == ("npy", len(VERTICES), "none", [])
    np.testing.assert_allclose(cloud.low_3, moved.min(axis=0))


def test_a_mesh_is_sampled_with_the_seed(reader):
    data = exported("stl")
    first, again, other = (reader.read(data, points=500, seed=seed) for seed in (4, 4, 5))
    assert (first.reduction, first.seed, len(first.unit_N3), first.triangles) == ("area", 4, 500, 576)
    np.testing.assert_array_equal(first.features_N12, again.features_N12)
    assert (first.features_N12 != other.features_N12).any()


def test_an_array_and_distances(reader):
    cloud = reader.prepare(VERTICES)
    np.testing.assert_allclose(cloud.points_N3, VERTICES, atol=1e-5)
    there, back = reader.distances(VERTICES, VERTICES[:100])
    assert there > 0
    assert back == 0
    with pytest.raises(features.NotFinite):
        reader.prepare(np.full((30, 3), np.nan))


BAD = {
    "one point": (b"1 2 3\n", features.TooFewPoints),
    "all points equal": (b"1 2 3\n" * 50, features.NoExtent),
    "equal but for rounding": (npy(np.full((50, 3), 1e6) + np.eye(50, 3) * 1e-9), features.NoExtent),
    "larger than floats": (npy(VERTICES.astype(np.float64) * 1e200), features.NoExtent),
    "a flat mesh of no area": (b"v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n", features.TooFewPoints),
    "nothing": (b"", features.EmptyCloud),
    "words": (b"to be or not\n" * 9, features.UnknownFormat),
    "4e9 triangles": (exported("stl")[:80] + b"\xff\xff\xff\xff" + exported("stl")[84:], features.DamagedFile),
    "nan": (xyz() + b"nan 1 1\n", features.NotFinite),
    "an index": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 4\n", features.BadIndex),
    "a bomb": (
        pcd(np.zeros((1 << 16, 3)), "binary_compressed", 250_000_000, unpacked=4_000_000_000),
        features.CloudTooLarge,
    ),
}


@pytest.mark.parametrize("row", BAD)
def test_bad_files_have_a_problem_of_their_own_and_cost_no_child(reader, row):
    reader.prepare(VERTICES)
    child = reader.children[0]
    before = child.pid
    data, problem = BAD[row]
    with pytest.raises(problem) as caught:
        reader.read(data)
    assert 400 <= caught.value.status < 500
    assert "/" not in caught.value.detail
    assert reader.read(npy()).points == len(VERTICES)
    assert child.pid == before


def test_every_problem_has_its_own_code():
    codes = [problem.code for problem in PROBLEMS.values()]
    assert len(set(codes)) == len(codes)
    assert all(code.startswith("pointcloud-") for code in codes)


# What the child runs in the tests below, instead of reading a file.
TRICKS = """
import json, os, resource, socket, sys
import services.pointcloud.child as child

def attempt(call):
    try:
        call()
    except BaseException as error:
        return type(error).__name__
    return "done"

def trick(asked, data):
    match asked["trick"]:
        case "tries":
            return {
                "open": attempt(lambda: open("/etc/passwd")),
                "write": attempt(lambda: open("/tmp/fourfold-was-here", "w")),
                "connect": attempt(lambda: socket.create_connection(("127.0.0.1", 9))),
                "pipe": attempt(os.pipe),
                "memory": attempt(lambda: bytearray(2 << 30)),
                "environment": sorted(os.environ),
                "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            }, []
        case "die":
            os.abort()
        case "spin":
            while True:
                pass
        case "garble":
            os.write(0, b"x" * 200_000)
            return {}, []

child.OPERATIONS["trick"] = trick
child.CPU_SECONDS = 0.2
child.main()
"""


@pytest.fixture
def tricky(tmp_path, monkeypatch):
    """A child that also knows a bad operation."""
    (tmp_path / "tricks.py").write_text(TRICKS)
    monkeypatch.setenv("FOURFOLD_DATABASE_URL", "secret")
    child = Child((sys.executable, str(tmp_path / "tricks.py")))
    yield child
    child.close()


def test_the_child_can_open_nothing_and_knows_no_secret(tricky):
    found, _ = tricky.ask("trick", b"", 30, trick="tries")
    assert found["open"] == found["write"] == found["connect"] == found["pipe"] == "OSError"
    assert found["memory"] == "MemoryError"
    assert found["descriptors"] == 3
    assert not any("FOURFOLD" in name for name in found["environment"])
    assert not os.path.exists("/tmp/fourfold-was-here")


@pytest.mark.parametrize(
    ("trick", "slow", "seconds"), [("die", False, 30), ("spin", True, 30), ("spin", True, 0.3), ("garble", False, 30)]
)
def test_a_child_that_misbehaves_is_replaced(tricky, trick, slow, seconds):
    tricky.ask("prepare", VERTICES.tobytes(), 30)
    before, begun = tricky.pid, time.monotonic()
    with pytest.raises(ChildLost) as caught:
        tricky.ask("trick", b"", seconds, trick=trick)
    assert caught.value.slow == slow
    assert time.monotonic() - begun < 10
    assert not psutil.pid_exists(before)
    assert len(tricky.ask("prepare", VERTICES.tobytes(), 30)[1][0]) == len(VERTICES)
    assert tricky.starts == 2


def test_a_child_killed_between_requests_is_not_missed(reader):
    reader.prepare(VERTICES)
    process = psutil.Process(reader.children[0].pid)
    process.kill()
    process.wait(5)
    assert reader.read(npy()).points == len(VERTICES)


def test_waiting_is_bounded_and_ends_with_the_deadline(monkeypatch):
    monkeypatch.setattr(features, "MOST_WAITING", 3)
    gate = threading.Event()
    with Reader(1) as reader:
        busy = [reader.submit(lambda _: gate.wait(30)) for _ in range(3)]
        with pytest.raises(Overloaded):
            reader.submit(lambda _: None)
        gate.set()
        assert all(future.result(30) for future in busy)
        with pytest.raises(DeadlineExceeded):
            reader.submit(lambda _: None, time.monotonic() - 1).result(30)
        assert reader.submit(lambda seconds: seconds, time.monotonic() + 5).result(30) <= 5


@pytest.mark.parametrize("row", GOOD)
def test_mutated_files_are_read_or_refused(reader, row):
    data = GOOD[row][0]
    random_ = random.Random(row)
    for _ in range(25):
        mutated = bytearray(data)
        for _ in range(random_.choice((1, 3, 20))):
            at = random_.randrange(len(mutated) if random_.random() < 0.5 else min(400, len(mutated)))
            match random_.randrange(4):
                case 0:
                    mutated[at] = random_.randrange(256)
                case 1:
                    mutated[at : at + 4] = random_.randbytes(4)
                case 2:
                    del mutated[at : at + random_.randrange(1, 40)]
                case _:
                    mutated[at:at] = random_.choice((b"9", b"-1", b"nan ", b"\xff\xff\xff\x7f"))
        try:
            cloud = reader.read(mutated, points=64)
        except InputError:
            continue
        assert np.isfinite(cloud.features_N12).all()
    assert reader.read(data).points


def test_memory_stays_flat(reader):
    """Ours and the child's, over files that are large, bad and good."""
    large = npy(np.random.default_rng(0).normal(size=(1_000_000, 3)).astype(np.float32))
    rows = [large, large[: 6 << 20], las(packed=True), *(data for data, _ in BAD.values())]

    def everything():
        for data in rows:
            try:
                reader.read(data)
            except InputError:
                pass
        return psutil.Process().memory_info().rss, psutil.Process(reader.children[0].pid).memory_info().rss

    everything()
    first = everything()
    everything()
    last = everything()
    assert last[0] - first[0] < 24 << 20
    assert last[1] - first[1] < 24 << 20
