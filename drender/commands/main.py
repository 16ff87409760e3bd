"""DiffusionRenderer: estimate G-buffers from pictures and video, and render them under another light.

`drender relight --help` lists the options of a command. Without options, a sampling command runs the small models that
come with the package on the clip that does.
"""

import importlib
import sys
from typing import NoReturn

from drender import cli
from drender.commands import sample

# Commands with a parser of their own: modules of this package, which are imported when they are chosen.
OTHERS = {
    "convert": "Convert released weights or a training run to a checkpoint, or back",
    "train": "Train an inverse or forward renderer",
    "app": "Serve a page to relight in",
    "info": "Describe a checkpoint, a run or a clip",
}


def main() -> int | None:
    words = sys.argv[1:]
    if words and words[0] in OTHERS:
        module = importlib.import_module(f"drender.commands.{words[0]}")
        return module.main(words[1:], prog=f"drender {words[0]}")
    parser = cli.Parser(prog="drender", description=__doc__)
    add = parser.add_commands()
    sample.add_commands(add)
    for name, help in OTHERS.items():
        add(name, help=help)
    args = parser.parse_args(words)
    return args.run(args)


def run() -> NoReturn:
    """Run the command line and exit; the installed script calls this."""
    cli.run(main)
