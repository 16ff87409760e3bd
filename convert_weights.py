"""Conversion of weights; see `python convert_weights.py --help`. `drender convert` is the same."""

from drender import cli
from drender.commands.convert import main

if __name__ == "__main__":
    cli.run(main)
