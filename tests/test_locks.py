"""Locks: one process writes into a folder, another one is told which, and a kill releases it."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from drender import locks
from drender.errors import InputError
from drender.files import atomic_dir
from drender.locks import lock_folder

# Holds a folder until it is killed.
HOLD = """
import sys, time, pathlib
from drender.locks import lock_folder
with lock_folder(pathlib.Path(sys.argv[1])):
    pathlib.Path(sys.argv[1], "file").touch()
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds `tmp_path / "out"`."""
    environment = os.environ | {"PYTHONPATH": str(Path(locks.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, env=environment
    )
    with process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_second_process_is_told_of_the_first(holder, tmp_path):
    expected = (
        rf"^{tmp_path}/out: process {holder.pid} on {socket.gethostname()} is writing there; wait .*another folder$"
    )
    with pytest.raises(InputError, match=expected), lock_folder(tmp_path / "out"):
        pass
    assert sorted(os.listdir(tmp_path / "out")) == [".lock", "file"]


def test_kill_releases_and_the_next_one_leaves_no_trace(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock_folder(tmp_path / "out"):
        assert (tmp_path / "out/.lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    assert os.listdir(tmp_path / "out") == ["file"]


def test_processes_that_share_a_folder_hold_a_lock_each(tmp_path):
    with lock_folder(tmp_path, (0, 2)), lock_folder(tmp_path, (1, 2)):
        with pytest.raises(InputError, match="is writing there"), lock_folder(tmp_path, (1, 2)):
            pass
        assert sorted(os.listdir(tmp_path)) == [".lock.0-of-2", ".lock.1-of-2"]
    assert os.listdir(tmp_path) == []


def test_folder_is_removed_if_nothing_was_written(tmp_path):
    with lock_folder(tmp_path / "a/b"):
        assert (tmp_path / "a/b").is_dir()
    assert not (tmp_path / "a/b").exists()


def test_lock_of_a_deleted_file_does_not_count(tmp_path, monkeypatch):
    """A holder that ends deletes its file between another's opening and locking."""
    flock, calls = fcntl.flock, []

    def late(descriptor, operation):
        calls.append(descriptor)
        if len(calls) == 1:
            os.unlink(tmp_path / ".lock")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with lock_folder(tmp_path):
        assert len(calls) == 2
        with pytest.raises(InputError, match="is writing there"), lock_folder(tmp_path):
            pass


@pytest.mark.parametrize("module", [None, fcntl])
def test_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, module):
    def unsupported(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    monkeypatch.setattr(locks, "fcntl", module)
    with (
        pytest.warns(UserWarning, match="no locks on this file system"),
        lock_folder(tmp_path),
    ):
        (tmp_path / "file").touch()
    assert os.listdir(tmp_path) == ["file"]


def test_unwritable_folder_is_an_input_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"), lock_folder(tmp_path / "file"):
        pass


def test_destination_of_a_folder_is_locked(tmp_path):
    arguments = (tmp_path / "c", True, lambda _: True)
    with atomic_dir(*arguments) as first:
        (first / "file").touch()
        with (
            pytest.raises(InputError, match=f"c: process {os.getpid()} on .* is writing there"),
            atomic_dir(*arguments),
        ):
            pass
        assert (first / "file").exists()
    assert os.listdir(tmp_path) == ["c"]
