"""Sampling: `relight`, `inverse`, `forward` and `light`; `edit` and `insert` change G-buffers before forward rendering.

`drender relight --help` lists the options of a command. Without options, a command runs the small models that
come with the package on the clip that does.
"""

from collections.abc import Callable

from drender import cli
from drender.editing import commands as editing
from drender.sampling import commands as sampling


def main() -> None:
    parser = cli.Parser(description=__doc__)
    add_commands(parser.add_commands())
    args = parser.parse_args()
    args.run(args)


def add_commands(add: Callable[..., cli.Parser]) -> None:
    """Add all sampling commands, in the order of use, to a parser whose `add_commands` returned `add`."""
    sampling.add_commands(add)
    editing.add_commands(add)
