"""speed.py and plan.py: the backends compute the same, and the counted stages are those of a renderer."""

import argparse
from importlib import metadata

import backends
import jax
import numpy as np
import plan
import pytest
import speed
from helpers import small

from drender.checkpoints import orbax
from drender.models.registry import NETWORKS
from drender.sharding import DeviceGroup

ARGS = argparse.Namespace(dtype="float32", frames=2, size=(16, 16), steps=2)


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("make", [small.inverse_config, small.forward_config], ids=["inverse", "forward"])
def test_backends_compute_the_same(make, tmp_path):
    config = make(small.UNET)  # diffusers has 32 groups in every norm
    networks = [name for name in NETWORKS if getattr(config, name) is not None]
    params = {name: speed.random_params(name, config, "float32") for name in networks}
    orbax.save(tmp_path / "model", config, params)
    drender, torch = (
        backend(tmp_path / "model", config.kind, ARGS) for backend in (backends.DrenderBackend, backends.TorchBackend)
    )
    for stage in backends.STAGES[config.kind]:
        expected = getattr(torch, stage)()
        actual = getattr(drender, stage)()
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, atol=1e-3 * np.abs(expected).max(), err_msg=stage)
    for backend, package in ((drender, "jax"), (torch, "diffusers")):
        assert metadata.version(package) in backend.about() and backend.memory() > 0


def test_plan_has_the_calls_and_shapes_of_a_renderer():
    """Four passes of a clip of five frames, in windows of three, decoded in chunks of two."""
    options = {"frames": 3, "overlap": 1, "num_steps": 2, "decode_chunk_size": 2, "decode_overlap": 0}
    stages = plan.stages(
        small.inverse_config(), "float32", 5, (16, 16), passes=("normal", "depth", "basecolor", "metallic"), **options
    )
    calls = [(stage.name, stage.frames, stage.count) for stage in stages]
    # All passes are denoised together. Each ends in a chunk of one frame. Depth decodes its two windows separately.
    assert calls == [("encode", 8, 1), ("denoise", 12, 4), ("decode", 2, 8), ("decode", 1, 5)]


def test_received_bytes_count_collectives():
    group = DeviceGroup(tuple(jax.devices()))
    x = jax.device_put(np.ones((2, 1, 1024), np.float32), group.split(2, 1))
    gather = jax.jit(lambda x: x + 1, out_shardings=group.replicated).lower(x).compile()
    stay = jax.jit(lambda x: x + 1, out_shardings=group.split(2, 1)).lower(x).compile()
    assert (plan.received_bytes(gather.as_text()), plan.received_bytes(stay.as_text())) == (2 * 1024 * 4, 0)


def test_plan_encodes_a_still_light_for_one_frame():
    still, moving = (
        plan.stages(small.forward_config(), "float32", 3, (16, 16), light_frames=n, num_steps=1) for n in (1, 3)
    )

    def frames(stages, name):
        return sum(stage.frames * stage.count for stage in stages if stage.name == name)

    # In batches of 8: G-buffers of three frames, and a map of each kind.
    assert [frames(still, name) for name in ("environment", "encode")] == [1, 16 + 8]
    assert [frames(moving, name) for name in ("environment", "encode")] == [3, 16 + 16]
