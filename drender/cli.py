"""The argument parser of all scripts: one-line errors, which suggest the nearest known word for a mistyped one."""

import argparse
import contextlib
import errno
import io
import itertools
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn

from drender.errors import InputError, printable, unknown_name_error


class Parser(argparse.ArgumentParser):
    """An argument parser with one-line errors and without abbreviated options."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, formatter_class=Help, **kwargs)
        self.commands: dict[str, Parser] = {}

    def add_commands(self) -> Callable[..., "Parser"]:
        """Return a function that adds a sub-command; `args.command` will hold the chosen one's name."""
        commands = self.add_subparsers(dest="command", required=True, metavar="command")

        def add(name: str, **kwargs) -> Parser:
            self.commands[name] = commands.add_parser(name, description=kwargs.get("help"), **kwargs)
            return self.commands[name]

        return add

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else list(args)
        # argparse would report the missing required option before the mistyped one that was meant to be it.
        own = itertools.takewhile(lambda word: word != "--" and (not self.commands or word.startswith("-")), args)
        for option in (word.partition("=")[0] for word in own):
            if re.match("--?[a-zA-Z]", option) and option not in self._option_string_actions:
                self.error(str(unknown_name_error("option", option, self._option_string_actions)))
        if self.commands and not args:
            self.error(f"expected a command; known: {', '.join(self.commands)}")
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value) -> None:
        if action.choices is not None and value not in action.choices:
            name = "/".join(action.option_strings) or action.dest
            self.error(str(unknown_name_error(name, str(value), map(str, action.choices))))

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {printable(message)}; see {self.prog} --help\n")


class Help(argparse.HelpFormatter):
    """Append the default to an option's help text, unless it is None, a flag or empty."""

    def _get_help_string(self, action: argparse.Action) -> str:
        default = action.default
        hidden = default is None or isinstance(default, bool) or default in (argparse.SUPPRESS, ())
        if hidden or not action.option_strings:
            return action.help
        values = default if isinstance(default, tuple) else (default,)
        shown = " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
        return f"{action.help} ({shown})"


def path(text: str) -> str:
    """Parse a path argument; an empty one, as from an unset shell variable, is an error.

    The home directory replaces `~`, which shells leave in `--output=~/clips`.
    """
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty one")
    return os.path.expanduser(text)


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's `main` and exit with its code: 2 and one line for a bad input, 128 + the number of a signal."""
    # Orbax logs a failure with the traceback of each of its threads. The error that it raises says the same.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # clip names may have characters that the console lacks
    with warnings.catch_warnings(), contextlib.redirect_stdout(Output(sys.stdout)), signals_as_exceptions():
        show = lambda message, *_: print(f"warning: {printable(str(message))}", file=sys.stderr, flush=True)
        warnings.showwarning = show
        try:
            code = main() or 0
            sys.stdout.flush()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
        except KeyboardInterrupt as error:
            how, number = ("terminated", error.args[0]) if isinstance(error, Terminated) else ("interrupted", 2)
            print(f"{how}; rerun the same command to resume", file=sys.stderr)
            code = 128 + number
        except OutputError as error:
            if error.args[0] != errno.EPIPE:  # as after `| head`
                print(f"error: standard output cannot be written ({os.strerror(error.args[0])})", file=sys.stderr)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # it is flushed once more at the end
            code = 1
    sys.exit(code)


# --- the terminal ---


class OutputError(Exception):
    """Standard output cannot be written, with the system's error number. No OSError, as files are not to blame."""


class Output:
    """Standard output without control characters, which names from files may hold; it raises OutputErrors."""

    def __init__(self, stream: io.TextIOBase):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._try(self._stream.write, printable(text, keep="\n\t"))

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, function: Callable, *arguments: str) -> Any:
        try:
            return function(*arguments)
        except OSError as error:
            raise OutputError(error.errno) from error


class Terminated(KeyboardInterrupt):
    """A signal, whose number it holds, asked the process to end; temporary files go on the way out."""


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Raise Terminated for the first SIGTERM or SIGHUP; a second one ends the process at once."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        raise Terminated(number)

    handled = []
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
        handled = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]  # not under nohup
    for number in handled:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def _show_exception(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


# Scripts import this module first: Ctrl-C during their imports, before `run`, prints no traceback.
sys.excepthook = _show_exception
