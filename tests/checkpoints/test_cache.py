"""Checkpoints by name: released weights are converted once, by one process, whatever happens to it."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import hub_cache, tiny

from drender import InverseRenderer, files
from drender.checkpoints import convert, orbax
from drender.checkpoints.cache import resolve
from drender.errors import InputError
from drender.sampling.commands import complete_options
from drender.sampling.options import RelightOptions

LOCKED_BY_ANOTHER = """
import pathlib, sys, time
from drender.locks import lock
with lock(pathlib.Path(sys.argv[1]), "it"):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The folder of converted checkpoints."""
    monkeypatch.setenv("DRENDER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checkpoints"


@pytest.fixture
def repository(originals, tmp_path, monkeypatch) -> str:
    """The name of a repository of the tiny inverse renderer."""
    hub_cache.install(monkeypatch, tmp_path / "hub", "owner/name", originals["inverse"])
    return "owner/name"


@pytest.fixture
def conversions(inverse_checkpoint, monkeypatch) -> list[str]:
    """Sources of conversions, which copy a checkpoint instead."""
    calls = []

    def stand_in(source, destination, log):
        calls.append(source)
        with files.atomic_dir(destination, False, lambda folder: False) as folder:
            shutil.copytree(inverse_checkpoint, folder, dirs_exist_ok=True)

    monkeypatch.setattr(convert, "from_released", stand_in)
    return calls


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.mark.slow
def test_a_name_is_converted_once(repository, cache, monkeypatch, inverse_checkpoint):
    lines = []
    folder = resolve(repository, lines.append)
    assert folder == cache / f"owner--name@{hub_cache.COMMIT}"
    assert f"owner/name@{hub_cache.COMMIT}: converting into {folder}" in lines
    assert orbax.load_config(folder) == orbax.load_config(inverse_checkpoint)
    monkeypatch.setattr(convert, "from_released", None)
    assert resolve(f"{repository}@main") == resolve(f"{repository}@{hub_cache.COMMIT}") == folder
    assert contents(cache) == [folder.name]


@pytest.mark.slow
def test_names_and_released_folders_load_in_python_and_on_the_command_line(repository, cache, originals):
    renderer = InverseRenderer.load(repository)
    assert renderer.config.unet.context_vocab_size == 16
    options = RelightOptions(inverse=repository, forward=str(originals["forward"]))
    complete, inverse, forward = complete_options("relight", options)
    assert (inverse.kind, forward.kind) == ("inverse", "forward")
    # The record of a run holds the converted folder, so another revision counts as another checkpoint.
    assert complete.inverse == str(cache / f"owner--name@{hub_cache.COMMIT}")
    assert Path(complete.forward).name in contents(cache)


def test_other_content_is_converted_again(inverse, cache, conversions):
    first, again = resolve(inverse), resolve(f"{inverse}/")
    tiny.edit_json(inverse / "scheduler/scheduler_config.json", sigma_max=80.0)
    second = resolve(inverse)
    assert first == again != second
    assert len(conversions) == 2
    os.utime(inverse / "unet/config.json", (0, 0))  # content may have changed between the blocks that are compared
    assert resolve(inverse) not in (first, second)


def test_two_at_once_convert_once(repository, cache, conversions):
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(resolve, [repository] * 2))
    assert folders[0] == folders[1]
    assert len(conversions) == 1


def test_a_killed_process_releases_its_lock_and_leaves_nothing(repository, cache, conversions):
    name = f"owner--name@{hub_cache.COMMIT}"
    (cache / f".{name}.partial" / "unet").mkdir(parents=True)
    command = [sys.executable, "-c", LOCKED_BY_ANOTHER, str(cache / f".{name}.lock")]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"

        def log(line):
            lines.append(line)
            if "waiting" in line:
                other.kill()

        folder = resolve(repository, log)
    assert f"owner/name@{hub_cache.COMMIT}: waiting for another process, which converts it" in lines
    assert orbax.components(folder) == ["unet", "vae"]
    assert contents(cache) == [name]


@pytest.mark.parametrize("name", ["owner/other", "owner/name@dev"])
def test_names_that_no_earlier_download_has_are_one_line_offline(repository, cache, name):
    with pytest.raises(InputError, match=f"{name}: no such folder, and no earlier download; check the path") as caught:
        resolve(name)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_found_before_anything_is_written(repository, cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(InputError, match=r"needs 0\.0121 GB of disk, 0\.001 GB are free"):
        resolve(repository)
    assert contents(cache) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_names_the_variable(repository, cache):
    cache.parent.mkdir(mode=0o500)
    with pytest.raises(InputError, match=r"cannot be written .* set DRENDER_CACHE"):
        resolve(repository)


def test_other_folders_are_left_alone(inverse_checkpoint, tmp_path, cache):
    assert resolve(inverse_checkpoint) == inverse_checkpoint
    assert resolve(tmp_path) == tmp_path
    assert not cache.exists()
