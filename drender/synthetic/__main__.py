"""Run `python -m drender.synthetic OUT …`, or `python -m drender.synthetic assets DIR`."""

import sys

from drender import cli
from drender.synthetic import fetch, generate


def main() -> None:
    if sys.argv[1:2] == ["assets"]:
        fetch.main(sys.argv[2:])
    else:
        generate.main()


if __name__ == "__main__":
    cli.run(main)
