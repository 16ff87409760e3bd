"""Sampling; see `python sample.py --help`. The installed command `drender` runs the same commands."""

from drender import cli
from drender.commands.sample import main

if __name__ == "__main__":
    cli.run(main)
