"""Rematerialization: same gradients in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import small
from helpers.oracles import array

from drender.config import EnvEncoderConfig, UNetConfig
from drender.models import lora
from drender.models.env_encoder import EnvEncoder
from drender.models.params import abstract_module
from drender.models.unet import UNet
from drender.models.vae import VAE

WIDE = small.ONE_LEVEL | {"block_out_channels": (64,)}


def unet_with_factors(unet: UNet, remat: bool):
    """Include adapted layers, which are added after `nnx.merge`."""
    unet = lora.adapt(unet, lora.init(abstract_module(UNet, unet.config)[1], 2, ["to_v"], seed=0), jnp.ones(2))
    shapes = (2, 4, 8, 8, 8), (2,), (2, 1, 3, 24), (2, 3)
    inputs = [jnp.asarray(array(*shape)) for shape in shapes]
    return unet(*inputs, image_only=jnp.array([True, False]), remat=remat)


def encoded_and_decoded(vae: VAE, remat: bool):
    return vae.decode(vae.encode(jnp.asarray(array(1, 4, 16, 16, 3)), remat), remat)


def concatenated_tokens(encoder: EnvEncoder, remat: bool):
    return jnp.concatenate([level.ravel() for level in encoder(jnp.asarray(array(1, 4, 16, 16, 12)), remat)])


REMAT_CASES = {
    "unet": (UNet, UNetConfig(**WIDE, cross_attention_dim=24, temporal_cross_attention_dim=24), unet_with_factors),
    "vae": (VAE, small.VAE, encoded_and_decoded),
    "env_encoder": (EnvEncoder, EnvEncoderConfig(channels=(32, 64)), concatenated_tokens),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REMAT_CASES)
def test_remat_keeps_gradients_and_saves_memory(name):
    cls, config, call = REMAT_CASES[name]
    graphdef, params = abstract_module(cls, config)[0], small.random_params(cls, config)

    def compiled(remat):
        loss = lambda params: jnp.mean(jnp.sin(call(nnx.merge(graphdef, params), remat)))
        # On CPUs, XLA drops the barriers that keep its CSE from undoing rematerialization.
        options = {"xla_disable_hlo_passes": "cse_barrier_expander"}
        return jax.jit(jax.value_and_grad(loss)).lower(params).compile(options)

    plain, remat = compiled(False), compiled(True)
    (expected, expected_gradients), (value, gradients) = plain(params), remat(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    largest = max(np.linalg.norm(x) for x in jax.tree.leaves(expected_gradients))
    for gradient, expected in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
        np.testing.assert_allclose(gradient, expected, atol=1e-5 * largest)
    memory = lambda compiled: compiled.memory_analysis().temp_size_in_bytes
    assert memory(remat) < 0.6 * memory(plain)
