"""The benchmarks: both sides are the same networks, and what is counted is what is computed."""

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


@pytest.mark.parametrize("config", [small.inverse_config(), small.forward_config()], ids=["inverse", "forward"])
def test_pytorch_does_the_same(config, tmp_path):
    """The forward renderer's network is put together from diffusers' parts."""
    networks = [name for name in NETWORKS if getattr(config, name) is not None]
    params = {name: speed.random_params(name, config, "float32") for name in networks}
    orbax.save(tmp_path / "model", config, params)
    ours, theirs = (side(tmp_path / "model", config.kind, ARGS) for side in (backends.Ours, backends.Torch))
    for stage in backends.STAGES[config.kind]:
        expected = getattr(theirs, stage)()
        found = getattr(ours, stage)()
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max(), err_msg=stage)
    for side, package in ((ours, "jax"), (theirs, "diffusers")):
        assert metadata.version(package) in side.about() and side.memory() > 0


def test_a_plan_is_what_a_renderer_does():
    """Calls and shapes: four passes of a clip of five frames in windows of three, decoded in runs of two."""
    options = {"frames": 3, "overlap": 1, "num_steps": 2, "decode_chunk_size": 2, "decode_overlap": 0}
    found = plan.stages(
        small.inverse_config(), "float32", 5, (16, 16), passes=("normal", "depth", "basecolor", "metallic"), **options
    )
    calls = [(stage.name, stage.frames, stage.calls) for stage in found]
    # All passes are denoised together. Each ends in a run of one frame; depth, whose windows are decoded apart, twice.
    assert calls == [("encode", 5, 1), ("step", 12, 4), ("decode", 2, 8), ("decode", 1, 5)]


def test_what_devices_send_each_other_is_counted():
    team = DeviceGroup(tuple(jax.devices()))
    x = jax.device_put(np.ones((2, 1, 1024), np.float32), team.split(2, 1))
    gather = jax.jit(lambda x: x + 1, out_shardings=team.replicated).lower(x).compile()
    stay = jax.jit(lambda x: x + 1, out_shardings=team.split(2, 1)).lower(x).compile()
    assert (plan.sent(gather.as_text()), plan.sent(stay.as_text())) == (2 * 1024 * 4, 0)


def test_the_light_is_seen_once_where_it_stands_still():
    still, moving = (
        plan.stages(small.forward_config(), "float32", 3, (16, 16), light_frames=n, num_steps=1) for n in (1, 3)
    )
    frames = lambda found, name: sum(stage.frames * stage.calls for stage in found if stage.name == name)
    assert [frames(still, name) for name in ("environment", "encode")] == [1, 5 * 3 + 3 + 1]  # one to fill a run
    assert [frames(moving, name) for name in ("environment", "encode")] == [3, 5 * 3 + 3 * 3 + 2]
