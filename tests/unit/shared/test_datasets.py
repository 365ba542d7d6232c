"""Data sets: content addressing, uploads that go on, what is never unpacked, and collection."""

import hashlib
import io
import tarfile
import threading
import time
import zipfile
from collections import deque

import pytest

from shared.datasets import DatasetBusy, Datasets, DatasetUnusable, FileOf, MissingFiles, Report, folder_digest
from shared.problems import NotFound, Unprocessable
from shared.settings import Settings
from shared.unpacking import ArchiveTooLarge, BadArchive, check_path, unpack, without_common_folder


@pytest.fixture(params=["folder", "memory", "s3"])
def datasets(request, tmp_path, engine):
    """On a local folder, and on stores that are none."""
    match request.param:
        case "folder":
            url = str(tmp_path / "sets")
        case "memory":
            url = f"memory://{tmp_path}"
        case _:
            url = request.getfixturevalue("bucket") + "/sets"
    settings = Settings(home=tmp_path, datasets_url=url, max_dataset_bytes=1 << 20, max_dataset_files=20)
    return Datasets(engine, settings)


def file_of(path, data):
    return FileOf(path=path, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def put(datasets, tmp_path, data):
    draft = tmp_path / "draft"
    draft.write_bytes(data)
    datasets.put_file(draft, hashlib.sha256(data).hexdigest())


def made(datasets, tmp_path, name="mine", **files):
    for data in files.values():
        put(datasets, tmp_path, data)
    return datasets.add("toy", name, [file_of(path, data) for path, data in files.items()], "me")


def zipped(path, **files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tarred(path, *members):
    with tarfile.open(path, "w:gz") as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


# -- content addressing


def test_the_same_files_are_the_same_data_set(datasets, tmp_path):
    first, new = made(datasets, tmp_path, a=b"1", b=b"2")
    again, again_new = made(datasets, tmp_path, name="other", b=b"2", a=b"1")
    assert (new, again_new) == (True, False)
    assert first.digest == again.digest
    assert datasets.resolve("other").digest == first.digest
    assert made(datasets, tmp_path, a=b"1", b=b"3")[0].digest != first.digest


def test_a_folder_has_the_digest_of_its_data_set(datasets, tmp_path):
    dataset, _ = made(datasets, tmp_path, a=b"1", b=b"2")
    datasets.fetch(dataset.digest, tmp_path / "out")
    assert (tmp_path / "out" / "b").read_bytes() == b"2"
    assert folder_digest("toy", tmp_path / "out") == dataset.digest


def test_an_upload_goes_on_where_it_was(datasets, tmp_path):
    put(datasets, tmp_path, b"1")
    files = [file_of("a", b"1"), file_of("b", b"2")]
    with pytest.raises(MissingFiles) as missing:
        datasets.add("toy", "mine", files, "me")
    assert missing.value.extra["missing"] == [files[1].sha256]
    put(datasets, tmp_path, b"2")
    assert datasets.add("toy", "mine", files, "me")[0].state == "validating"


def test_a_file_is_joined_of_its_parts(datasets, tmp_path):
    parts = [b"ab", b"cd", b"ab"]
    digests = [hashlib.sha256(part).hexdigest() for part in parts]
    whole = file_of("whole", b"abcdab")
    put(datasets, tmp_path, b"ab")
    with pytest.raises(MissingFiles) as missing:
        datasets.join_parts(whole.sha256, digests, tmp_path / "draft")
    assert missing.value.extra["missing"] == [digests[1]]
    put(datasets, tmp_path, b"cd")
    with pytest.raises(Unprocessable, match="SHA-256"):
        datasets.join_parts(whole.sha256, digests[:2], tmp_path / "draft")
    datasets.join_parts(whole.sha256, digests, tmp_path / "draft")
    dataset, _ = datasets.add("toy", "mine", [whole], "me")
    datasets.fetch(dataset.digest, tmp_path / "out")
    assert (tmp_path / "out" / "whole").read_bytes() == b"abcdab"
    put(datasets, tmp_path, bytes(600_000))
    with pytest.raises(ArchiveTooLarge):
        datasets.join_parts(whole.sha256, [hashlib.sha256(bytes(600_000)).hexdigest()] * 2, tmp_path / "draft")


def test_bytes_that_are_not_what_they_are_called_are_refused(datasets, tmp_path):
    (tmp_path / "draft").write_bytes(b"1")
    with pytest.raises(Unprocessable, match="SHA-256"):
        datasets.put_file(tmp_path / "draft", "0" * 64)


def test_references(datasets, tmp_path):
    dataset, _ = made(datasets, tmp_path, a=b"1")
    assert datasets.resolve(dataset.digest[:8]).digest == dataset.digest
    for wrong in ("none", "0" * 64, dataset.digest[:7]):
        with pytest.raises(NotFound):
            datasets.resolve(wrong)
    with pytest.raises(NotFound):
        datasets.files("../../etc/passwd")


def test_a_name_means_its_newest(datasets, tmp_path):
    made(datasets, tmp_path, a=b"1")
    time.sleep(0.01)
    newer, _ = made(datasets, tmp_path, a=b"2")
    assert datasets.resolve("mine").digest == newer.digest
    assert [item.digest for item in datasets.page(limit=1)] == [newer.digest]


def test_a_damaged_file_is_not_handed_out(datasets, tmp_path):
    dataset, _ = made(datasets, tmp_path, a=b"1")
    datasets.fs.pipe_file(datasets._blob(hashlib.sha256(b"1").hexdigest()), b"x")
    with pytest.raises(DatasetUnusable, match="'a' is damaged"):
        datasets.fetch(dataset.digest, tmp_path / "out")


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ([], Unprocessable),
        ([file_of("../a", b"")], BadArchive),
        ([file_of("a", b""), file_of("./a", b"")], BadArchive),
        ([file_of(str(number), b"") for number in range(21)], ArchiveTooLarge),
        ([FileOf(path="a", sha256="0" * 64, size=2 << 20)], ArchiveTooLarge),
    ],
)
def test_listings_that_are_refused(datasets, files, error):
    with pytest.raises(error):
        datasets.add("toy", "mine", files, "me")
    assert datasets.page() == []


def test_the_same_data_set_added_by_many_at_once_is_one(datasets, tmp_path):
    put(datasets, tmp_path, b"1")
    barrier = threading.Barrier(6)
    answers = []

    def add():
        barrier.wait()
        answers.append(datasets.add("toy", "mine", [file_of("a", b"1")], "me"))

    threads = [threading.Thread(target=add) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 6
    assert [new for _, new in answers].count(True) == 1


def test_a_data_set_found_invalid_is_judged_anew_when_it_is_added_again(datasets, tmp_path):
    for state, then in (("invalid", "validating"), ("flawed", "flawed")):
        dataset, _ = made(datasets, tmp_path, a=b"1")
        datasets.judge(dataset.digest, Report.model_validate({"state": state}))
        assert made(datasets, tmp_path, a=b"1")[0].state == then


# -- archives


def test_an_archive_loses_its_one_outer_folder(datasets, tmp_path):
    archive = zipped(tmp_path / "a.zip", **{"photos/a": b"1", "photos/sub/b": b"2", "__MACOSX/x": b"", "photos/": b""})
    dataset, _ = datasets.add_archive("toy", "mine", archive, tmp_path, "me")
    assert [item.path for item in datasets.files(dataset.digest)] == ["a", "sub/b"]
    same = tarred(tmp_path / "a.tgz", (tarfile.TarInfo("./a"), b"1"), (tarfile.TarInfo("./sub/b"), b"2"))
    assert datasets.add_archive("toy", "mine", same, tmp_path, "me")[0].digest == dataset.digest
    assert without_common_folder(["a/b", "c"]) == {"a/b": "a/b", "c": "c"}


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../up", "c:\\x", "a\\b", "a\nb", "", "x" * 600])
def test_paths_that_are_never_written(path):
    with pytest.raises(BadArchive):
        check_path(path)


def test_what_is_never_unpacked(datasets, tmp_path):
    link = tarfile.TarInfo("a")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard = tarfile.TarInfo("a")
    hard.type, hard.linkname = tarfile.LNKTYPE, "b"
    device = tarfile.TarInfo("a")
    device.type = tarfile.CHRTYPE
    zip_link = zipfile.ZipInfo("a")
    zip_link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(zip_link, "/etc/passwd")
    archives = [
        *(tarred(tmp_path / f"{number}.tgz", (item, b"")) for number, item in enumerate((link, hard, device))),
        tmp_path / "link.zip",
        zipped(tmp_path / "up.zip", **{"../up": b"1"}),
        tarred(tmp_path / "twice.tgz", (tarfile.TarInfo("a"), b"1"), (tarfile.TarInfo("a"), b"2")),
    ]
    (tmp_path / "text").write_text("hello")
    cut = zipped(tmp_path / "whole.zip", a=bytes(range(256)) * 100).read_bytes()
    (tmp_path / "cut.zip").write_bytes(cut[: len(cut) // 2])
    for archive in (*archives, tmp_path / "text", tmp_path / "cut.zip"):
        with pytest.raises(BadArchive):
            datasets.add_archive("toy", "mine", archive, tmp_path, "me")
    assert datasets.page() == []


def test_a_damaged_member_is_noticed(tmp_path):
    whole = bytearray(zipped(tmp_path / "a.zip", a=b"hello hello hello hello").read_bytes())
    whole[35] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(whole)
    contents = unpack(tmp_path / "a.zip", most_bytes=1000, most_files=10)
    _, stream = next(contents)
    with pytest.raises(BadArchive, match="damaged"):
        stream.read(1000)
    contents.close()


def test_bombs_are_stopped_early(tmp_path):
    archive = zipped(tmp_path / "bomb.zip", zeros=bytes(64 << 20))
    contents = unpack(archive, most_bytes=1 << 40, most_files=10)
    _, stream = next(contents)
    chunks = iter(lambda: stream.read(1 << 20), b"")
    with pytest.raises(ArchiveTooLarge):
        deque(chunks, maxlen=0)
    contents.close()
    many = zipped(tmp_path / "many.zip", **{str(number): b"" for number in range(11)})
    with pytest.raises(ArchiveTooLarge, match="10 files"):
        list(unpack(many, most_bytes=1000, most_files=10))


# -- ending


def test_removal_and_collection(datasets, tmp_path):
    kept, _ = made(datasets, tmp_path, name="kept", a=b"1")
    gone, _ = made(datasets, tmp_path, name="gone", a=b"1", b=b"2")
    with pytest.raises(DatasetBusy, match="a job"):
        datasets.remove(gone.digest, used_by=lambda _: "a job")
    datasets.remove(gone.digest, used_by=lambda _: None)
    with pytest.raises(NotFound):
        datasets.get(gone.digest)
    assert datasets.collect() == 0  # young files may belong to an upload under way
    assert datasets.collect(time.time() + 2 * 86_400) == 1
    datasets.fetch(kept.digest, tmp_path / "out")


def test_the_report_is_kept(datasets, tmp_path):
    dataset, _ = made(datasets, tmp_path, a=b"1")
    datasets.judge(dataset.digest, Report(state="valid", findings=[], counts={"images": 1}))
    assert datasets.get(dataset.digest).report["counts"] == {"images": 1}
