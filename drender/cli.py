"""What every command line here shares: an unknown option names the nearest known one, and a bad input is one line."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from .errors import InputError, unknown


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations, whose errors are one line."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)
        self.subcommands: list[Parser] = []

    def add_commands(self) -> Callable[..., "Parser"]:
        """Returns the function that adds a sub-command."""
        commands = self.add_subparsers(dest="command", required=True, metavar="command")

        def add(name: str, **kwargs) -> Parser:
            self.subcommands.append(commands.add_parser(name, **kwargs))
            return self.subcommands[-1]

        return add

    def error(self, message: str) -> NoReturn:
        match = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        if match:
            chosen = [command for command in self.subcommands if command.prog.split()[-1] in sys.argv[1:2]]
            known = [name for parser in chosen or [self] for name in parser._option_string_actions if len(name) > 2]
            message = str(unknown("option", match.group(1), known))
        self.exit(2, f"{self.prog}: {message}\n")


def run(main: Callable[[], int | None]) -> NoReturn:
    """Runs a script's `main` and exits with its code; 2 and one line for a bad input, 130 when interrupted."""
    try:
        code = main() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)
