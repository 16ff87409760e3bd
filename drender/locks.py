"""Locks on output folders, so that two processes never write into one.

A lock is `flock` on a hidden file, which names the process that holds it. The system releases it when that process
ends, even by SIGKILL. Where a file system has no locks, a warning says so.
"""

import contextlib
import errno
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from drender.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PREFIX = ".lock"  # of the files' names
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def lock_folder(folder: Path, process: tuple[int, int] = (0, 1)) -> Iterator[None]:
    """Hold a folder for writing. Create it if missing, and remove it again if nothing was written.

    Args:
      process: index of this process, and number of processes that share the folder; each holds a lock of its own.
    Raises:
      InputError: another process holds the folder, or it cannot be written.
    """
    index, count = process
    created = not folder.exists()
    try:
        with lock(folder / (PREFIX if count == 1 else f"{PREFIX}.{index}-of-{count}"), folder):
            yield
    finally:
        if created:
            with contextlib.suppress(OSError):  # it holds files
                folder.rmdir()


@contextlib.contextmanager
def lock(
    file: Path, thing: str | Path, remedy: str = "give another folder", waiting: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold the lock `file`, in a folder that is created if missing, and delete it afterwards.

    Args:
      thing: what it stands for, in messages.
      remedy: ends the errors.
      waiting: if another process holds the lock, is called, and the lock is awaited; None: raise InputError.
    Raises:
      InputError: another process holds it, or it cannot be created.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = _acquire(file, wait=False)
        except BlockingIOError:
            if waiting is None:
                problem = f"{_holder(file)} is writing there; wait until it ends"
                raise InputError(f"{thing}: {problem}, or {remedy}") from None
            waiting()
            descriptor = _acquire(file, wait=True)
    except OSError as error:
        raise InputError(f"{thing}: cannot be written ({error.strerror}); {remedy}") from error
    if descriptor is None:
        warnings.warn(f"{thing}: no locks on this file system; start no second process that writes there", stacklevel=3)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)  # before it is released, or another process's lock would go
        if descriptor is not None:
            os.close(descriptor)


def _acquire(file: Path, wait: bool) -> int | None:
    """Return the descriptor that holds the lock, or None without locks; else, unless `wait`, raise BlockingIOError."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # A holder that ends deletes the file; then the lock is that of no file.
            if os.path.exists(file) and os.path.samestat(os.fstat(descriptor), os.stat(file)):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno in UNSUPPORTED:
                return None
            raise
        os.close(descriptor)


def _holder(file: Path) -> str:
    """Return "process PID on HOST", as the holder wrote it."""
    try:
        return file.read_text(errors="replace")[:200].strip() or "another process"
    except OSError:
        return "another process"
