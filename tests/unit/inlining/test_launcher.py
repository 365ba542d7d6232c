"""The launcher: it compiles as the wrapper does, and whatever goes wrong is plain clang's."""

import os
import subprocess
from pathlib import Path

import pytest
import ziglang

from services.inlining.launcher import build_launcher
from tests.unit.inlining.making import PROGRAMS
from tests.unit.inlining.test_wrapper import ZIG, answers, build, compiled_fast, listening, plain, policies, runtime

__all__ = ["build", "policies", "runtime"]
ZIG_CC = [str(Path(ziglang.__file__).parent / "zig"), "cc"]


@pytest.fixture(scope="module")
def launchers(tmp_path_factory, policies):
    """Of ziglang's clang, and of one that waits for ever where it is advised; both with the policy `bad`."""
    folder = tmp_path_factory.mktemp("launchers")
    slow = folder / "a 'slow' clang"
    slow.write_text(
        f'#!/bin/sh\nfor a; do case $a in -mllvm) echo $$ > advised; exec sleep 60;; esac; done\n{ZIG} "$@"\n'
    )
    slow.chmod(0o755)
    for name, clang in (("launcher", ZIG.split()), ("waiting", [str(slow)])):
        assert build_launcher(str(folder / name), clang, str(policies["bad"]), ZIG_CC) == 0
    return folder


def launch(launcher, build, *arguments, resident=True):
    environment = {**os.environ, "FOURFOLD_RESIDENT": "1" if resident else "0"}
    return subprocess.run(
        [launcher, *arguments], cwd=build, capture_output=True, text=True, env=environment, check=False
    )


def compiled(launcher, build, name, resident=True):
    done = launch(launcher, build, "-Oz", "-c", f"{name}.c", "-o", f"{name}.o", resident=resident)
    assert (done.returncode, done.stderr) == (0, "")
    return (build / f"{name}.o").read_bytes()


def test_it_compiles_as_the_wrapper_does(build, policies, runtime, launchers):
    launcher = launchers / "launcher"
    alone = {name: compiled_fast(build, policies["bad"], name, resident=False) for name in PROGRAMS}
    assert compiled(launcher, build, "parser", resident=False) == alone["parser"]  # as the wrapper itself
    assert list(runtime.iterdir()) == []
    assert compiled(launcher, build, "parser") == alone["parser"]  # as the wrapper, which starts the resident
    resident = listening(runtime)
    before = answers(resident)
    assert {name: compiled(launcher, build, name) for name in PROGRAMS} == alone
    assert answers(resident) > before
    assert [path.name for path in runtime.iterdir() if not path.is_socket()] == []


def test_what_is_not_for_size_and_what_fails_is_clangs(build, policies, runtime, launchers):
    launcher = launchers / "launcher"
    compiled(launcher, build, "parser")
    listening(runtime)
    plain(build, ZIG, "-O2", "-c", "queue.c", "-o", "stock.o")
    assert launch(launcher, build, "-O2", "-c", "queue.c").returncode == 0
    assert (build / "queue.o").read_bytes() == (build / "stock.o").read_bytes()
    assert "brighten" in launch(launcher, build, "-E", "queue.c").stdout
    (build / "broken.c").write_text("int f(")
    done = launch(launcher, build, "-Oz", "-c", "broken.c")
    assert done.returncode == 1
    assert "broken.c:1:7: error: expected function body" in done.stderr
    assert done.stderr.count("fourfold:") == 1
    assert "fourfold: plain clang: the advised compile ended with 1" in done.stderr


def test_a_resident_policy_that_dies_meanwhile_leaves_it_to_plain_clang(build, policies, runtime, launchers):
    compiled(launchers / "launcher", build, "parser")
    resident = listening(runtime)
    plain(build, ZIG, "-Oz", "-c", "queue.c", "-o", "stock.o")
    launched = subprocess.Popen(
        [launchers / "waiting", "-Oz", "-c", "queue.c"], cwd=build, stderr=subprocess.PIPE, text=True
    )
    while not (build / "advised").exists() or not (build / "advised").read_text():
        assert launched.poll() is None
    resident.kill()
    assert launched.communicate(timeout=60)[1].splitlines() == [
        "fourfold: plain clang: the policy cannot be asked (it went away)"
    ]
    assert launched.returncode == 0
    assert (build / "queue.o").read_bytes() == (build / "stock.o").read_bytes()
    assert not Path(f"/proc/{(build / 'advised').read_text().strip()}").exists()


def test_a_folder_that_others_may_enter_is_not_used(build, policies, runtime, launchers):
    runtime.mkdir(mode=0o755)
    done = launch(launchers / "launcher", build, "-Oz", "-c", "queue.c")
    assert done.returncode == 0
    assert "is not a folder of this user's alone" in done.stderr
