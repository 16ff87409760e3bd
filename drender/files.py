"""Files and folders: complete or not there, in natural order, readable or a clear line."""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import av

from drender.errors import InputError, first_line

T = TypeVar("T")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
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


def list_dir(folder: Path) -> list[Path]:
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


def map_collecting_errors(
    read: Callable[..., T], found: list[tuple], failed: Callable[[InputError], None] | None
) -> list[T]:
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


def check_destination(path: str | Path, overwrite: bool, replaceable: Callable[[Path], bool]) -> None:
    """Makes sure that a folder can be made at `path`.

    Args:
      replaceable: tells of an existing folder whether overwriting may delete it.
    Raises:
      InputError: it exists, and either not `overwrite` or not replaceable.
    """
    folder = Path(path).expanduser().resolve()
    if folder.exists():
        if not overwrite:
            raise InputError(f"{path}: exists already; give another folder, or replace it with --overwrite")
        if not folder.is_dir() or (any(folder.iterdir()) and not replaceable(folder)):
            raise InputError(f"{path}: not a checkpoint, so it is not overwritten; remove it or give another folder")


@contextlib.contextmanager
def atomic_dir(path: str | Path, overwrite: bool, replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """A hidden folder beside `path`, to be filled; it takes the place of `path` at the end, and vanishes on an error.

    Args are those of `check_destination`. Raises InputError where the folder cannot be written.
    """
    folder = Path(path).expanduser().resolve()
    partial, old = (folder.parent / f".{folder.name}.{suffix}" for suffix in ("partial", "old"))
    _tidy(folder, partial, old)  # after a process that was killed
    check_destination(path, overwrite, replaceable)
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({first_line(error)}); free space or choose another") from error
    finally:
        _tidy(folder, partial, old)


def _tidy(folder: Path, partial: Path, old: Path) -> None:
    """Removes what a replacement left behind; the old folder comes back where the new one did not arrive."""
    if old.exists() and not folder.exists():
        old.rename(folder)
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)


def difference(before: dict, now: dict) -> str:
    """The first setting that is another."""
    name = next(name for name in {**now, **before} if before.get(name) != now.get(name))
    return f"another {name} ({before.get(name)!r}, now {now.get(name)!r})"
