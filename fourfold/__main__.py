"""Where the `fourfold` command begins; `fourfold clang` goes its own way, since a build starts it for every file."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """The console script."""
    if sys.argv[1:2] == ["clang"] and sys.argv[2:3] != ["--help"]:
        # -P: a folder of the build's that has our packages' name is not ours.
        os.execv(sys.executable, [sys.executable, "-P", "-m", "services.inlining.wrapper", *sys.argv[2:]])
    from fourfold.cli import main as command

    command()


if __name__ == "__main__":
    main()
