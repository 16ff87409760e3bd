"""Training; see `python train.py --help`. `drender train` is the same."""

from drender import cli
from drender.commands.train import main

if __name__ == "__main__":
    cli.run(main)
