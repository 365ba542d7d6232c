"""`python -m fourfold`: the command, where no script of it is installed."""

from fourfold.cli import main

main()
