"""Files and folders: complete or not there, in natural order, readable or a clear line."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import av

from .errors import InputError

T = TypeVar("T")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A hidden neighbour of `path` to write to: at the end it takes the place of `path`, on an error it vanishes.

    The folder is made. An OSError, or one of FFmpeg's, becomes an InputError naming `path`.
    """
    path = Path(path)
    _require_text(path)
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")  # always the same: what a killed run left goes too
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, av.FFmpegError) as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def natural_order(name: str) -> tuple[list[str | int], str]:
    """A sorting key for names that puts frame2 before frame10."""
    parts = re.split(r"(\d+)", name.lower())  # text and digits alternate, so that like meets like
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def visible_entries(folder: Path) -> list[Path]:
    """The files and folders in `folder` that are not hidden, in natural order."""
    entries = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return sorted(entries, key=lambda entry: natural_order(entry.name))


def require_file(path: Path) -> None:
    """InputError if there is no such file, or if it may not be read, or not named to the libraries that read it."""
    if not path.is_file():
        raise InputError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} may not be read; see its permissions")
    _require_text(path)


def _require_text(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}: the name is no UTF-8; rename it") from None


def first_line(message: str) -> str:
    return message.strip().partition("\n")[0].strip()


def readable(read: Callable[..., T], found: list[tuple], failed: Callable[[InputError], None] | None) -> list[T]:
    """`read` of all that was found; where that is more than one thing, `failed`, if given, takes their InputErrors."""
    results = []
    for arguments in found:
        try:
            results.append(read(*arguments))
        except InputError as error:
            if failed is None or len(found) == 1:
                raise
            failed(error)
    return results
