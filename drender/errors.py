"""Errors that a user can mend: one line that names the file or option, the value and the remedy."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator

import jax


class InputError(ValueError):
    """A bad input. The scripts print its one line and exit with code 2, without a traceback.

    details: what there is a list of, a line each below the first.
    """

    def __init__(self, message: str, details: Iterable[str] = ()):
        # Names of files, and what stands in damaged ones, may hold line breaks and bytes that are no text.
        escape = lambda c: c.encode("unicode_escape", "surrogatepass").decode()
        lines = ("".join(c if c.isprintable() else escape(c) for c in line) for line in (message, *details))
        super().__init__("\n  ".join(lines))


def unknown_name_error(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not among the `known` ones; it proposes the nearest."""
    known = sorted(known)
    name = name if len(name) <= 100 else name[:100] + "…"
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
    return InputError(f"unknown {kind} {name!r}; {hint}")


@contextlib.contextmanager
def oom_guard(remedy: str) -> Iterator[None]:
    """Where a device's memory is found too small, an InputError with the remedy takes the place of XLA's."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = first_line(error).removeprefix("RESOURCE_EXHAUSTED: ").rstrip(". ")
        raise InputError(f"a device's memory is full ({said}); {remedy}") from error


def first_line(error: Exception | str) -> str:
    """Return the first line of a library's error message; the name of the exception's type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else "" if isinstance(error, str) else type(error).__name__
