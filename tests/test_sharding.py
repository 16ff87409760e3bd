"""The mesh and its one rule, and teams. Two CPU devices are enough to see where things go."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from drender import InputError, sharding
from drender.sharding import MeshConfig


def test_all_devices_share_parameters_unless_told_otherwise():
    mesh = sharding.make_mesh(MeshConfig(), batch=4, accumulate=1)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "frames": 1}
    mesh = sharding.make_mesh(MeshConfig(data=2), batch=4, accumulate=1)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "frames": 1}


@pytest.mark.parametrize(
    ("config", "batch", "accumulate", "message"),
    [
        (MeshConfig(data=3), 6, 1, "mesh: data 3 × fsdp 1 × frames 1 is 3, but there are 2 devices"),
        (MeshConfig(fsdp=1), 6, 1, "mesh: data 1 × fsdp 1 × frames 1 is 1, but there are 2 devices"),
        (MeshConfig(), 3, 1, "data.batch 3 does not divide .* make it a multiple of 2"),
        (MeshConfig(), 6, 2, "data.batch 6 does not divide .* make it a multiple of 4"),
    ],
)
def test_what_does_not_divide(config, batch, accumulate, message):
    with pytest.raises(InputError, match=message):
        sharding.make_mesh(config, batch, accumulate)


def test_the_largest_divisible_axis_of_large_arrays_is_shared():
    mesh = sharding.make_mesh(MeshConfig(), batch=2, accumulate=1)
    shapes = {"small": (1000, 2), "square": (3, 3, 640, 1280), "odd": (2**21 + 1,), "second": (2**20 + 1, 4)}
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    specs = {name: place.spec for name, place in sharding.placement(tree, mesh).items()}
    assert specs == {"small": P(), "square": P(None, None, None, "fsdp"), "odd": P(), "second": P(None, "fsdp")}


def test_placed_arrays_are_what_they_were():
    mesh = sharding.make_mesh(MeshConfig(), batch=2, accumulate=1)
    tree = {"kernel": np.arange(2**21, dtype=np.float32).reshape(2, -1), "bias": np.ones(3, np.float32)}
    placed = sharding.device_put_global(tree, sharding.placement(tree, mesh))
    assert placed["kernel"].addressable_shards[0].data.shape == (2, 2**19)
    assert placed["bias"].addressable_shards[1].data.shape == (3,)
    np.testing.assert_array_equal(placed["kernel"], tree["kernel"])


def test_rows_are_spread_over_the_devices():
    mesh = sharding.make_mesh(MeshConfig(), batch=4, accumulate=1)
    rows = sharding.make_global_batch({"x": np.arange(8).reshape(4, 2)}, mesh)["x"]
    assert [shard.data.tolist() for shard in rows.addressable_shards] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


def test_processes_need_all_three_numbers():
    with pytest.raises(InputError, match="belong together"):
        sharding.join_hosts("localhost:1234")


# --- teams -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 10**4))
def test_prime_factors(number):
    primes = sharding.prime_factors(number)
    assert math.prod(primes) == number and primes == sorted(primes)
    assert all(prime % p for prime in primes for p in range(2, math.isqrt(prime) + 1))


@pytest.mark.parametrize(
    ("rows", "frames", "shape"),
    [(2, 6, (1, 6)), (3, 6, (3, 3)), (4, 5, (2, 5)), (5, 3, (5, 3))],  # what a device has
)
def test_rows_are_shared_before_frames(rows, frames, shape):
    team = sharding.DeviceGroup(tuple(jax.devices()))
    x = np.arange(rows * frames * 2.0).reshape(rows, frames, 2)
    shared = sharding.constrain(x, team.split(rows, frames))
    assert [shard.data.shape for shard in shared.addressable_shards] == [(*shape, 2)] * 2
    np.testing.assert_array_equal(shared, x)


def test_one_device_alone_needs_no_mesh():
    assert sharding.DeviceGroup(tuple(jax.devices()[:1])).split(2, 2) is None
    assert len(sharding.SINGLE_DEVICE) == 1 and sharding.SINGLE_DEVICE.everywhere is None
