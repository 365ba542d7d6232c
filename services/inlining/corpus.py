"""Builds the corpus: bitcode of real C and C++ programs from source packages, split by program.

    python -m services.inlining.corpus --out DIR [--only NAME …] [--add NAME=FOLDER …] [--processes 2]

`programs.csv` lists the packages. Each is fetched by name with the ordinary client of its registry (`apt-get source`,
`pip download`, `npm pack`), unpacked, configured where it has a `configure`, and its largest sources are compiled one
by one by the ziglang package's clang, with that package's headers, as `clang -Oz` has them before any optimisation.
A source that does not compile is counted and left. A module most of whose functions another program has already is a
copy, and left as well. A program that is in DIR already is not built again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import ziglang  # pyright: ignore[reportMissingTypeStubs]

log = logging.getLogger(__name__)

PROGRAMS = Path(__file__).parent / "programs.csv"
SPLITS = "splits.csv"
MANIFEST = "corpus.json"
C = {".c"}
CXX = {".cc", ".cpp", ".cxx"}
SKIPPED = re.compile(
    r"(^|[-_.])(tests?|testing|testsuite|examples?|samples|demos?|docs?|fuzz\w*|bench\w*|contrib|third[-_]?party|vendor"
    r"|external|win\w*|msdos|dos|vms|os2|os400|amiga\w*|mac\w*|darwin|java|perl|python|ruby|debian|arm\w*|aarch64|neon"
    r"|ppc|powerpc|mips|s390\w*|riscv\w*|sparc)([-_.]|$)",
    re.IGNORECASE,
)
LEAST_FILE, MOST_FILE = 2_000, 700_000  # bytes of a source; the amalgamations are named in LARGE
LARGE = {"sqlite3.c"}
MOST_TRIES, MOST_MODULES, MOST_CALLS = 40, 8, 3_000  # of one program
MOST_BYTES = 150_000  # bitcode of one program that is used, or its smallest module: a compile has to be cheap
LEAST_CALLS, LEAST_CALLS_PROGRAM = 5, 20  # call sites of functions that the module defines
COPY = 0.4  # a module that shares this part of its functions with another program is a copy
SPLIT_BOUNDS = ((0.6, "train"), (0.75, "validation"), (1.0, "test"))
DEFINED = re.compile(r'^define [^@]*@("[^"]+"|[-\w.$]+)\(', re.MULTILINE)
CALLED = re.compile(r'\b(?:call|invoke) [^@\n]*@("[^"]+"|[-\w.$]+)\(')
GLIBC = ("x86-linux-gnu", "generic-glibc", "x86-linux-any", "any-linux-any")
LIBCXX = (
    "NDEBUG",
    "_LIBCPP_ABI_VERSION=1",
    "_LIBCPP_ABI_NAMESPACE=__1",
    "_LIBCPP_HAS_THREADS=1",
    "_LIBCPP_HAS_MONOTONIC_CLOCK=1",
    "_LIBCPP_HAS_TERMINAL=1",
    "_LIBCPP_HAS_MUSL_LIBC=0",
    "_LIBCXXABI_DISABLE_VISIBILITY_ANNOTATIONS",
    "_LIBCPP_DISABLE_VISIBILITY_ANNOTATIONS",
    "_LIBCPP_HAS_VENDOR_AVAILABILITY_ANNOTATIONS=0",
    "_LIBCPP_HAS_FILESYSTEM=1",
    "_LIBCPP_HAS_RANDOM_DEVICE=1",
    "_LIBCPP_HAS_LOCALIZATION=1",
    "_LIBCPP_HAS_UNICODE=1",
    "_LIBCPP_HAS_WIDE_CHARACTERS=1",
    "_LIBCPP_HAS_TIME_ZONE_DATABASE=0",
    "_LIBCPP_PSTL_BACKEND_SERIAL",
    "_LIBCPP_HARDENING_MODE=_LIBCPP_HARDENING_MODE_NONE",
    "_LIBCPP_ASSERTION_SEMANTIC_DEFAULT=_LIBCPP_ASSERTION_SEMANTIC_IGNORE",
)
# Programs older than C99 are compiled as their time's compilers did.
LENIENT = (
    "implicit-function-declaration",
    "implicit-int",
    "int-conversion",
    "incompatible-pointer-types",
    "incompatible-function-pointer-types",
    "return-type",
)


@dataclass(frozen=True)
class Package:
    """One row of programs.csv; `version` blank takes the current one, `split` blank the name's digest."""

    origin: str
    package: str
    version: str
    split: str

    @property
    def name(self) -> str:
        return re.sub(r"[^a-z0-9.+-]", "-", self.package.lower().rpartition("/")[2])


def split_of(name: str) -> str:
    """The split that a program's name falls into: 60 % train, 15 % validation, 25 % test."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    return next(split for bound, split in SPLIT_BOUNDS if place < bound)


def read_packages(path: Path = PROGRAMS) -> list[Package]:
    with path.open(newline="") as stream:
        return [Package(**row) for row in csv.DictReader(stream)]


def clang(source: Path, output: Path, *, includes: Sequence[Path] = (), flags: Sequence[str] = ()) -> list[str]:
    """The command that makes `source` into unoptimised bitcode for -Oz, with the headers that ziglang carries."""
    library = Path(ziglang.__file__).parent / "lib"
    system = [library / "include", *(library / "libc" / "include" / name for name in GLIBC)]
    command = [sys.executable, "-m", "ziglang", "clang", "--target=x86_64-linux-gnu", "-nostdinc", "-w"]
    command += ["-D__GLIBC_MINOR__=36", "-Oz", "-Xclang", "-disable-llvm-passes", "-gline-tables-only", "-fPIC"]
    command += [f"-ffile-prefix-map={source.parent}=."]
    if source.suffix in CXX:
        system = [library / "libcxx" / "include", library / "libcxxabi" / "include", *system]
        command += ["-x", "c++", "-nostdinc++", "-std=gnu++17", *(f"-D{name}" for name in LIBCXX)]
    else:
        command += ["-std=gnu17", *(f"-Wno-error={name}" for name in LENIENT)]
    command += [part for folder in includes for part in ("-I", str(folder))]
    command += [part for folder in system for part in ("-isystem", str(folder))]
    return [*command, *flags, "-c", "-emit-llvm", str(source), "-o", str(output)]


def _run(command: Sequence[str], folder: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    quiet = {**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}
    return subprocess.run(
        command, cwd=folder, env=quiet, capture_output=True, text=True, timeout=seconds, check=False, errors="replace"
    )


def _apt(state: Path) -> list[str]:
    """apt-get with a private state that knows the sources of what the machine is set up for; needs no root."""
    options = ["-o", f"Dir::Etc::SourceList={state}/sources.list", "-o", "Dir::Etc::SourceParts=-"]
    options += ["-o", f"Dir::State::Lists={state}/lists", "-o", f"Dir::Cache={state}/cache"]
    command = ["apt-get", "-qq", *options]
    if not (state / "sources.list").is_file():
        (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (state / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        asked = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)", "Created-By: Packages"]
        found = sorted(set(_run(asked, state, 60).stdout.splitlines()))
        release = [line for line in found if line.endswith(" main") and "-" not in line.split()[1]]
        if not release:
            raise OSError("apt knows of no packages: run `apt-get update` as root first")
        (state / "sources.list").write_text("".join(f"deb-src {line}\n" for line in release))
        _run([*command, "update"], state, 300)
    return command


def fetch(package: Package, folder: Path, state: Path) -> Path:
    """Download the package's source archive into `folder`; raises OSError when it cannot be had."""
    folder.mkdir(parents=True, exist_ok=True)
    known = f"={package.version}" if package.origin == "debian" else f"=={package.version}"
    wanted = package.package + (known if package.version and package.origin != "npm" else "")
    match package.origin:
        case "debian":
            command = [*_apt(state), "source", "--download-only", wanted]
        case "pypi":
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", wanted]
        case "npm":
            command = ["npm", "pack", "--silent", package.package + (f"@{package.version}" * bool(package.version))]
        case _:
            raise OSError(f"there is no origin {package.origin!r}")
    done = _run(command, folder, 600)
    archives = [path for path in folder.iterdir() if re.search(r"\.(tar\.\w+|tgz|zip)$", path.name)]
    archives = [path for path in archives if ".debian.tar" not in path.name] or archives
    if not archives:
        raise OSError(f"nothing was downloaded: {done.stderr.strip()[-200:]}")
    return max(archives, key=lambda path: path.stat().st_size)


def unpack(archive: Path, folder: Path) -> Path:
    """The root of the unpacked sources."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
    else:
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="tar")
    inner = list(folder.iterdir())
    return inner[0] if len(inner) == 1 and inner[0].is_dir() else folder


def configure(root: Path) -> str:
    """Run the package's own configure, so that it has its config.h; `none`, `done` or `failed`."""
    if not (root / "configure").is_file():
        return "none"
    compiler = "gcc" if shutil.which("gcc") else f"{sys.executable} -m ziglang cc"
    try:
        done = _run(["sh", "./configure", f"CC={compiler}", "--disable-nls"], root, 240)
    except (OSError, subprocess.TimeoutExpired):
        return "failed"
    return "done" if done.returncode == 0 else "failed"


def sources(root: Path) -> Iterator[Path]:
    """C and C++ files worth a try, largest first."""
    found = [path for path in root.rglob("*") if path.suffix in C | CXX and path.is_file() and not path.is_symlink()]
    found = [path for path in found if not any(SKIPPED.search(part) for part in path.relative_to(root).parts)]
    sized = [(path.stat().st_size, path) for path in found]
    usable = [item for item in sized if LEAST_FILE <= item[0] <= MOST_FILE or item[1].name in LARGE]
    return (path for _, path in sorted(usable, key=lambda item: (-item[0], str(item[1])))[:MOST_TRIES])


def include_folders(root: Path) -> list[Path]:
    """Folders with headers, the shallowest first."""
    found = {path.parent for path in root.rglob("*") if path.suffix in {".h", ".hh", ".hpp", ".inc"}}
    found |= {folder.parent for folder in found if folder != root}
    kept = [folder for folder in found if not any(SKIPPED.search(part) for part in folder.relative_to(root).parts)]
    return [root, *sorted((item for item in kept if item != root), key=lambda item: (len(item.parts), str(item)))[:80]]


def look(bitcode: bytes) -> tuple[int, list[str]]:
    """(direct calls of functions that the module defines, names of those functions)."""
    text = str(llvm.parse_bitcode(bitcode))
    names = DEFINED.findall(text)
    known = set(names)
    return sum(callee in known for callee in CALLED.findall(text)), names


def build(package: Package, out: Path, work: Path, extra: Path | None = None) -> dict[str, Any]:
    """Fetch and compile one program into `out/<name>`; returns its record, also written there."""
    target = out / package.name
    record_file = target / "program.json"
    if record_file.is_file():
        return json.loads(record_file.read_text())
    place = work / package.name
    shutil.rmtree(place, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    record: dict[str, Any] = {"program": package.name, "origin": package.origin, "package": package.package}
    record |= {"split": package.split or split_of(package.name), "modules": [], "failed": 0, "too_small": 0}
    try:
        if extra is None:
            archive = fetch(package, place / "archive", work / "apt")
            record |= {"archive": archive.name, "sha256": hashlib.sha256(archive.read_bytes()).hexdigest()}
            root = unpack(archive, place / "source")
            for inner in list(root.rglob("sqlite3.tar.gz")):
                unpack(inner, inner.parent)
        else:
            root = Path(shutil.copytree(extra, place / "source"))
        record["configure"] = configure(root)
        _compile_all(package, root, target, record)
    except (OSError, tarfile.TarError, zipfile.BadZipFile, subprocess.TimeoutExpired) as error:
        record["trouble"] = str(error)[:300].replace(str(work), "")
    shutil.rmtree(place, ignore_errors=True)
    record_file.write_text(json.dumps(record, indent=1))
    log.info("%s: %d modules, %d failed", package.name, len(record["modules"]), record["failed"])
    return record


def _compile_all(package: Package, root: Path, target: Path, record: dict[str, Any]) -> None:
    includes = include_folders(root)
    flags: list[str] = []
    if any((folder / "config.h").is_file() for folder in includes):
        flags.append("-DHAVE_CONFIG_H")
    if package.origin == "pypi":
        includes.append(Path(sysconfig.get_paths()["include"]))
    calls = 0
    for source in sources(root):
        output = target / f"{source.stem}{'' if source.suffix in C else '_cc'}.bc"
        if output.exists():
            continue
        command = clang(source, output, includes=[source.parent, *includes], flags=flags)
        try:
            done = _run(command, source.parent, 120)
        except subprocess.TimeoutExpired:
            record["failed"] += 1
            continue
        if done.returncode != 0:
            record["failed"] += 1
            output.unlink(missing_ok=True)
            continue
        bitcode = output.read_bytes()
        found, names = look(bitcode)
        if found < LEAST_CALLS:
            record["too_small"] += 1
            output.unlink()
            continue
        digest = hashlib.sha256(bitcode).hexdigest()
        shown = str(source.relative_to(root))
        record["modules"].append(
            {
                "file": output.name,
                "source": shown,
                "sha256": digest,
                "bytes": len(bitcode),
                "calls": found,
                "functions": names,
            }
        )
        calls += found
        if len(record["modules"]) == MOST_MODULES or calls >= MOST_CALLS:
            break


def without_copies(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records less modules that are copies of another program's; test programs keep theirs first."""
    seen: dict[str, str] = {}
    kept: list[dict[str, Any]] = []
    order = {"test": 0, "validation": 1, "train": 2}
    for record in sorted(records, key=lambda item: (order[item["split"]], item["program"])):
        modules: list[dict[str, Any]] = []
        for module in record["modules"]:
            names = [name for name in module["functions"] if name != "main"]
            copied = sum(seen.get(name, record["program"]) != record["program"] for name in names)
            if names and copied / len(names) < COPY:
                modules.append(module)
        for module in modules:
            for name in module["functions"]:
                seen.setdefault(name, record["program"])
        modules = _affordable(modules)
        if sum(module["calls"] for module in modules) >= LEAST_CALLS_PROGRAM:
            kept.append({**record, "modules": modules, "copies": len(record["modules"]) - len(modules)})
    return sorted(kept, key=lambda item: item["program"])


def _affordable(modules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those with the most call sites a byte, while they fit; the smallest where none does."""
    chosen: list[dict[str, Any]] = []
    used = 0
    for module in sorted(modules, key=lambda item: item["calls"] / item["bytes"], reverse=True):
        if used + module["bytes"] <= MOST_BYTES:
            chosen.append(module)
            used += module["bytes"]
    return chosen or sorted(modules, key=lambda item: item["bytes"])[:1]


def assemble(records: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    """Write splits.csv and the manifest beside the programs; returns the manifest."""
    kept = without_copies(records)
    with (out / SPLITS).open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["file", "program", "split", "sha256"])
        for record in kept:
            for module in record["modules"]:
                row = [f"{record['program']}/{module['file']}", record["program"], record["split"], module["sha256"]]
                table.writerow(row)
    counts = {name: sum(record["split"] == name for record in kept) for _, name in SPLIT_BOUNDS}
    manifest = {
        "programs": {"wanted": len(records), "kept": len(kept), **counts},
        "modules": sum(len(record["modules"]) for record in kept),
        "calls": sum(module["calls"] for record in kept for module in record["modules"]),
        "sources_that_failed": sum(record["failed"] for record in records),
        "not_kept": sorted({record["program"] for record in records} - {record["program"] for record in kept}),
        "records": [
            {**record, "modules": [{k: v for k, v in item.items() if k != "functions"} for item in record["modules"]]}
            for record in kept
        ],
    }
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="where the programs' folders go")
    parser.add_argument("--only", nargs="*", default=None, help="names of programs")
    parser.add_argument("--add", nargs="*", default=[], metavar="NAME=FOLDER", help="sources of your own, for test")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    packages = [item for item in read_packages() if given.only is None or item.name in given.only]
    out: Path = given.out.absolute()
    work = out / ".work"
    (work / "apt").mkdir(parents=True, exist_ok=True)
    _apt(work / "apt")
    added = dict(item.split("=", 1) for item in given.add)
    jobs: list[tuple[Package, Path | None]] = [(item, None) for item in packages]
    jobs += [(Package("folder", name, "", "test"), Path(folder)) for name, folder in added.items()]
    with ThreadPoolExecutor(given.processes) as pool:
        records = list(pool.map(lambda job: build(job[0], out, work, job[1]), jobs))
    manifest = assemble(records, out)
    print(json.dumps({name: value for name, value in manifest.items() if name != "records"}, indent=1))


if __name__ == "__main__":
    main()
