"""Files and folders: atomic writes, listings in natural order, bounded readers, and errors that name the path."""

import errno
import functools
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from drender.errors import InputError, OnFailure, first_line
from drender.locks import lock

S, T = TypeVar("S"), TypeVar("T")
HASHED_WHOLE = 2**24  # bytes; of larger files, which are videos and weights, evenly spaced blocks are hashed
BLOCK, NUM_BLOCKS = 2**16, 256
# Bytes of the largest text file that is read: the poses of 100,000 frames, or the index of 500,000 tensors.
MAX_TEXT = 2**26
PART = ".part"  # in the names of temporary files
TEMPORARY = re.compile(rf"\..*\.[0-9a-f]{{8}}{re.escape(PART)}(\..*)?")


# --- reading ---------------------------------------------------------------------------------------------------------


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Return a sorting key for names that puts frame2 before frame10."""
    parts = re.split(r"(\d+)", name.lower())  # text and digits alternate, so like is compared with like
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def list_dir(folder: Path) -> list[Path]:
    """Return the entries of `folder` that are not hidden, in natural order."""
    entries = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return sorted(entries, key=lambda entry: natural_order(entry.name))


def find_files(folder: str | Path, suffixes: Collection[str], kind: str, nested: bool = False) -> list[Path]:
    """Return the files with one of the suffixes in a folder, in natural order, and, if `nested`, those below it.

    InputError if there is no such folder, it is unreadable, or without such a file, which `kind` names ("meshes").
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: {'not a folder' if folder.exists() else 'folder not found'}")

    def walk(folder: Path, parents: tuple[Path, ...] = ()) -> Iterator[Path]:
        real = folder.resolve()
        for entry in () if real in parents else list_dir(folder):  # links may lead to folders above
            if nested and entry.is_dir():
                yield from walk(entry, (*parents, real))
            elif entry.suffix.lower() in suffixes and entry.is_file():
                yield entry

    with readable(folder):
        files = list(walk(folder))
    if not files:
        raise InputError(f"{folder}: no {kind} found; expected files {' '.join(suffixes)}")
    return files


def expand_home(path: str | Path) -> Path:
    """Return the path with `~` or `~user` replaced by the home directory; raise InputError if there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: no such home directory; give the whole path") from error


def folder_name(path: str | Path) -> str:
    """Return the name of a folder as users see it: of a link its own, and of `.` or `..` that of the folder there."""
    return Path(os.path.abspath(path)).name


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn an OSError into an InputError that names the file or folder that cannot be read: `path`, or one in it."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {error.filename or path}: {error.strerror}") from error


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
        try:
            os.fsencode(path).decode()
        except UnicodeDecodeError:
            raise InputError(f"{path}: the name is not valid UTF-8; rename the file") from None
        raise InputError(f"{path}: Python's encoding of names is not UTF-8; set PYTHONUTF8=1") from None


def size_and_time(file: Path) -> tuple[int, int]:
    """Return the size of a file in bytes and its modification time; raise InputError if there is no such file."""
    with readable(file):
        status = file.stat()
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=2**16)  # checkpoints and environments are shared by all clips of a run
def content_hash(file: Path, size: int, mtime_ns: int) -> str:
    """Return a hash of a file's content, of a large file in part; the other arguments are those of `size_and_time`."""
    digest = hashlib.sha256(str(size).encode())
    step = max(BLOCK, (size - BLOCK) // (NUM_BLOCKS - 1)) if size > HASHED_WHOLE else BLOCK
    with readable(file), file.open("rb") as stream:
        for start in range(0, size, step):
            stream.seek(start, os.SEEK_SET)
            digest.update(stream.read(BLOCK))
    return digest.hexdigest()


def map_collecting_errors(function: Callable[[S], T], items: Sequence[S], failed: OnFailure | None) -> list[T]:
    """Call `function` with each item, and return the results of the calls that succeed.

    The InputErrors of several calls go to `failed`. They are raised if it is None, or of a single call.
    """
    results = []
    for item in items:
        try:
            results.append(function(item))
        except InputError as error:
            if failed is None or len(items) == 1:
                raise
            failed(error)
    return results


# --- text and JSON ---------------------------------------------------------------------------------------------------


def read_text(path: str | Path) -> str:
    """Return the content of a UTF-8 file.

    Raises:
      OSError: the file is missing, unreadable, a device or pipe, or larger than MAX_TEXT bytes.
      ValueError: it is not UTF-8.
    """
    # Without O_NONBLOCK, opening a pipe would wait for its writer.
    opener = lambda path, flags: os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    with open(path, "rb", opener=opener) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        data = file.read(MAX_TEXT + 1)
    if len(data) > MAX_TEXT:
        raise OSError(errno.EFBIG, f"more than {MAX_TEXT} bytes", str(path))
    return data.decode("utf-8-sig")  # editors on Windows write a byte-order mark


def read_json(path: str | Path, remedy: str) -> dict[str, Any]:
    """Return the JSON object in a file; InputErrors, as for a file that is missing, end in the remedy."""
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: unreadable ({getattr(error, 'strerror', None) or error}); {remedy}") from None
    return parse_json(text, str(path), remedy)


def parse_json(text: str, where: str, remedy: str) -> dict[str, Any]:
    """Return the JSON object in a text, from a file or part of one that is named in errors.

    Raises:
      InputError: not JSON, too deeply nested, a number that is not finite, or anything but an object.
    """
    try:
        values = json.loads(text, parse_float=_finite, parse_constant=_not_finite)
        if not isinstance(values, dict):
            raise ValueError(f"expected names and values, got {type(values).__name__}")
    except RecursionError:
        raise InputError(f"{where}: unreadable (nested too deeply); {remedy}") from None
    except ValueError as error:
        raise InputError(f"{where}: unreadable ({error}); {remedy}") from None
    return values


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _not_finite(number)


def _not_finite(number: str) -> NoReturn:
    raise ValueError(f"{number[:100]} is not a finite number")


# --- caches ----------------------------------------------------------------------------------------------------------


def cache_dir() -> Path:
    """Return the folder of all caches: DRENDER_CACHE, or `drender` in XDG_CACHE_HOME or `~/.cache`."""
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

    Its folder is created. `errors` are what the writing library raises, besides OSError, if it cannot write. They
    become InputErrors.
    """
    path = Path(path)
    _require_utf8(path)
    temporary = path.with_name(f"{_temporary_prefix(path)}{secrets.token_hex(4)}{PART}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, *errors) as error:
        raise InputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file as `atomic_write` does."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, "utf-8")


def remove_partial(folder: Path, path: Path | None = None) -> None:
    """Delete the temporary files that killed processes left in a folder: all, or those of one file `path`."""
    prefix = "." if path is None else _temporary_prefix(path)
    with suppress(OSError):
        for entry in os.scandir(folder):
            if entry.name.startswith(prefix) and TEMPORARY.fullmatch(entry.name):
                os.unlink(entry)


def _temporary_prefix(path: Path) -> str:
    return f".{path.stem[:40]}."  # short, as the longest name leaves no room for more


def check_destination(path: str | Path, overwrite: bool, replaceable: Callable[[Path], bool]) -> None:
    """Raise InputError if `path` exists, unless `overwrite` and the folder is empty or replaceable."""
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

    InputError as from `check_destination`, if another process writes it, or if the folder cannot be written.
    """
    folder = expand_home(path).resolve()
    partial, old = (folder.parent / f".{folder.name}.{suffix}" for suffix in ("partial", "old"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock(folder.parent / f".{folder.name}.partial.lock", path):
            _clean_up(folder, partial, old)  # after a process that was killed
            check_destination(path, overwrite, replaceable)
            try:
                partial.mkdir()
                yield partial
                if folder.exists():
                    folder.rename(old)
                partial.rename(folder)
            finally:
                _clean_up(folder, partial, old)
    except BrokenPipeError:
        raise  # a log's reader exited, which no disk space mends
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({first_line(error)}); free space or choose another") from error


def _clean_up(folder: Path, partial: Path, old: Path) -> None:
    """Delete temporary folders, and restore the old folder if the new one did not arrive."""
    if old.exists() and not folder.exists():
        old.rename(folder)
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
