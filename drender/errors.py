"""Errors that a user can fix: one line that names the file or option, the value and the remedy."""

import contextlib
import difflib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence


class InputError(ValueError):
    """A bad input. The scripts print its message and exit with code 2, without a traceback.

    Args:
      message: one line; unprintable characters are escaped.
      details: items to list below the message, a line each.
    """

    def __init__(self, message: str, details: Iterable[str] = ()):
        super().__init__("\n  ".join(printable(line) for line in (message, *details)))


OnFailure = Callable[[InputError], None]  # takes the errors of single clips among several


@contextlib.contextmanager
def naming(where: object) -> Iterator[None]:
    """Begin the message of an InputError by `where`, unless it does already."""
    try:
        yield
    except InputError as error:
        prefix = str(InputError(f"{where}: "))
        raise InputError(prefix + str(error).removeprefix(prefix)) from None


def printable(text: str, keep: str = "") -> str:
    """Escape control characters and undecodable bytes, which file names and damaged files may hold, except `keep`."""
    escape = lambda c: c.encode("unicode_escape", "surrogatepass").decode()
    return "".join(c if c.isprintable() or c in keep else escape(c) for c in text)


def say(line: str) -> None:
    """Print a line, in which names from files may hold line breaks."""
    print(printable(line), flush=True)


def extent(shape: Sequence[int]) -> str:
    """Return "WIDTHxHEIGHT" for the shape (height, width, …) of an image."""
    return f"{shape[1]}x{shape[0]}"


class Failures(list[InputError]):
    """Errors of clips while others succeed, each printed to stderr when it is added."""

    def add(self, error: InputError) -> None:
        self.append(error)
        print(f"failed: {error}", file=sys.stderr, flush=True)

    def raise_if_any(self, num_clips: int) -> None:
        """Raise InputError if some of the clips failed."""
        if self:
            raise InputError(f"{len(self)} of {num_clips} clips failed (see above)")


def unknown_name_error(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Return the error for a name that is not among the `known` ones, with the nearest of these as a hint."""
    known = sorted(known)
    name = name if len(name) <= 100 else name[:100] + "…"
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
    return InputError(f"unknown {kind} {name!r}; {hint}")


@contextlib.contextmanager
def oom_guard(remedy: str) -> Iterator[None]:
    """Turn XLA's out-of-memory error into an InputError that ends in the remedy."""
    try:
        yield
    except RuntimeError as error:  # the base of jax.errors.JaxRuntimeError
        if not is_out_of_memory(error):
            raise
        reason = first_line(error).removeprefix("RESOURCE_EXHAUSTED: ").rstrip(". ")
        raise InputError(f"out of device memory ({reason}); {remedy}") from error


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether XLA could not allocate memory on a device."""
    return "RESOURCE_EXHAUSTED" in str(error)


def first_line(error: Exception | str) -> str:
    """Return the first line of an error message, or the name of the exception's type if there is no message."""
    lines = str(error).strip().splitlines()
    if lines:
        return lines[0].strip()
    return "" if isinstance(error, str) else type(error).__name__
