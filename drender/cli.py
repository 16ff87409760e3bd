"""What every command line here shares: a mistyped word names the nearest known one, and a bad input is one line."""

import argparse
import itertools
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

from drender.errors import InputError, unknown_name_error


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations, whose errors are one line."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, formatter_class=Help, **kwargs)
        self.commands: dict[str, Parser] = {}

    def add_commands(self) -> Callable[..., "Parser"]:
        """Returns the function that adds a sub-command; `args.command` will name the one that is chosen."""
        commands = self.add_subparsers(dest="command", required=True, metavar="command")

        def add(name: str, **kwargs) -> Parser:
            self.commands[name] = commands.add_parser(name, description=kwargs.get("help"), **kwargs)
            return self.commands[name]

        return add

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else list(args)
        # Looked at first, for argparse would rather miss the required option that a mistyped one was meant to be.
        ours = itertools.takewhile(lambda word: word.startswith("-") and word != "--" if self.commands else True, args)
        for word in itertools.takewhile(lambda word: word != "--", ours):
            option = word.partition("=")[0]
            if re.match("--?[a-zA-Z]", option) and option not in self._option_string_actions:
                self.error(str(unknown_name_error("option", option, self._option_string_actions)))
        if self.commands and not args:
            self.error(f"a command is missing; known: {', '.join(self.commands)}")
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value) -> None:
        if action.choices is not None and value not in action.choices:
            self.error(
                str(
                    unknown_name_error(
                        "/".join(action.option_strings) or action.dest, str(value), map(str, action.choices)
                    )
                )
            )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


class Help(argparse.HelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str:
        default = action.default
        if (
            not action.option_strings
            or default is None
            or isinstance(default, bool)
            or default in (argparse.SUPPRESS, ())
        ):
            return action.help
        values = default if isinstance(default, tuple) else (default,)
        shown = " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
        return f"{action.help} ({shown})"


def path(text: str) -> str:
    """The type of an argument that is a path. An empty one, as of a shell variable that is not set, is none."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return text


def run(main: Callable[[], int | None]) -> NoReturn:
    """Runs a script's `main` and exits with its code; 2 and one line for a bad input, 130 when interrupted."""
    # What Orbax logs of a failure, with the traceback of each of its threads, is in the error that it raises too.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr, flush=True)
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
