"""Files and folders: atomic writes, listings in natural order, and errors that name the path."""

import functools
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from drender.errors import InputError, first_line

T = TypeVar("T")
HASHED_WHOLE = 2**24  # bytes; of larger files, which are videos and weights, evenly spaced blocks are hashed
BLOCK, NUM_BLOCKS = 2**16, 256


# --- reading ---------------------------------------------------------------------------------------------------------


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Return a sorting key for names that puts frame2 before frame10."""
    parts = re.split(r"(\d+)", name.lower())  # text and digits alternate, so like is compared with like
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def list_dir(folder: Path) -> list[Path]:
    """Return the entries of `folder` that are not hidden, in natural order."""
    entries = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return sorted(entries, key=lambda entry: natural_order(entry.name))


def expand_home(path: str | Path) -> Path:
    """Return the path with `~` or `~user` replaced by the home directory; raise InputError if there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: no such home directory; give the whole path") from error


def require_file(path: Path) -> None:
    """Raise InputError if `path` is missing, unreadable or not valid UTF-8."""
    if not path.is_file():
        raise InputError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} is not readable; check its permissions")
    _require_utf8(path)


def _require_utf8(path: Path) -> None:
    """Raise InputError for a name that FFmpeg and other libraries could not open."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}: the name is not valid UTF-8; rename the file") from None


def size_and_time(file: Path) -> tuple[int, int]:
    """Return the size of a file in bytes and its modification time; raise InputError if there is no such file."""
    try:
        status = file.stat()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=2**16)  # checkpoints and environments are shared by all clips of a run
def content_hash(file: Path, size: int, mtime_ns: int) -> str:
    """Return a hash of a file's content, of a large file in part; the other arguments are those of `size_and_time`."""
    digest = hashlib.sha256(str(size).encode())
    step = max(BLOCK, (size - BLOCK) // (NUM_BLOCKS - 1)) if size > HASHED_WHOLE else BLOCK
    try:
        with file.open("rb") as stream:
            for start in range(0, size, step):
                stream.seek(start, os.SEEK_SET)
                digest.update(stream.read(BLOCK))
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    return digest.hexdigest()


def map_collecting_errors(
    function: Callable[..., T], calls: list[tuple], failed: Callable[[InputError], None] | None
) -> list[T]:
    """Call `function` with each tuple of arguments, and return the results of the calls that succeed.

    Args:
      failed: receives the InputErrors of several calls; None, or a single call: raise them instead.
    """
    results = []
    for arguments in calls:
        try:
            results.append(function(*arguments))
        except InputError as error:
            if failed is None or len(calls) == 1:
                raise
            failed(error)
    return results


def first_difference(before: dict, now: dict) -> str:
    """Describe the first setting whose value differs: "another seed (1, now 2)"."""
    known = {**now, **before}
    name = next(name for name in known if before.get(name, "unset") != now.get(name, "unset"))
    return f"another {name} ({before.get(name, 'unset')!r}, now {now.get(name, 'unset')!r})"


# --- caches ----------------------------------------------------------------------------------------------------------


def cache_dir() -> Path:
    """Return the folder of all caches: DRENDER_CACHE, or `drender` in XDG_CACHE_HOME or `~/.cache`.

    Raises:
      InputError: there is no home directory.
    """
    if folder := os.environ.get("DRENDER_CACHE"):
        return expand_home(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drender"
    except RuntimeError:
        raise InputError("no home directory for the cache; set HOME or DRENDER_CACHE") from None


def require_space(folder: Path, num_bytes: int, remedy: str) -> None:
    """Raise InputError, which ends in the remedy, if a disk has less than this free; `folder` need not exist yet."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        sizes = f"needs {num_bytes / 1e9:.3g} GB of disk, {free / 1e9:.3g} GB are free"
        raise InputError(f"{folder}: {sizes}; {remedy}")


# --- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_write(path: str | Path, errors: tuple[type[Exception], ...] = ()) -> Iterator[Path]:
    """Yield a hidden neighbor of `path` to write to; it replaces `path` at the end, and is deleted on an error.

    Args:
      path: its folder is created.
      errors: what the writing library raises, besides OSError, if it cannot write.

    Raises:
      InputError: `path` cannot be written.
    """
    path = Path(path)
    _require_utf8(path)
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")  # a fixed name, so leftovers of killed runs go too
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, *errors) as error:
        raise InputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_destination(path: str | Path, overwrite: bool, replaceable: Callable[[Path], bool]) -> None:
    """Check that a folder can be created at `path`.

    Args:
      replaceable: whether an existing folder may be deleted when overwriting.

    Raises:
      InputError: the path exists, and either not `overwrite` or not replaceable.
    """
    folder = expand_home(path).resolve()
    if not folder.exists():
        return
    if not overwrite:
        raise InputError(f"{path}: already exists; give another folder, or replace it with --overwrite")
    if not folder.is_dir() or (any(folder.iterdir()) and not replaceable(folder)):
        raise InputError(f"{path}: not a checkpoint, so it is not overwritten; remove it or give another folder")


@contextmanager
def atomic_dir(path: str | Path, overwrite: bool, replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield a hidden folder beside `path` to fill; it replaces `path` at the end, and is deleted on an error.

    Args: as for `check_destination`.

    Raises:
      InputError: as from `check_destination`, or the folder cannot be written.
    """
    folder = expand_home(path).resolve()
    partial, old = (folder.parent / f".{folder.name}.{suffix}" for suffix in ("partial", "old"))
    _clean_up(folder, partial, old)  # after a process that was killed
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
        _clean_up(folder, partial, old)


def _clean_up(folder: Path, partial: Path, old: Path) -> None:
    """Delete temporary folders, and restore the old folder if the new one did not arrive."""
    if old.exists() and not folder.exists():
        old.rename(folder)
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
