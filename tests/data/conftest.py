"""Fixtures of the data tests: a sky, lit clips, and a VAE to encode them."""

import gc
import threading
from pathlib import Path

import pytest
from helpers import small
from helpers.encoded import encode_clips
from helpers.tiny_clips import LABELS, write_clip, write_noise, write_sky

from drender.checkpoints import orbax
from drender.config import ENVIRONMENT_LABELS
from drender.lighting.light_file import Light
from drender.models.vae import VAE


@pytest.fixture
def sky(tmp_path) -> Path:
    return write_sky(tmp_path / "sky.hdr")


@pytest.fixture
def lit(tmp_path) -> Path:
    """Two clips of noise, of 16×16 pixels and two frames, under a sky."""
    write_sky(tmp_path / "sky.exr")
    for i in range(2):
        light = Light("../../sky.exr", strength=1.0 + i)
        write_noise(tmp_path / "lit" / f"clip{i}", seed=i, size=(16, 16), light=light)
    return tmp_path / "lit"


@pytest.fixture(scope="session")
def vae(tmp_path_factory) -> Path:
    """A checkpoint that holds a VAE only."""
    folder = tmp_path_factory.mktemp("vae") / "checkpoint"
    orbax.save(folder, small.forward_config(), {"vae": small.random_params(VAE, small.VAE)})
    return folder


@pytest.fixture
def clips(tmp_path) -> Path:
    """Six clips of five frames."""
    for i in range(6):
        write_clip(tmp_path / "clips" / f"clip{i}", clip=i, chunks=(5,))
    return tmp_path / "clips"


@pytest.fixture
def cached(lit, vae, tmp_path) -> Path:
    encode_clips(lit, tmp_path / "set", vae, (*LABELS, *ENVIRONMENT_LABELS), size=(16, 16), environment_size=(16, 16))
    return tmp_path / "set"


@pytest.fixture(autouse=True)
def readers_end():
    """Wait for the threads that a test's rows are read in: beartype swaps the filters of warnings there, for all."""
    yield
    if any(is_reader(thread) for thread in threading.enumerate()):
        gc.collect()  # the iterator that they read for
    for thread in filter(is_reader, threading.enumerate()):
        thread.join(timeout=10)


def is_reader(thread: threading.Thread) -> bool:
    return thread.name.startswith("grain-")
