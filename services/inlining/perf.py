"""IR2Perf (MLGOPerf): predicts how inlining changes the instructions that a program executes.

    python -m services.inlining.perf --work DIR --out FILE [--fit services/inlining/ir2perf.json]

Programs with inputs are built at -O3 under several sets of decisions and run under callgrind. The **instruction
counts** repeat exactly; no time is measured. The model (speed.py) is fitted to the logarithms of their ratios to -O3's
own, and judged on programs that it has not seen: each is left out once. Only programs of the table below are ever run.

Shapes: V variants, X inputs of the model, F features.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.inlining.aims import SPEED
from services.inlining.corpus import Package, clang, configure, fetch, unpack
from services.inlining.engine import Compiled, compile_module
from services.inlining.features import FEATURES, STOCK
from services.inlining.speed import Facts, IR2Perf, inputs
from shared.bundles import write_atomically

log = logging.getLogger(__name__)
Floats = NDArray[np.float64]
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)
RESAMPLES = 2_000
SERVED = "inline-threshold="
COUNTED = re.compile(r"Collected : (\d+)")
CONFIGURED = "-DHAVE_CONFIG_H"
QRENCODE = (
    "-DSTATIC_IN_RELEASE=static",
    '-DVERSION="4"',
    "-DMAJOR_VERSION=4",
    "-DMINOR_VERSION=1",
    "-DMICRO_VERSION=1",
)
LUA = """
local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end
local t = {}
for i = 1, 3000 do t[i] = (i * 7919) % 3001 end
table.sort(t)
local words = {}
for word in ("the quick brown fox jumps over the lazy dog "):rep(60):gmatch("%a+") do
  words[word] = (words[word] or 0) + 1
end
print(fib(18), t[1], words.the, ("x"):rep(100):gsub("x", "yz"))
"""
GRAMMAR = """%token NUMBER
%left '+' '-'
%left '*' '/'
%%
line: line expression ';' | ;
expression: expression '+' expression | expression '-' expression | expression '*' expression
  | expression '/' expression | '(' expression ')' | NUMBER ;
%%
"""
JAVASCRIPT = """
function fib(n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
var words = {}, list = "the quick brown fox jumps over the lazy dog".split(" "), numbers = [];
for (var i = 0; i < 3000; i++) { var w = list[i % 9]; words[w] = (words[w] || 0) + 1; numbers.push((i * 7919) % 3001); }
numbers.sort(function (a, b) { return a - b; });
print(fib(15), words.the, numbers[0], /(\\w+) (fox)/.exec("the quick brown fox")[1], JSON.stringify(words).length);
"""


@dataclass(frozen=True)
class Program:
    """A program that is run: its sources below the package's root, what it is linked with and given."""

    package: str
    sources: tuple[str, ...]
    arguments: tuple[str, ...]
    flags: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


PROGRAMS: dict[str, Program] = {
    "lua": Program("lua5.4", ("src/*.c",), ("input.lua",), without=("luac.c",)),
    "mujs": Program("mujs", ("one.c", "main.c"), ("input.js",)),
    "bzip2": Program(
        "bzip2",
        ("[bc]*.c", "huffman.c", "randtable.c", "decompress.c"),
        ("-c", "input.txt"),
        ("-D_FILE_OFFSET_BITS=64",),
        ("bzip2recover.c",),
    ),
    "minigzip": Program("zlib", ("*.c", "test/minigzip.c"), ("-c", "input.txt"), ("-DHAVE_UNISTD_H",)),
    "cjson": Program("cjson", ("cJSON.c", "test.c"), ()),
    "lzf": Program("liblzf", ("lzf.c", "lzf_c.c", "lzf_d.c"), ("-c", "-f", "input.txt")),
    "lz4": Program("lz4", ("lib/*.c", "programs/*.c"), ("-9", "-c", "-f", "input.txt"), ("-Ilib", "-Iprograms")),
    "toast": Program("libgsm", ("src/*.c",), ("-u", "-c", "input.txt"), ("-Iinc", "-DNeedFunctionPrototypes=1")),
    "zopfli": Program("zopfli", ("src/zopfli/*.c",), ("--i1", "-c", "small.txt")),
    "brotli": Program(
        "brotli",
        ("c/common/*.c", "c/dec/*.c", "c/enc/*.c", "c/tools/brotli.c"),
        ("-q", "6", "-c", "input.txt"),
        ("-Ic/include",),
    ),
    "xxhsum": Program(
        "xxhash", ("xxhash.c", "cli/*.c", "xxhsum.c"), ("-H1", "input.txt"), ("-I.", "-Icli"), ("xxh_x86dispatch.c",)
    ),
    "clzip": Program("clzip", ("*.c",), ("-c", "input.txt"), ('-DPROGVERSION="1"',)),
    "md2html": Program(
        "md4c",
        ("src/*.c", "md2html/*.c"),
        ("input.txt",),
        ("-Isrc", *(f"-DMD_VERSION_{part}=0" for part in ("MAJOR", "MINOR", "RELEASE"))),
    ),
    "compress": Program("ncompress", ("compress*.c",), ("-c", "-f", "input.txt")),
    "minilzo": Program("lzo2", ("minilzo/*.c",), (), ("-Iminilzo", "-Iinclude/lzo", "-Iinclude")),
    "cliquer": Program("cliquer", ("cl.c", "cliquer.c", "graph.c", "reorder.c"), ("-q", "input.dimacs")),
    "qrencode": Program("qrencode", ("*.c",), ("-t", "ASCII", "-o", "-", "fourfold " * 8), QRENCODE),
    "byacc": Program("byacc", ("*.c",), ("-o", "-", "input.y"), (CONFIGURED,)),
    "mxml": Program("mxml", ("mxml-*.c", "testmxml.c"), ("input.xml",), (CONFIGURED,)),
    "gifecho": Program(
        "giflib",
        (
            *("dgif_lib.c", "egif_lib.c", "gifalloc.c", "gif_err.c", "gif_font.c", "gif_hash.c", "quantize.c"),
            *("openbsd-reallocarray.c", "gifecho.c", "getarg.c", "qprintf.c"),
        ),
        ("-t", "fourfold"),
    ),
}


Variant = dict[str, Any]  # what compile_module is told


@dataclass(frozen=True)
class Sample:
    """One variant of a program: what it was built from, and its executed instructions over -O3's."""

    program: str
    variant: str
    inputs_X: Floats
    ratio: float
    same_output: bool
    growth: float = 1.0  # machine code over stock's


def spearman(first: Floats, second: Floats) -> float:
    """Rank correlation, ties by their mean rank; 0 where one of them is constant."""

    def ranks(values: Floats) -> Floats:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[inverse]

    one, other = ranks(first), ranks(second)
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def held_out(samples: Sequence[Sample]) -> tuple[dict[str, float], Floats, float]:
    """(Spearman within each program, predictions (V,), Spearman of all): each by a model of the other programs.

    The penalty is chosen among the others too, each left out once.
    """
    inputs_VX = np.stack([sample.inputs_X for sample in samples])
    logs_V = np.log([sample.ratio for sample in samples])
    names_V = np.array([sample.program for sample in samples])
    found_V = np.zeros(len(samples))
    each: dict[str, float] = {}
    for program in sorted(set(names_V)):
        out_V = names_V == program
        penalty = _penalty(inputs_VX[~out_V], logs_V[~out_V], names_V[~out_V])
        found_V[out_V] = IR2Perf.fit(inputs_VX[~out_V], logs_V[~out_V], penalty).predict(inputs_VX[out_V])
        each[program] = spearman(found_V[out_V], logs_V[out_V])
    return each, found_V, spearman(found_V, logs_V)


def _penalty(inputs_VX: Floats, logs_V: Floats, names_V: NDArray[np.str_]) -> float:
    def error(penalty: float) -> float:
        total = 0.0
        for program in set(names_V):
            out_V = names_V == program
            model = IR2Perf.fit(inputs_VX[~out_V], logs_V[~out_V], penalty)
            total += float(((model.predict(inputs_VX[out_V]) - logs_V[out_V]) ** 2).sum())
        return total

    return min(PENALTIES, key=error) if len(set(names_V)) > 1 else PENALTIES[-1]


def variants() -> dict[str, Variant]:
    """Stock; other thresholds by the cost estimate; stock, and what is cheap besides; stock with decisions turned at
    random; the fixed thresholds that are served."""
    cost = FEATURES.index("cost_estimate")
    found: dict[str, Variant] = {"stock": {"decide": lambda features_F: int(features_F[STOCK])}}
    found["never"] = {"decide": lambda features_F: 0}
    for bound in (0, 80, 450, 1000):
        found[f"cost<{bound}"] = {"decide": lambda features_F, bound=bound: int(features_F[cost] < bound)}
    for bound in (450, 1000, 3000):
        found[f"stock|cost<{bound}"] = {
            "decide": lambda features_F, bound=bound: int(features_F[STOCK] or features_F[cost] < bound)
        }
    for number, share in enumerate((0.1, 0.25, 0.5)):
        random = np.random.default_rng(number)
        found[f"turned-{number}"] = {
            "decide": lambda features_F, random=random, share=share: (
                int(features_F[STOCK]) ^ int(features_F[cost] < 450 and random.random() < share)
            )
        }
    for threshold in SPEED.thresholds:
        found[f"{SERVED}{threshold}"] = {"options": [f"-inline-threshold={threshold}"]}
    return found


def prepare(name: str, program: Program, work: Path) -> list[bytes]:
    """Bitcode of the program's sources, at -O3 before any pass; its input lies in `work/<name>`."""
    place = work / name
    package = Package("debian", program.package, "", "")
    if not (place / "modules").is_dir():
        shutil.rmtree(place, ignore_errors=True)
        (work / "apt").mkdir(parents=True, exist_ok=True)
        root = unpack(fetch(package, place / "archive", work / "apt"), place / "source")
        configure(root)
        found = [path for pattern in program.sources for path in sorted(root.glob(pattern))]
        includes = [root, *(root / flag.removeprefix("-I") for flag in program.flags if flag.startswith("-I"))]
        flags = ["-O3", *(flag for flag in program.flags if not flag.startswith("-I"))]
        draft = place / "draft"
        draft.mkdir()
        for source in (path for path in found if path.name not in program.without):
            command = clang(source, draft / f"{source.stem}.bc", includes=[source.parent, *includes], flags=flags)
            subprocess.run(command, check=True, capture_output=True)
        draft.rename(place / "modules")
    return [path.read_bytes() for path in sorted((place / "modules").glob("*.bc"))]


def write_inputs(place: Path) -> None:
    """The programs' inputs, the same in every run: some of them eat theirs."""
    random = np.random.default_rng(0)
    words = ["".join(map(chr, random.integers(97, 123, size))) for size in random.integers(2, 9, 300)]
    text = " ".join(words[index] for index in np.minimum(random.zipf(1.3, 12_000), 300) - 1)
    edges = [(int(a), int(b)) for a in range(1, 61) for b in range(1, a) if random.random() < 0.6]
    inputs = {
        "input.txt": text,
        "small.txt": text[:1_000],
        "input.lua": LUA,
        "input.js": JAVASCRIPT,
        "input.y": GRAMMAR,
        "input.xml": "<?xml version='1.0'?>\n<d>" + "".join(f"<w>{word} &amp; {word}</w>" for word in words) + "</d>",
        "input.dimacs": f"p edge 60 {len(edges)}\n" + "".join(f"e {a} {b}\n" for a, b in edges),
    }
    for name, content in inputs.items():
        (place / name).write_text(content)


def measure(
    program: Program, modules: Sequence[bytes], variant: Variant, place: Path
) -> tuple[list[Compiled], int, bytes]:
    """Build under the decisions and run: (the compiles, executed instructions, what it printed)."""
    compiled = [compile_module(module, level=SPEED.level, profiled=True, **variant) for module in modules]
    objects: list[str] = []
    for number, item in enumerate(compiled):
        path = place / f"part{number}.o"
        path.write_bytes(item.object)
        objects.append(str(path))
    linker = ["cc"] if shutil.which("cc") else [sys.executable, "-m", "ziglang", "cc"]
    subprocess.run(
        [*linker, *objects, "-lm", "-lpthread", "-s", "-o", str(place / "program")], check=True, capture_output=True
    )
    write_inputs(place)
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", str(place / "program")]
    done = subprocess.run([*command, *program.arguments], cwd=place, capture_output=True, check=True, timeout=600)
    counted = COUNTED.search(done.stderr.decode(errors="replace"))
    if counted is None:
        raise OSError("valgrind told no count")
    return compiled, int(counted[1]), done.stdout


def collect(work: Path, out: Path, only: Sequence[str] = ()) -> list[Sample]:
    """Samples of every program that can be built, kept in `out` as they come."""
    known = {(row["program"], row["variant"]): row for row in json.loads(out.read_text())} if out.is_file() else {}
    for name, program in PROGRAMS.items():
        missing = {variant: how for variant, how in variants().items() if (name, variant) not in known}
        if (only and name not in only) or not missing:
            continue
        try:
            modules = prepare(name, program, work)
        except (OSError, subprocess.CalledProcessError) as error:
            words = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else ""
            log.info("%s cannot be built: %s", name, (words or str(error))[-300:])
            continue
        facts = Facts.of([compile_module(module, level=SPEED.level, profiled=True) for module in modules])
        for variant, how in missing.items():
            compiled, instructions, printed = measure(program, modules, how, work / name)
            row = {"program": name, "variant": variant, "instructions": instructions, "printed": printed.hex()[:2000]}
            row |= {"text": sum(one.text for one in compiled), "inputs": inputs(facts, Facts.of(compiled)).tolist()}
            known[name, variant] = row
            write_atomically(out, json.dumps(list(known.values())).encode())
            log.info("%s %s: %d instructions", name, variant, instructions)
    return samples(list(known.values()))


def samples(rows: Sequence[dict[str, object]]) -> list[Sample]:
    """Ratios to each program's own stock build."""
    stock = {str(row["program"]): row for row in rows if row["variant"] == "stock"}
    return [
        Sample(
            str(row["program"]),
            str(row["variant"]),
            np.array(row["inputs"], np.float64),
            int(str(row["instructions"])) / int(str(stock[str(row["program"])]["instructions"])),
            row["printed"] == stock[str(row["program"])]["printed"],
            int(str(row["text"])) / int(str(stock[str(row["program"])]["text"])),
        )
        for row in rows
        if str(row["program"]) in stock
    ]


@dataclass(frozen=True)
class Judged:
    """The model on programs that it has not seen. Changes are in percent of -O3's executed instructions."""

    each: dict[str, float]  # Spearman within each program
    predicted_V: Floats
    together: float
    chosen: dict[str, Sample | None]  # of what is served, the least predicted below stock's
    change: float  # of what is chosen: geometric mean, with its 95 % interval, programs resampled
    low: float
    high: float

    @classmethod
    def of(cls, others: Sequence[Sample]) -> Judged:
        each, predicted_V, together = held_out(others)
        chosen: dict[str, Sample | None] = {}
        for program in each:
            served = [
                (predicted_V[index], one)
                for index, one in enumerate(others)
                if one.program == program and one.variant.startswith(SERVED)
            ]
            least = min(served, key=lambda one: one[0], default=(0.0, None))
            chosen[program] = least[1] if least[0] < 0 else None
        logs = np.log([one.ratio if one else 1.0 for one in chosen.values()])
        draws_R = logs[np.random.default_rng(0).integers(0, len(logs), (RESAMPLES, len(logs)))].mean(axis=1)
        change, low, high = 100 * (np.exp([logs.mean(), *np.percentile(draws_R, [2.5, 97.5])]) - 1)
        return cls(each, predicted_V, together, chosen, float(change), float(low), float(high))

    @property
    def within(self) -> float:
        return float(np.mean(list(self.each.values())))


def fit(found: Sequence[Sample]) -> IR2Perf:
    """The model of all programs, with what is to be told of it."""
    others = [sample for sample in found if sample.variant != "stock"]
    judged = Judged.of(others)
    inputs_VX, logs_V = np.stack([one.inputs_X for one in others]), np.log([one.ratio for one in others])
    penalty = _penalty(inputs_VX, logs_V, np.array([one.program for one in others]))
    about = {
        "programs": len(judged.each),
        "builds": len(others),
        "spearman_of_unseen_programs": round(judged.together, 2),
        "spearman_within_an_unseen_program": round(judged.within, 2),
        "chosen_on_unseen_programs_percent": [round(value, 2) for value in (judged.change, judged.low, judged.high)],
    }
    return IR2Perf.fit(inputs_VX, logs_V, penalty, about)


def report(found: Sequence[Sample]) -> str:
    """Spearman on programs left out, and what the model's choice among those that are served executes."""
    others = [sample for sample in found if sample.variant != "stock"]
    judged = Judged.of(others)
    lines = [
        "| program left out | builds | Spearman | fewest of all | chosen of the served | its machine code |",
        "|---|---|---|---|---|---|",
    ]
    for program, rank in judged.each.items():
        ratios = [one.ratio for one in others if one.program == program]
        pick = judged.chosen[program]
        ratio, growth = (pick.ratio, pick.growth) if pick else (1.0, 1.0)
        lines.append(
            f"| {program} | {len(ratios)} | {rank:.2f} | {100 * (min(1.0, *ratios) - 1):.2f} % "
            f"| {100 * (ratio - 1):+.2f} % | {100 * (growth - 1):+.0f} % |"
        )
    lines.append(
        f"\nSpearman of all builds together {judged.together:.2f}; mean within programs {judged.within:.2f}. Executed "
        f"instructions of what the model chose, beside -O3: {judged.change:+.2f} % (95 % {judged.low:+.2f} to "
        f"{judged.high:+.2f}, programs resampled; geometric mean). Outputs equal to stock's: "
        f"{sum(sample.same_output for sample in others)} of {len(others)}."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="where programs are built")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file of the measurements")
    parser.add_argument("--only", nargs="*", default=[], help="programs")
    parser.add_argument("--fit", type=Path, help="where the model of all programs goes")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    found = collect(given.work.absolute(), given.out, given.only)
    print(report(found))
    if given.fit is not None:
        fit(found).save(given.fit)


if __name__ == "__main__":
    main()
