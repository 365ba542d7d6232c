"""A recipe run from a shell, without any server: `python -m <module> --data DIR --out DIR --set KEY=VALUE …`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from shared.jobs.config import RecipeConfig, read_config
from shared.jobs.context import LocalContext
from shared.jobs.distributed import run_recipe


def run_from_shell(
    module: str, kind: type[RecipeConfig], about: str | None, data: str, lists: Collection[str] = ()
) -> None:
    """Run `<module>.train` as the command line asks, and print where the bundle is.

    `about` is the module's docstring, `data` the help of --data; the settings in `lists` take values with commas.
    """
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help=data)
    parser.add_argument("--out", type=Path, required=True, help="where checkpoints and the bundle go")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="TrainConfig fields")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    values: dict[str, Any] = dict(item.split("=", 1) for item in given.set)
    for name in lists:
        if name in values:
            values[name] = values[name].split(",")
    print(run_recipe(module, read_config(kind, values), given.data, LocalContext(given.out)))
