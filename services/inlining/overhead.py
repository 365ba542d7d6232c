"""What the wrapper costs: CPU time a decision, and of whole compiles beside plain clang's, in one run.

python -m services.inlining.overhead FILE.c … [--clang COMMAND] [--policy FOLDER] [--repeats 5]
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from services.inlining.launcher import build_launcher
from services.inlining.policy import load_policy
from services.inlining.resident import address
from services.inlining.wrapper import find_clang, policy_folder

COMMAND = Path(sys.executable).with_name("fourfold")  # what a build starts
HOST = [str(COMMAND)] if COMMAND.exists() else [sys.executable, "-P", "-m", "fourfold"]


def cpu_seconds(command: Sequence[str], folder: str, policy: str) -> float:
    """Of a command and its children, and of the resident policy meanwhile."""
    before, resident = os.times(), resident_seconds(policy)
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    after = os.times()
    ours = after.children_user + after.children_system - before.children_user - before.children_system
    return ours + max(0.0, resident_seconds(policy) - resident)


def resident_seconds(policy: str) -> float:
    """CPU time of the process that listens on the policy's socket; 0 without one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(address(policy))
        except OSError:
            return 0.0
        pid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return time.clock_gettime(~pid << 3 | 2)  # of all its threads; /proc counts in hundredths of a second


def main(given: Sequence[str]) -> None:
    """Print a row a file, and one of their sums, which is a build: plain clang, the launcher, `--fast`, and the checked
    compile, as ratios of CPU time."""
    parser = argparse.ArgumentParser(prog="services.inlining.overhead")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--clang", default="")
    parser.add_argument("--policy", default="")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--flags", default="", help="further flags for every file, separated by blanks")
    asked = parser.parse_args(given)
    clang, policy = find_clang(asked.clang), policy_folder(asked.policy)
    decider = load_policy(Path(policy))
    row = decider.quantiles_FQ[:, decider.quantiles_FQ.shape[1] // 2].copy()
    started = time.process_time()
    for _ in range(20_000):
        decider.decide(row)
    print(f"a decision: {(time.process_time() - started) / 20_000 * 1e6:.1f} µs of CPU")
    print(f"{'file':<20}{'clang, CPU-s':>14}{'launcher':>10}{'fast':>8}{'checked':>9}", end="")
    print(f"   (ratios to clang, medians of {asked.repeats})")
    totals = [0.0, 0.0, 0.0, 0.0]
    with tempfile.TemporaryDirectory() as folder:
        launcher = str(Path(folder, "launcher"))
        build_launcher(launcher, clang, policy)
        for file in asked.files:
            arguments = ["-Oz", *asked.flags.split(), "-c", str(file.resolve()), "-o", "a.o"]
            ours = [*HOST, "clang", "--clang", " ".join(clang), "--policy", policy]
            fast, checked = [*ours, "--fast", "--", *arguments], [*ours, "--", *arguments]
            commands = ([*clang, *arguments], [launcher, *arguments], fast, checked)
            # In turn, so that a busier minute meets all of them.
            times = [[cpu_seconds(command, folder, policy) for command in commands] for _ in range(asked.repeats)]
            medians = [statistics.median(column) for column in zip(*times, strict=True)]
            totals = [total + median for total, median in zip(totals, medians, strict=True)]
            _show(file.name, *medians)
    _show("all of them", *totals)


def _show(name: str, plain: float, launcher: float, fast: float, checked: float) -> None:
    ratios = f"{launcher / plain:>10.2f}{fast / plain:>8.2f}{checked / plain:>9.2f}"
    print(f"{name:<20}{plain:>14.2f}{ratios}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
