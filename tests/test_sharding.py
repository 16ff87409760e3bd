"""Sharding on two CPU devices: the training mesh, device groups and the compilation cache."""

import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from drender import InputError, sharding
from drender.sharding import MeshConfig


def test_by_default_all_devices_are_on_the_fsdp_axis():
    mesh = sharding.make_mesh(MeshConfig(), batch=4, grad_accum_steps=1)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "frames": 1}
    mesh = sharding.make_mesh(MeshConfig(data=2), batch=4, grad_accum_steps=1)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "frames": 1}


@pytest.mark.parametrize(
    ("config", "batch", "grad_accum_steps", "message"),
    [
        (MeshConfig(data=3), 6, 1, "mesh: data 3 × fsdp 1 × frames 1 is 3, but there are 2 devices"),
        (MeshConfig(fsdp=1), 6, 1, "mesh: data 1 × fsdp 1 × frames 1 is 1, but there are 2 devices"),
        (MeshConfig(), 3, 1, "data.batch 3 does not divide .* make it a multiple of 2"),
        (MeshConfig(), 6, 2, "data.batch 6 does not divide .* make it a multiple of 4"),
    ],
)
def test_an_indivisible_mesh_is_an_error(config, batch, grad_accum_steps, message):
    with pytest.raises(InputError, match=message):
        sharding.make_mesh(config, batch, grad_accum_steps)


def test_large_params_shard_their_largest_divisible_axis():
    mesh = sharding.make_mesh(MeshConfig(), batch=2, grad_accum_steps=1)
    shapes = {"small": (1000, 2), "square": (3, 3, 640, 1280), "odd": (2**21 + 1,), "second": (2**20 + 1, 4)}
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    specs = {name: placed.spec for name, placed in sharding.param_sharding(tree, mesh).items()}
    assert specs == {"small": P(), "square": P(None, None, None, "fsdp"), "odd": P(), "second": P(None, "fsdp")}


def test_device_put_global_keeps_values():
    mesh = sharding.make_mesh(MeshConfig(), batch=2, grad_accum_steps=1)
    tree = {"kernel": np.arange(2**21, dtype=np.float32).reshape(2, -1), "bias": np.ones(3, np.float32)}
    placed = sharding.device_put_global(tree, sharding.param_sharding(tree, mesh))
    assert placed["kernel"].addressable_shards[0].data.shape == (2, 2**19)
    assert placed["bias"].addressable_shards[1].data.shape == (3,)
    np.testing.assert_array_equal(placed["kernel"], tree["kernel"])


def test_batch_rows_are_sharded_over_devices():
    mesh = sharding.make_mesh(MeshConfig(), batch=4, grad_accum_steps=1)
    rows = sharding.make_global_batch({"x": np.arange(8).reshape(4, 2)}, mesh)["x"]
    assert [shard.data.tolist() for shard in rows.addressable_shards] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


def test_join_hosts_needs_all_three_arguments():
    with pytest.raises(InputError, match="belong together"):
        sharding.join_hosts("localhost:1234")


# --- device groups ---------------------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(1, 8), max_size=4), length=st.integers(1, 10**4))
def test_dividing_axes_shard_evenly(sizes, length):
    axes = {str(i): size for i, size in enumerate(sizes)}
    names = sharding._dividing_axes(axes, length)
    assert length % math.prod(axes[name] for name in names) == 0
    assert all(size == 1 or length % size for name, size in axes.items() if name not in names and not names)


@pytest.mark.parametrize(
    ("rows", "frames", "shard"),
    [(2, 6, (1, 6)), (3, 6, (3, 3)), (4, 5, (2, 5)), (5, 3, (5, 3))],  # of each device
)
def test_device_group_shards_rows_before_frames(rows, frames, shard):
    group = sharding.DeviceGroup(tuple(jax.devices()))
    x = np.arange(rows * frames * 2.0).reshape(rows, frames, 2)
    split = sharding.constrain(x, group.split(rows, frames))
    assert [piece.data.shape for piece in split.addressable_shards] == [(*shard, 2)] * 2
    np.testing.assert_array_equal(split, x)


def test_eight_devices_shard_rows_and_frames():
    """Shapes alone, in a process with eight simulated devices."""
    expected = {(1, 24): (1, 3), (2, 24): (1, 6), (8, 8): (1, 8), (4, 24): (2, 6), (1, 12): (1, 3), (3, 7): (3, 7)}
    program = (
        "import jax; from drender.sharding import DeviceGroup; group = DeviceGroup(tuple(jax.devices())); "
        f"print([group.split(*shape).shard_shape(shape) for shape in {list(expected)}])"
    )
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    shown = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == str(list(expected.values()))


def test_a_single_device_needs_no_mesh():
    assert sharding.DeviceGroup(tuple(jax.devices()[:1])).split(2, 2) is None
    assert len(sharding.SINGLE_DEVICE) == 1 and sharding.SINGLE_DEVICE.replicated is None


# --- compilation cache -----------------------------------------------------------------------------------------------


@pytest.fixture
def cache_dir(monkeypatch):
    """A function that configures the cache and returns its folder; JAX's configuration is restored afterwards."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)

    def configured():
        sharding.cache_compilations()
        return jax.config.jax_compilation_cache_dir

    yield configured
    jax.config.update("jax_compilation_cache_dir", before)


def test_cache_is_in_the_home_directory(cache_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == str(tmp_path / ".cache" / "drender" / "xla")


def test_cache_folder_of_the_environment_wins(cache_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    assert cache_dir() is None  # JAX reads the variable itself when it is imported


def test_without_a_home_directory_nothing_is_cached(cache_dir, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    with pytest.warns(UserWarning, match="no home directory"):
        assert cache_dir() is None


def test_damaged_entries_of_the_cache_are_removed(cache_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.warns(UserWarning, match="Error reading"):
        folder = Path(cache_dir())
        folder.mkdir(parents=True)
        for name in ("jit_step-0f-cache", "jit_step-0f-atime", "jit_steps-0f-cache"):
            (folder / name).touch()
        # As JAX words it, checked on 0.10 and 0.12; it compiles and writes the entry afterwards.
        warnings.warn("Error reading persistent compilation cache entry for 'jit_step': Zlib: bad", stacklevel=1)
    assert [path.name for path in folder.iterdir()] == ["jit_steps-0f-cache"]
