"""Sampling: `inverse`, `forward` and `relight`; and `edit` and `insert`, which change G-buffers between the first two.

`python sample.py relight --help` lists the options of a command. Without options, a command runs the small models that
come with the package on the clip that does.
"""

from drender import cli
from drender.editing import commands as editing
from drender.sampling import commands as sampling


def main() -> None:
    parser = cli.Parser(description=__doc__)
    add = parser.add_commands()
    sampling.add_commands(add)
    editing.add_commands(add)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    cli.run(main)
