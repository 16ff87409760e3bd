"""Renderers on several devices match one device and share its work."""

import jax
import numpy as np
import pytest

from drender.config import CONDITIONS, ENVIRONMENT_LABELS
from drender.sharding import DeviceGroup


def on_all_devices(renderer):
    """Return the same renderer on all devices."""
    group = DeviceGroup(tuple(jax.devices()))
    return type(renderer)(renderer.config, jax.device_put(renderer.params, group.replicated), group)


@pytest.fixture(scope="module")
def inverse_group(inverse):
    return on_all_devices(inverse)


@pytest.fixture(scope="module")
def forward_group(forward):
    return on_all_devices(forward)


# Shared by frames, by windows of 4, or by passes, of which a last one is computed twice.
@pytest.mark.slow
@pytest.mark.parametrize(("frames", "options"), [(8, {}), (9, {"frames": 4, "overlap": 1}), (1, {})])
def test_inverse_on_two_devices_matches_one(inverse, inverse_group, frames, options):
    rgb = np.random.default_rng(5).random((1, frames, 16, 16, 3), np.float32)
    options = {"num_steps": 2, "decode_chunk_size": 4, **options}
    one, two = (renderer(rgb, CONDITIONS, **options) for renderer in (inverse, inverse_group))
    for name in CONDITIONS:
        np.testing.assert_allclose(one[name], two[name], atol=1e-4, err_msg=name)


# Shared by the halves of guidance, by frames, or by windows.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("frames", "lit", "options"),
    [
        (3, 3, {}),
        (4, 4, {"guidance": (1.0, 1.0)}),
        (9, 1, {"frames": 4, "overlap": 1, "dynamic_guidance": True}),
    ],
)
def test_forward_on_two_devices_matches_one(forward, forward_group, frames, lit, options):
    random = np.random.default_rng(6)
    buffers = {name: random.random((1, frames, 16, 16, 3), np.float32) for name in CONDITIONS}
    light = {label: random.random((lit, 16, 16, 3), np.float32) for label in ENVIRONMENT_LABELS}
    options = {"num_steps": 2, "decode_chunk_size": 4, **options}
    one, two = (renderer(buffers, light, **options) for renderer in (forward, forward_group))
    np.testing.assert_allclose(one, two, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "frames", "guided"), [(2, 3, False), (1, 4, False), (1, 3, True)])
def test_two_devices_halve_the_flops_of_a_step(inverse, inverse_group, rows, frames, guided):
    x = np.zeros((rows, frames, 8, 8, 4), np.float32)
    context, micro = np.zeros((rows, 1, 1, 24), np.float32), np.zeros((rows, 3), np.float32)
    scales = np.ones((rows, frames), np.float32) if guided else None
    work = {}
    for renderer in (inverse, inverse_group):
        split = renderer.group.split(rows * (1 + guided), frames)
        inputs = x, context, np.zeros(rows, int), micro, scales, x, 1.0
        step = renderer.stages["denoise"].fn.lower(renderer.params["unet"], *inputs, split=split)
        work[len(renderer.group)] = step.compile().cost_analysis()["flops"]
    assert 0.45 < work[2] / work[1] < 0.65
