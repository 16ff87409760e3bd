"""Convolutions of every shape and way of computing them, against PyTorch's and XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.oracles import array, channels_first, torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drender.models import cpu_conv
from drender.models.layers import Conv
from drender.training import flops


@pytest.mark.oracle
@settings(max_examples=40)
@given(n=st.integers(1, 3), h=st.integers(1, 5), w=st.integers(1, 70), kernel=st.sampled_from([(1, 1), (3, 1), (3, 3)]))
def test_convolutions_of_every_grid_equal_torch(n, h, w, kernel):
    """Small grids become matrix products, and taps that see only padding are dropped."""
    x, weights, bias = array(n, h, w, 4), array(*kernel, 4, 5, seed=1), array(5, seed=2)
    padding = (kernel[0] // 2, kernel[1] // 2)
    expected = torch.nn.functional.conv2d(
        channels_first(x),
        torch.from_numpy(weights.transpose(3, 2, 0, 1).copy()),
        torch.from_numpy(bias),
        padding=padding,
    )
    graphdef, state = nnx.split(Conv(4, 5, kernel))
    nnx.replace_by_pure_dict(state, {"kernel": jnp.asarray(weights), "bias": jnp.asarray(bias)})
    layer = nnx.merge(graphdef, state)
    with jax.disable_jit():
        np.testing.assert_allclose(layer(jnp.asarray(x)), np.moveaxis(expected.numpy(), 1, -1), atol=1e-4)


@pytest.mark.parametrize("chunk_size", [2**30, 2**16, 1])
@pytest.mark.parametrize("shape", [(2, 17, 31), (3, 16, 16), (1, 5, 128), (2, 2, 400), (1, 90, 7)])
def test_minimal_filtering_equals_convolution(monkeypatch, shape, chunk_size):
    """Odd sides, images in one chunk and one by one; and gradients."""
    monkeypatch.setattr(cpu_conv, "CHUNK_SIZE", chunk_size)
    monkeypatch.setattr(cpu_conv, "MANY_CHANNELS", 64)
    jax.clear_caches()  # drop traces with other chunk sizes
    x, weights = jnp.asarray(array(*shape, 64)), jnp.asarray(array(3, 3, 64, 72, seed=1)) / 24
    filtered = lambda x, weights: cpu_conv.conv2d(x, weights)
    direct = cpu_conv._conv_by_xla
    assert flops.count(cpu_conv._conv_filtered, x, weights) <= 0.8 * flops.count(direct, x, weights)
    np.testing.assert_allclose(filtered(x, weights), direct(x, weights), atol=1e-5)
    gradients = lambda fn: jax.grad(lambda *inputs: jnp.sum(jnp.sin(fn(*inputs))), (0, 1))(x, weights)
    for gradient, expected in zip(gradients(filtered), gradients(direct), strict=True):
        np.testing.assert_allclose(gradient, expected, atol=1e-4)
