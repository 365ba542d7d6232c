"""Bundles and aliases: one suite on the local file system, on an fsspec store without rename, and on S3."""

import json
import threading
import uuid

import pytest

from shared.bundles import Bundle, BundleRejected, write_manifest
from shared.problems import NotFound
from shared.repository import AliasConflict, ModelRepository
from shared.testing import toy_bundle


@pytest.fixture(params=["local", "memory", "s3"])
def repository(request, tmp_path):
    match request.param:
        case "local":
            location = str(tmp_path / "models")
        case "memory":
            location = f"memory://{uuid.uuid4().hex}"
        case _:
            location = request.getfixturevalue("bucket") + "/models"
    return ModelRepository(location)


@pytest.fixture
def bundle(tmp_path):
    return toy_bundle(tmp_path / "bundle")


def test_published_versions_count_up_and_come_back_whole(repository, bundle):
    assert repository.versions("toy") == []
    assert repository.publish(bundle) == 1
    assert repository.publish(bundle, parent=1) == 2
    assert repository.versions("toy") == [1, 2]
    assert repository.names() == ["toy"]
    assert repository.manifest("toy", 2).parent == 1
    with repository.fetch("toy", 2) as fetched:
        assert fetched.path("model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()
        assert fetched.manifest.version == 2


def test_racing_publishers_get_a_version_each(repository, bundle):
    versions = []
    threads = [threading.Thread(target=lambda: versions.append(repository.publish(bundle))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == [1, 2, 3, 4, 5, 6]


def test_a_version_without_its_manifest_does_not_exist(repository, bundle, monkeypatch):
    real = repository.create

    def full_disk(path, data):
        if path.endswith("manifest.json"):
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(repository, "create", full_disk)
    with pytest.raises(OSError):
        repository.publish(bundle)
    monkeypatch.undo()
    assert repository.versions("toy") == []
    assert repository.publish(bundle) == 2


def test_what_cannot_be_published_leaves_no_files(repository, bundle, monkeypatch):
    """A disk that filled up is not kept full."""

    def changed(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(repository, "_digest", changed)
    with pytest.raises(OSError):
        repository.publish(bundle)
    monkeypatch.undo()
    assert not repository.fs.exists(f"{repository.root}/toy/1/model.onnx")


def test_attempts_of_one_job_publish_once_and_leave_one_copy(repository, bundle):
    versions = []
    threads = [threading.Thread(target=lambda: versions.append(repository.publish(bundle, key="j"))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [version] = set(versions)
    assert repository.versions("toy") == [version]
    copies = [path for path in repository.fs.find(f"{repository.root}/toy") if path.endswith("model.onnx")]
    assert len(copies) == 1


def test_seeding_is_idempotent_and_makes_a_champion(repository, bundle):
    repository.seed(bundle)
    repository.seed(bundle)
    assert repository.versions("toy") == [1]
    assert repository.aliases("toy").aliases["champion"].version == 1
    assert repository.aliases("toy").generation == 1


def test_aliases_change_by_compare_and_set(repository, bundle):
    repository.seed(bundle)
    repository.publish(bundle)
    table = repository.set_alias("toy", "champion", 2, expected_generation=1, by="me", reason="better")
    assert (table.generation, table.aliases["champion"].version) == (2, 2)
    with pytest.raises(AliasConflict):
        repository.set_alias("toy", "champion", 1, expected_generation=1)
    assert repository.newer_aliases("toy", 2) is None
    newer = repository.newer_aliases("toy", 1)
    assert newer is not None
    assert newer.changed_by == "me"
    assert [each.aliases["champion"].version for each in repository.alias_history("toy")] == [1, 2]
    assert repository.set_alias("toy", "champion", None).aliases == {}
    with pytest.raises(NotFound):
        repository.set_alias("toy", "champion", 9)


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "x" * 64])
def test_names_that_are_no_names_never_reach_a_path(repository, name):
    with pytest.raises(NotFound):
        repository.versions(name)


def test_a_flipped_bit_is_refused(bundle):
    data = bytearray((bundle / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(data)
    with pytest.raises(BundleRejected, match="SHA-256"):
        Bundle.open(bundle)


def test_a_missing_or_linked_file_is_refused(bundle, tmp_path):
    (bundle / "model.onnx").rename(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleRejected, match="lacks"):
        Bundle.open(bundle)
    (bundle / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleRejected, match="lacks"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["weights.pkl", "model.pt", "../up.onnx", ".hidden.onnx", "manifest.json", "x.joblib"])
def test_pickles_and_odd_names_have_no_place_in_a_bundle(bundle, name):
    with pytest.raises(BundleRejected):
        write_manifest(bundle, files=[name], name="toy", domain="toy", graphs={}, inputs=[], outputs=[])
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = manifest["files"]["model.onnx"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleRejected):
        Bundle.open(bundle)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 2}'])
def test_an_unreadable_manifest_is_refused(bundle, text):
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(BundleRejected):
        Bundle.open(bundle)


def test_only_listed_files_can_be_had(bundle):
    (bundle / "other.json").write_text("{}")
    with pytest.raises(BundleRejected):
        Bundle.open(bundle).path("other.json")
