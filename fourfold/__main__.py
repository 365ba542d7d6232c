"""Where the `fourfold` command begins; `fourfold clang` goes its own way, since a build starts it for every file."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """The console script."""
    if sys.argv[1:2] == ["clang"] and sys.argv[2:3] != ["--help"]:
        if not sys.flags.safe_path:
            del sys.path[0]  # a folder of the build's that has our packages' name is not ours
        # By name, since the client stands alone; and not out through Python's own end, where nothing is left to do.
        os._exit(__import__("services.inlining.wrapper", fromlist=["main"]).main(sys.argv[2:]))
    from fourfold.cli import main as command

    command()


if __name__ == "__main__":
    main()
