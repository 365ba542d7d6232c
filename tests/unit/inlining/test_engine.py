"""One compile in the sandbox: fidelity to stock, replay, sizes, and what hostile input does."""

import os
import random
import re
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ziglang

from services.inlining.advice import advise
from services.inlining.aims import SIZE, SPEED
from services.inlining.engine import UnsafeAssembly, compile_module, inspect_module
from services.inlining.features import STOCK, WIDTH
from services.inlining.replay import as_mapping, read_replay, replay_lines
from services.inlining.sandbox import SANDBOX, CompilerCrashed, CompilerRefused, LimitExceeded, Limits
from services.inlining.sizes import text_sizes
from services.inlining.source import to_bitcode
from shared.problems import InputError
from tests.unit.inlining.making import PARSER, PROGRAMS, QUEUE, SCALED

ZIG = Path(ziglang.__file__).parent / "zig"


def server():
    """The fork server's process, started if need be."""
    compile_module(to_bitcode(QUEUE))
    assert SANDBOX._server is not None
    return SANDBOX._server


def stock(features_F):
    return int(features_F[STOCK])


@pytest.fixture(scope="module", params=sorted(PROGRAMS))
def bitcode(request):
    return to_bitcode(PROGRAMS[request.param], name=f"{request.param}.c")


def test_answering_with_the_default_is_stock_to_the_byte(bitcode):
    plain = compile_module(bitcode)
    answered = compile_module(bitcode, decide=stock)
    assert answered.object == plain.object
    assert len(answered.decisions_S) > 0
    assert answered.features_SF.shape == (len(answered.decisions_S), WIDTH + 1)
    assert (answered.decisions_S == answered.stock_S).all()


def test_what_is_compiled_is_what_clang_compiles(bitcode, tmp_path):
    (tmp_path / "a.bc").write_bytes(bitcode)
    command = [ZIG, "clang", "--target=x86_64-unknown-linux-gnu", "-Oz", "-w", "-x", "ir", "a.bc", "-c", "-o", "a.o"]
    subprocess.run(command, cwd=tmp_path, check=True)
    image = (tmp_path / "a.o").read_bytes()
    assert text_sizes(image) == (compile_module(bitcode).text, compile_module(bitcode).functions)
    listed = subprocess.run(["size", "-A", tmp_path / "a.o"], capture_output=True, text=True, check=False).stdout
    if listed:
        assert [int(size) for size in re.findall(r"^\.text +(\d+)", listed, re.MULTILINE)] == [text_sizes(image)[0]]


@pytest.mark.parametrize("always", [0, 1])
def test_a_replay_file_repeats_any_decisions(bitcode, always):
    module = inspect_module(bitcode)
    told = compile_module(module.code, decide=lambda _: always, places=module.places)
    assert set(told.decisions_S.tolist()) == {always}
    assert [decision.row for decision in told.decisions] == list(range(len(told.decisions_S)))
    lines = replay_lines(as_mapping(told.decisions))
    assert read_replay(lines) == as_mapping(told.decisions)
    assert compile_module(module.code, replay=lines).text == told.text


def test_decisions_have_the_names_that_the_source_has():
    module = inspect_module(to_bitcode(PARSER, name="parser.c"))
    found = compile_module(module.code, decide=lambda _: 1, places=module.places)
    sites = {decision.site for decision in found.decisions}
    assert {decision.file for decision in found.decisions} == {"parser.c"}
    assert {site.place for site in sites if site.callee == "sum"} == {"factor:4:18", "evaluate:0:49"}
    assert len([site for site in sites if site.callee == "skip" and site.place.count(" @ ") == 2]) == 4
    # Of what it inlines under a replay file clang itself tells the whole place; ours, of the same calls, are those.
    replayed = compile_module(module.code, replay=replay_lines(as_mapping(found.decisions)), places=module.places)
    assert {decision.site for decision in replayed.decisions if decision.inlined} == sites


def test_places_are_given_to_a_module_that_has_none():
    bare = re.sub(rb"!dbg !\d+ |, !dbg !\d+", b"", _text(to_bitcode(QUEUE)))
    bare = re.sub(rb"^!llvm.dbg.cu = .*$", b"", bare, flags=re.MULTILINE)
    module = inspect_module(bare)
    assert not module.located
    assert compile_module(module.code).text == compile_module(bare).text
    told = compile_module(module.code, decide=lambda _: 0, places=module.places)
    replayed = compile_module(module.code, replay=replay_lines(as_mapping(told.decisions)))
    assert replayed.text == told.text != compile_module(bare).text


def _text(bitcode):
    return SANDBOX.run({"task": "inspect"}, bitcode, limits=Limits()).data.partition(b"\n")[2]


def test_a_fixed_threshold_below_zero_compiles():
    # llvmlite's LLVM aborts there, which is why it is not what compiles.
    assert compile_module(to_bitcode(QUEUE), options=["-inline-threshold=-10"]).text > 0


def test_advice_without_a_policy_has_the_fixed_candidates():
    advice = advise(inspect_module(to_bitcode(QUEUE)), None)
    assert [name for name, _, _ in advice.candidates] == ["stock", "inline-threshold=-10", "inline-threshold=25"]
    assert advice.advised.text <= advice.stock.text


def test_advice_for_speed_is_the_least_prediction():
    module = inspect_module(to_bitcode(SCALED, level="3"))
    advice = advise(module, None, aim=SPEED)
    costs = {name: cost for name, _, cost in advice.candidates}
    assert list(costs) == ["stock", *(f"inline-threshold={value}" for value in SPEED.thresholds)]
    assert advice.winner != "stock"
    assert advice.cost <= min(costs.values()) + 1e-9 < 0
    replayed = compile_module(module.code, replay=advice.replay, level="3", profiled=True)
    assert SPEED.beside(advice.stock)(replayed) == advice.cost


def test_a_decision_that_raises_ends_the_compile():
    def broken(_):
        raise RuntimeError("the policy is broken")

    with pytest.raises(RuntimeError, match="policy is broken"):
        compile_module(to_bitcode(QUEUE), decide=broken)
    assert compile_module(to_bitcode(QUEUE)).text > 0


def test_compiles_at_once_do_not_meet():
    bitcodes = [to_bitcode(source) for source in PROGRAMS.values()] * 3
    alone = [compile_module(bitcode, decide=stock).text for bitcode in bitcodes]
    together = [0] * len(bitcodes)

    def work(index):
        together[index] = compile_module(bitcodes[index], decide=stock).text

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(bitcodes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_a_killed_fork_server_is_replaced():
    process = server()
    process.kill()
    process.wait()
    assert compile_module(to_bitcode(QUEUE)).text > 0


# -- limits and hostile input


def test_limits_on_time_memory_and_files():
    many = "int f0(int x) { return x; }\n" + "\n".join(
        f"int f{n}(int x) {{ return f{n - 1}(x * {n}) + f{n // 2}(x + {n}); }}" for n in range(1, 4000)
    )
    bitcode = to_bitcode(many)
    with pytest.raises(LimitExceeded, match="time"):
        compile_module(bitcode, limits=Limits(cpu_seconds=1, seconds=1.0))
    with pytest.raises((LimitExceeded, CompilerCrashed, CompilerRefused)):
        compile_module(bitcode, limits=Limits(memory_bytes=200 << 20))
    with pytest.raises((LimitExceeded, CompilerCrashed, CompilerRefused)):
        compile_module(bitcode, limits=Limits(file_bytes=4096))
    assert compile_module(to_bitcode(QUEUE)).text > 0


def test_assembly_with_directives_is_refused():
    with pytest.raises(UnsafeAssembly):
        inspect_module(b'target triple = "x86_64-unknown-linux-gnu"\nmodule asm ".globl x"')


def test_a_child_sees_neither_files_nor_the_network(tmp_path):
    """A child that was taken over, played by an order for clang to read what is not in its folder."""
    secret = tmp_path / "secret.c"
    secret.write_text("int secret;")
    folder = tmp_path / "child"
    folder.mkdir()
    order = {"task": "clang", "arguments": ["-c", str(secret), "-o", "object"]}
    with pytest.raises(CompilerRefused) as refused:
        SANDBOX.run(order, b"", limits=Limits(), folder=folder)
    assert "secret" in refused.value.detail
    assert not (folder / "object").exists()
    order = {"task": "clang", "arguments": ["-c", "-x", "c", "/dev/null", "-o", str(tmp_path / "outside.o")]}
    with pytest.raises(CompilerRefused):
        SANDBOX.run(order, b"", limits=Limits(), folder=folder)
    assert not (tmp_path / "outside.o").exists()
    interfaces = Path(f"/proc/{server().pid}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] in (["lo"], []) or os.geteuid() != 0


def mutated(bitcode, random):
    """Bits turned, bytes replaced, a part cut out or doubled, the end cut off."""
    data = bytearray(bitcode)
    for _ in range(random.randint(1, 8)):
        at = random.randrange(4, len(data))
        match random.randrange(5):
            case 0:
                data[at] ^= 1 << random.randrange(8)
            case 1:
                data[at] = random.randrange(256)
            case 2:
                del data[at : at + random.randint(1, 64)]
            case 3:
                data[at:at] = data[at : at + random.randint(1, 64)]
            case _:
                del data[max(8, len(data) - random.randint(1, 200)) :]
    return bytes(data)


def hostile(count, seed=0):
    """What `count` mutated files lead to: the kinds of problem, or advice; and the memory that this process gained."""
    random_ = random.Random(seed)
    bitcodes = [to_bitcode(source) for source in PROGRAMS.values()]
    outcomes: dict[str, int] = {}
    process = psutil.Process()
    before = 0
    for number in range(count):
        if number == count // 5:
            before = process.memory_info().rss
        try:
            module = inspect_module(mutated(random_.choice(bitcodes), random_), limits=Limits(seconds=20.0))
            advise(module, None, aim=replace(SIZE, thresholds=(-10,)), limits=Limits(seconds=20.0))
            outcome = "advised"
        except InputError as problem:  # a 4xx; anything else fails the test
            outcome = type(problem).__name__
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes, process.memory_info().rss - before


def test_mutated_bitcode_harms_nobody():
    outcomes, gained = hostile(60)
    assert sum(outcomes.values()) == 60
    assert outcomes.keys() - {"advised"}, outcomes
    assert gained < 16 << 20
    assert compile_module(to_bitcode(QUEUE)).text > 0
    assert not [child for child in psutil.Process(server().pid).children() if child.status() != "zombie"]


if __name__ == "__main__":
    # python -m tests.unit.inlining.test_engine: the long form
    print(*hostile(1000), sep="\nbytes gained: ")
