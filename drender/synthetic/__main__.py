"""Run `python -m drender.synthetic`."""

from drender import cli
from drender.synthetic.generate import main

if __name__ == "__main__":
    cli.run(main)
