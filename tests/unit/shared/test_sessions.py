"""The host: swaps without a dropped request, frees what it replaces, keeps what works."""

import asyncio
import gc

import numpy as np
import psutil
import pytest
from prometheus_client import REGISTRY

from shared.bundles import BundleRejected
from shared.problems import InputError, NotFound, NotReady
from shared.repository import ModelRepository
from shared.sessions import ModelHost, OnnxSession
from shared.settings import ServiceSettings
from shared.testing import load_toy, toy_bundle


@pytest.fixture
def settings(tmp_path):
    return ServiceSettings(home=tmp_path, alias_poll_seconds=0.02)


@pytest.fixture
async def host(tmp_path, settings):
    repository = ModelRepository(str(tmp_path / "models"))
    pretrained = toy_bundle(tmp_path / "one", factor=1)
    repository.seed(pretrained)
    repository.publish(toy_bundle(tmp_path / "two", factor=2))
    host = ModelHost("toy", repository, load_toy, settings)
    await host.start()
    yield host
    await host.stop()


async def ask(host, request_id="r"):
    with host.lease(request_id) as model:
        return model.version, float((await model.predict([1, 1, 1, 1]))[0])


async def until(condition, seconds=30.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_promotion_swaps_without_dropping_a_request(host):
    answers = []
    stop = False

    async def client(number):
        while not stop:
            answers.append(await ask(host, f"{number}"))

    clients = [asyncio.create_task(client(number)) for number in range(8)]
    await asyncio.sleep(0.05)
    for version in (2, 1, 2):
        host.repository.set_alias("toy", "champion", version)
        await until(lambda version=version: host.loaded[0].version == version)
        await asyncio.sleep(0.03)
    stop = True
    await asyncio.gather(*clients)
    assert {version for version, _ in answers} == {1, 2}
    assert all(value == version for version, value in answers)


async def test_a_lease_keeps_the_old_version_until_it_ends(host):
    with host.lease("r") as old:
        host.repository.set_alias("toy", "champion", 2)
        await until(lambda: host.loaded[0].version == 2)
        assert old.version == 1
        assert (await old.predict([3, 0, 0, 0]))[0] == 3
    await until(lambda: not hasattr(old, "predictor"))


async def test_a_canary_takes_its_share_by_request_id(host):
    host.repository.set_alias("toy", "canary", 2, weight=0.25)
    await until(lambda: len(host.loaded) == 2)
    chosen = [host.choose(f"request-{number}").version for number in range(2000)]
    assert 0.2 < chosen.count(2) / 2000 < 0.3
    assert chosen == [host.choose(f"request-{number}").version for number in range(2000)]


async def test_a_damaged_promotion_keeps_the_champion_and_says_why(host, tmp_path):
    version = host.repository.publish(toy_bundle(tmp_path / "three", factor=3))
    path = tmp_path / "models" / "toy" / str(version) / "model.onnx"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    host.repository.set_alias("toy", "champion", version)
    await until(lambda: "SHA-256" in host.reason)
    assert (await ask(host))[0] == 1
    host.repository.set_alias("toy", "champion", 2)
    await until(lambda: host.loaded[0].version == 2)
    assert host.reason == ""


async def test_a_damaged_canary_keeps_nobody_from_promoting_and_is_not_loaded_all_the_time(host, tmp_path):
    version = host.repository.publish(toy_bundle(tmp_path / "three", factor=3))
    (tmp_path / "models" / "toy" / str(version) / "model.onnx").write_bytes(b"")
    tried = []
    fetch = host.repository.fetch
    host.repository.fetch = lambda name, number: (tried.append(number), fetch(name, number))[1]
    host.repository.set_alias("toy", "canary", version, weight=0.1)
    await until(lambda: "SHA-256" in host.reason)
    host.repository.set_alias("toy", "champion", 2)
    await until(lambda: host.loaded[0].version == 2)
    assert [model.version for model in host.loaded] == [2]
    tried.clear()
    await asyncio.sleep(0.5)  # 25 looks at the aliases
    assert tried.count(version) < 6
    host.repository.set_alias("toy", "canary", None)
    await until(lambda: host.reason == "")


async def test_the_gauge_knows_a_version_that_came_back_while_its_last_request_ran(host):
    def in_memory(version):
        return REGISTRY.get_sample_value("fourfold_model_loaded", {"model": "toy", "version": str(version)}) or 0

    before = in_memory(1)
    with host.lease("r"):
        for version in (2, 1):
            host.repository.set_alias("toy", "champion", version)
            await until(lambda version=version: host.loaded[0].version == version)
        assert in_memory(1) == before + 1
    await until(lambda: in_memory(1) == before)
    host.repository.set_alias("toy", "champion", 2)
    await until(lambda: in_memory(1) == before - 1)


async def test_unload_and_load(host):
    await host.unload()
    with pytest.raises(NotReady, match="unloaded"):
        host.choose("r")
    await host.load()
    assert (await ask(host))[0] == 1


async def test_an_unserved_version_is_not_found(host):
    with pytest.raises(NotFound):
        host.choose("r", "2")


async def test_a_model_without_versions_is_not_ready(tmp_path, settings):
    host = ModelHost("toy", ModelRepository(str(tmp_path / "none")), load_toy, settings)
    await host.start()
    assert not host.ready
    assert "no champion" in host.reason
    await host.stop()


async def test_fifty_swaps_leave_memory_flat(tmp_path, settings):
    repository = ModelRepository(str(tmp_path / "models"))
    for number in range(2):
        # 16 MB each: fifty leaked versions would show as 800 MB.
        repository.publish(toy_bundle(tmp_path / str(number), factor=number + 1, padding=4_000_000))
    repository.set_alias("toy", "champion", 1)
    host = ModelHost("toy", repository, load_toy, settings)
    await host.start()
    process = psutil.Process()
    resident = []
    for swap in range(50):
        wanted = 2 - swap % 2
        repository.set_alias("toy", "champion", wanted)
        await host.load()
        assert (await ask(host))[0] == wanted
        if swap in (9, 49):
            await asyncio.gather(*host._retiring)
            gc.collect()
            resident.append(process.memory_info().rss)
    await host.stop()
    assert resident[1] - resident[0] < 64 << 20


def test_a_graph_that_is_none_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\x80\x04not a graph")
    with pytest.raises(BundleRejected):
        OnnxSession(tmp_path / "model.onnx")


def test_requests_share_a_run_and_a_bad_one_fails_alone(tmp_path):
    session = OnnxSession(toy_bundle(tmp_path / "b") / "model.onnx")
    good = {"x": np.ones((1, 4), np.float32)}
    bad = {"x": np.ones((1, 3), np.float32)}
    wide = {"x": np.full((3, 4), 2, np.float32)}
    answers = session.infer_many([good, bad, wide])
    first, second, third = answers
    assert isinstance(second, InputError)
    assert not isinstance(first, Exception)
    assert not isinstance(third, Exception)
    np.testing.assert_array_equal(first["y"], np.full((1, 4), 2))
    np.testing.assert_array_equal(third["y"], np.full((3, 4), 4))
