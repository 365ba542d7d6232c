"""Does answering stock's own decision reproduce stock's text size, and a replay of it? On modules of a folder.

python -m services.inlining.fidelity FOLDER [--most 100] [--seed 0]
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from services.inlining.datasets import modules
from services.inlining.engine import compile_module, inspect_module
from services.inlining.features import STOCK
from services.inlining.replay import as_mapping, replay_lines


def main(given: Sequence[str]) -> int:
    """Print what differs and the counts; 1 if stock was not reproduced somewhere."""
    parser = argparse.ArgumentParser(prog="services.inlining.fidelity")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--most", type=int, default=100, help="modules, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(given)
    found = [path for path in modules(asked.folder) if path.suffix != ".c"]
    random.Random(asked.seed).shuffle(found)
    same = objects = replayed = decisions = 0
    for path in found[: asked.most]:
        module = inspect_module(path.read_bytes())
        stock = compile_module(module.code, places=module.places, target=module.triple)
        answered = compile_module(module.code, decide=lambda row: int(row[STOCK]), target=module.triple)
        again = compile_module(module.code, replay=replay_lines(as_mapping(stock.decisions)), target=module.triple)
        decisions += len(answered.decisions_S)
        same += answered.text == stock.text
        objects += answered.object == stock.object
        replayed += again.text == stock.text
        if answered.text != stock.text or again.text != stock.text:
            print(
                f"{path.relative_to(asked.folder)}: stock {stock.text}, answered {answered.text}, replay {again.text}"
            )
    count = min(asked.most, len(found))
    print(f"{same} of {count} text sizes the same over the channel ({decisions} decisions); {replayed} by replay file")
    print(f"{objects} of {count} objects the same to the byte")
    return 0 if same == count else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
