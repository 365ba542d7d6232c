"""`fourfold clang` and the report on a build, with the ziglang package's clang and Debian's where it is installed."""

import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ziglang

from services.inlining.channel import host
from services.inlining.engine import TARGET
from services.inlining.features import FEATURES, WIDTH
from services.inlining.project import main as project
from services.inlining.project import report
from services.inlining.sizes import text_total
from services.inlining.source import SYSTEM
from services.inlining.wrapper import SIZE_LEVELS, advised, understand
from tests.unit.inlining.making import PROGRAMS, policy_bundle

ZIG = f"{Path(ziglang.__file__).parent / 'zig'} clang --target={TARGET} {' '.join(SYSTEM)}"
DEBIAN = next((found for name in ("clang-22", "clang-21", "clang-20", "clang-19") if (found := shutil.which(name))), "")
CLANGS = [
    pytest.param(ZIG, id="ziglang"),
    pytest.param(
        DEBIAN, id="debian", marks=pytest.mark.skipif(not DEBIAN, reason="no clang with the channel (19 or newer)")
    ),
]


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    return {name: policy_bundle(folder / name, inverted=name == "bad") for name in ("good", "bad")}


@pytest.fixture
def build(tmp_path):
    for name, source in PROGRAMS.items():
        (tmp_path / f"{name}.c").write_text(source)
    return tmp_path


@pytest.fixture
def runtime(tmp_path_factory, monkeypatch):
    """Where a resident policy listens; it ends when its socket is gone."""
    folder = tmp_path_factory.mktemp("run")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    yield folder / f"fourfold-{os.getuid()}"
    shutil.rmtree(folder)


def fourfold_clang(build, policy, clang, *arguments, options=(), resident=False):
    command = [sys.executable, "-P", "-m", "fourfold", "clang", "--clang", clang, "--policy", str(policy), *options]
    environment = {**os.environ, "PYTHONWARNINGS": "error", "FOURFOLD_RESIDENT": "1" if resident else "0"}
    return subprocess.run(
        [*command, "--", *arguments], cwd=build, capture_output=True, text=True, env=environment, check=False
    )


def plain(build, clang, *arguments):
    subprocess.run([*clang.split(), *arguments], cwd=build, check=True, capture_output=True)


@pytest.mark.parametrize("clang", CLANGS)
@pytest.mark.parametrize("policy", ["good", "bad"])
def test_the_object_is_never_larger_and_side_files_are_stocks(build, policies, clang, policy):
    for name in PROGRAMS:
        arguments = ["-Oz", "-c", f"{name}.c", "-o", f"{name}.o", "-MD", "-MF", f"{name}.d"]
        plain(build, clang, *arguments)
        stock, rules = text_total((build / f"{name}.o").read_bytes()), (build / f"{name}.d").read_text()
        (build / f"{name}.o").unlink()
        done = fourfold_clang(build, policies[policy], clang, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert text_total((build / f"{name}.o").read_bytes()) <= stock
        assert (build / f"{name}.d").read_text() == rules
    assert sorted(path.suffix for path in build.iterdir()) == [".c"] * 3 + [".d"] * 3 + [".o"] * 3


@pytest.mark.parametrize("clang", CLANGS)
def test_fast_compiles_once_as_the_policy_says(build, policies, clang):
    plain(build, clang, "-Oz", "-c", "parser.c", "-o", "stock.o")
    done = fourfold_clang(build, policies["bad"], clang, "-Oz", "-c", "parser.c", options=["--fast"])
    assert (done.returncode, done.stderr) == (0, "")
    assert (build / "parser.o").read_bytes() != (build / "stock.o").read_bytes()


@pytest.mark.parametrize("clang", CLANGS)
def test_the_policy_sees_the_features_as_they_are(build, policies, clang):
    seen = []

    def answer(channel, ended):
        inbound, outbound = channel.descriptors
        seen.append(host(inbound, outbound, lambda _: 0, ended, 60)[0])

    (build / "run").mkdir()
    arguments = ["-Oz", "-c", str(build / "parser.c"), "-o", str(build / "parser.o")]
    assert advised(clang.split(), arguments, answer, str(build / "run"), quiet=True) == 0
    assert seen[0].shape[1] == WIDTH
    assert seen[0][:, FEATURES.index("callee_basic_block_count")].max() > 1  # not stock's decision


def compiled_fast(build, policy, name, resident=True):
    arguments = ["-Oz", "-c", f"{name}.c", "-o", f"{name}.o"]
    done = fourfold_clang(build, policy, ZIG, *arguments, options=["--fast"], resident=resident)
    assert (done.returncode, done.stderr) == (0, "")
    return (build / f"{name}.o").read_bytes()


def listening(runtime):
    """The resident's process, once it listens."""
    for _ in range(300):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            for place in runtime.iterdir():
                if "." not in place.name and place.is_socket():
                    with contextlib.suppress(ConnectionRefusedError):  # of a dead one
                        connection.connect(str(place))
                        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                        return psutil.Process(struct.unpack("3i", peer)[0])
        time.sleep(0.1)
    raise AssertionError("no resident policy listens")


def answers(resident):
    """Grows with every decision: what it has written."""
    return resident.io_counters().write_count


def test_the_resident_policy_decides_as_the_wrapper_does(build, policies, runtime):
    alone = {name: compiled_fast(build, policies["bad"], name, resident=False) for name in PROGRAMS}
    assert not any(path.is_socket() for path in runtime.iterdir())
    assert compiled_fast(build, policies["bad"], "parser") == alone["parser"]  # starts it
    resident = listening(runtime)
    before = answers(resident)
    assert {name: compiled_fast(build, policies["bad"], name) for name in PROGRAMS} == alone
    assert listening(runtime) == resident
    assert answers(resident) > before
    assert [path.name for path in runtime.iterdir() if not path.is_socket()] == []  # the wrappers leave nothing
    # Nothing of a build's is held: no pipe, no terminal, no folder.
    assert resident.cwd() == "/"
    assert {os.readlink(f"/proc/{resident.pid}/fd/{number}") for number in range(3)} == {"/dev/null"}
    place = next(path for path in runtime.iterdir() if path.is_socket())
    place.unlink()
    resident.wait(20)


def test_a_resident_policy_that_dies_or_is_old_stops_no_build(build, policies, runtime):
    stock = compiled_fast(build, policies["good"], "parser")
    listening(runtime).kill()  # its socket stays
    assert compiled_fast(build, policies["good"], "parser") == stock
    first = listening(runtime)
    os.utime(next(policies["good"].iterdir()))  # another policy now: the old one is not asked
    assert compiled_fast(build, policies["good"], "parser") == stock
    assert first.is_running()


def test_a_folder_that_others_may_enter_is_not_used(build, policies, runtime):
    runtime.mkdir(mode=0o755)
    done = fourfold_clang(build, policies["good"], ZIG, "-Oz", "-c", "queue.c", resident=True)
    assert done.returncode == 0
    assert "is not a folder of this user's alone" in done.stderr
    assert (build / "queue.o").exists()


def test_trouble_is_plain_clang_and_one_line(build, tmp_path_factory):
    nowhere = tmp_path_factory.mktemp("empty")
    plain(build, ZIG, "-Oz", "-c", "queue.c", "-o", "stock.o")
    for options in ((), ("--fast",)):
        done = fourfold_clang(build, nowhere, ZIG, "-Oz", "-c", "queue.c", options=options)
        assert done.returncode == 0
        assert len(done.stderr.splitlines()) == 1
        assert "plain clang for queue.c" in done.stderr
        assert (build / "queue.o").read_bytes() == (build / "stock.o").read_bytes()
        (build / "queue.o").unlink()


def test_a_compiler_without_the_channel_is_left_alone(build, policies, tmp_path_factory):
    old = tmp_path_factory.mktemp("old") / "clang"
    old.write_text(
        f'#!/bin/sh\nfor a; do case $a in -mllvm) echo "error: unknown" >&2; exit 1;; esac; done\n{ZIG} "$@"\n'
    )
    old.chmod(0o755)
    for options in ((), ("--fast",)):
        done = fourfold_clang(build, policies["good"], str(old), "-Oz", "-c", "queue.c", options=options)
        assert done.returncode == 0
        assert "plain clang for queue.c: the advised compile ended with 1" in done.stderr
        assert text_total((build / "queue.o").read_bytes()) > 0


def test_an_error_in_the_source_is_told_once(build, policies):
    (build / "broken.c").write_text("int f(")
    done = fourfold_clang(build, policies["good"], ZIG, "-Oz", "-c", "broken.c")
    assert done.returncode == 1
    assert done.stderr.count("broken.c:1:7: error: expected function body") == 1
    assert "fourfold:" not in done.stderr
    assert not (build / "broken.o").exists()


def test_what_is_no_compile_for_size_is_clangs(build, policies):
    done = fourfold_clang(build, policies["good"], ZIG, "-E", "queue.c")
    assert "brighten" in done.stdout
    done = fourfold_clang(build, policies["good"], ZIG, "-O2", "-c", "queue.c", "-o", "queue.o")
    plain(build, ZIG, "-O2", "-c", "queue.c", "-o", "stock.o")
    assert (build / "queue.o").read_bytes() == (build / "stock.o").read_bytes()
    for arguments in (["--version"], ["-Oz", "-c", "queue.c"]):
        done = fourfold_clang(build, policies["good"], "/nowhere/clang", *arguments)
        assert done.returncode == 127
        assert done.stderr.splitlines()[-1].startswith("fourfold: [Errno 2]")


def test_what_the_wrapper_loads_for_every_file_is_little():
    loaded = "import sys, services.inlining.wrapper, services.inlining.sizes; print(*sys.modules)"
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-S", "-c", loaded], capture_output=True, text=True, check=True, cwd=root, env={}
    )
    large = {"collections", "dataclasses", "enum", "importlib", "pathlib", "re", "signal", "socket", "subprocess"}
    assert not ({*large, "threading", "typing", "numpy"} & set(done.stdout.split()))


@pytest.mark.parametrize("arguments", [["-c", "-Oz", "a.c"], ["-O2"]], ids=["advised", "left alone"])
def test_clang_gets_the_signals_that_python_ignores_and_its_end_by_one_is_told(build, policies, runtime, arguments):
    clang = build / "clang"
    clang.write_text("#!/bin/sh\ngrep SigIgn /proc/$$/status\nkill -ABRT $$\n")
    clang.chmod(0o755)
    done = fourfold_clang(build, policies["good"], str(clang), *arguments)
    ignored = int(done.stdout.split()[1], 16)
    assert ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1) == 0
    assert done.returncode in (128 + signal.SIGABRT, -signal.SIGABRT)  # of a child, or as what became of the wrapper


def test_a_wrapper_that_is_ended_ends_its_compilers_and_leaves_nothing(build, policies, runtime):
    clang = build / "clang"
    clang.write_text("#!/bin/sh\necho $$\nexec sleep 60\n")
    clang.chmod(0o755)
    command = [
        sys.executable,
        "-P",
        "-m",
        "fourfold",
        "clang",
        "--clang",
        str(clang),
        "--policy",
        str(policies["good"]),
    ]
    environment = {**os.environ, "FOURFOLD_RESIDENT": "0"}
    wrapper = subprocess.Popen([*command, "--fast", "--", "-Oz", "-c", "a.c"], stdout=subprocess.PIPE, env=environment)
    assert wrapper.stdout is not None
    compiler = psutil.Process(int(wrapper.stdout.readline()))
    time.sleep(1)  # the wrapper, too, has gone on
    wrapper.terminate()
    assert wrapper.wait(20) == 143
    wrapper.stdout.close()
    assert not compiler.is_running()
    assert list(runtime.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["-Oz", "-c", "a.c"], "a.o"),
        (["-O2", "-Os", "-c", "d/a.c", "-ob.o"], "b.o"),
        (["-c", "a.cc", "-Oz", "-I", "x.c", "-o", "b.o", "-MF", "d.c"], "b.o"),
        (["-Oz", "a.c"], None),
        (["-Oz", "-c", "a.c", "b.c"], None),
        (["-Oz", "-O0", "-c", "a.c"], None),
        (["-Oz", "-c", "a.c", "-S"], None),
        (["-Oz", "-c", "a.c", "-flto"], None),
        (["-Oz", "-c", "@file"], None),
        (["-Oz", "-c", "-x", "c", "-"], None),
        ([], None),
    ],
)
def test_which_compiles_are_understood(arguments, output):
    found = understand(arguments)
    assert (found.output if found else None) == output
    if found is not None:
        beside = found.beside("new.o")
        assert beside[-2:] == ["-o", "new.o"]
        assert output not in beside
        assert SIZE_LEVELS & set(beside)


def test_the_report_on_a_build(build, policies, capsys):
    entries = [
        {"directory": str(build), "file": f"{name}.c", "arguments": ["clang", "-Oz", "-c", f"{name}.c"]}
        for name in PROGRAMS
    ]
    entries += [
        {"directory": str(build), "file": "fast.c", "command": "clang -O2 -c fast.c"},
        {"directory": str(build), "file": "gone.c", "command": "clang -Oz -c gone.c -o gone.o"},
        {"directory": str(build), "file": "none.c"},
    ]
    listing = build / "compile_commands.json"
    listing.write_text(json.dumps(entries))
    before = {path.name for path in build.iterdir()}
    assert project([str(listing), "--clang", ZIG, "--policy", str(policies["bad"]), "--jobs", "2"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("### Code size with inlining advice\n")
    assert "none larger" in text
    assert "3 files were left as they are" in text
    assert "`fast.c`: not a compile of one source at -Oz or -Os" in text
    assert {path.name for path in build.iterdir()} == before
    (build / "bad.json").write_text("{")
    assert project([str(build / "bad.json")]) == 1
    assert "bad.json" in capsys.readouterr().err


def test_the_report_names_what_changed():
    from services.inlining.project import Unit

    text = report([Unit("a|b.c", 100, 90, (("f", 60, 50), ("g", 0, 12), ("h", 12, 0))), Unit("c.c", 50, 50)])
    assert "**-6.67 %**: 150 → 140 bytes of machine code in 2 files, 1 of them smaller" in text
    assert "| `a\\|b.c` | 100 | 90 | -10.00 % |" in text
    assert "| `g` | `a\\|b.c` | new | 12 | +12 |" in text
    assert "| `h` | `a\\|b.c` | 12 | gone | -12 |" in text
    assert "c.c" not in text
