"""Where the `fourfold` command begins; `fourfold clang` goes its own way, since a build starts it for every file."""

from __future__ import annotations

import sys
from importlib import import_module


def main() -> None:
    """The console script."""
    if sys.argv[1:2] == ["clang"] and sys.argv[2:3] != ["--help"]:
        if not sys.flags.safe_path:
            del sys.path[0]  # a folder of the build's that has our packages' name is not ours
        sys.exit(import_module("services.inlining.wrapper").main(sys.argv[2:]))
    from fourfold.cli import main as command

    command()


if __name__ == "__main__":
    main()
