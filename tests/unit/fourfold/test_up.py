"""What stops `fourfold up` before it begins: one clear line each, and nothing started."""

import shutil
import socket

from fourfold import up
from shared.testing import free_port


def refused(capsys, home, port):
    assert up.run(home, port) == 1
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_a_full_disk(capsys, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5 << 20))
    assert "has 5 MB left; at least 200 are needed" in refused(capsys, tmp_path, free_port())


def test_a_taken_port(capsys, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} is taken; choose another" in refused(capsys, tmp_path, port)


def test_a_home_that_is_no_folder(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be used (Not a directory); set FOURFOLD_HOME" in refused(
        capsys, tmp_path / "file" / "home", free_port()
    )


def test_a_second_start_for_the_same_home(capsys, tmp_path):
    lock = up._prepare(tmp_path, free_port())
    assert "it is already running for" in refused(capsys, tmp_path, free_port())
    lock.close()


def test_a_child_that_ends_at_once_is_told_with_the_end_of_its_log(capsys, monkeypatch, tmp_path):
    def children(home, port, processes):
        command = ["sh", "-c", "echo starting; echo FOURFOLD_DEVICE is wrong; exit 3"]
        return [up.Child("iqa", command, {}, tmp_path / "iqa.log", lambda: False)]

    monkeypatch.setattr(up, "_children", children)
    line = refused(capsys, tmp_path, free_port())
    assert line.startswith("fourfold: iqa ended at once: FOURFOLD_DEVICE is wrong (whole log: ")
