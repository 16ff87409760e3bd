"""The VAE against diffusers', and images decoded apart."""

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import small
from helpers.oracles import array, channels_first, diffusers, network, params_of, randomized, torch

from drender.config import VAEConfig
from drender.models.params import abstract_module, flatten, unflatten
from drender.models.vae import VAE


@pytest.mark.oracle
@pytest.mark.parametrize(
    "options",
    [
        {"block_out_channels": (32, 64), "layers_per_block": 1},
        {"block_out_channels": (32, 32, 64), "layers_per_block": 2},
    ],
)
def test_vae_equals_diffusers(options):
    torch.manual_seed(0)
    levels = len(options["block_out_channels"])
    oracle = randomized(
        diffusers.AutoencoderKLTemporalDecoder(**options, down_block_types=("DownEncoderBlock2D",) * levels)
    )
    config = VAEConfig(**options)
    params = params_of(VAE, config, oracle)
    images = array(2, 3, 16, 24, 3)
    with torch.no_grad():
        latents = oracle.encode(channels_first(images).flatten(0, 1)).latent_dist
        decoded = oracle.decode(latents.mode(), num_frames=3).sample
    mean, log_variance = network(VAE, config, params, "moments")(images)
    channels_last = lambda x: np.moveaxis(x.unflatten(0, (2, 3)).numpy(), 2, -1)
    np.testing.assert_allclose(mean, channels_last(latents.mean), atol=1e-4)
    np.testing.assert_allclose(log_variance, channels_last(latents.logvar), atol=1e-4)
    np.testing.assert_allclose(network(VAE, config, params, "decode")(mean), channels_last(decoded), atol=2e-4)


def test_images_decode_apart_without_temporal_branches():
    graphdef, params = abstract_module(VAE, small.VAE)[0], small.random_params(VAE, small.VAE)
    spatial = {name: x - 40 if name.endswith("mix_factor") else x for name, x in flatten(params).items()}
    decode = lambda params, z, images: nnx.merge(graphdef, params).decode(z, remat=True, image_only=images)
    decode, z = jax.jit(decode, static_argnums=2), array(2, 3, 4, 4, 4)
    alone = [decode(unflatten(spatial), z[:, i : i + 1], False) for i in range(3)]
    np.testing.assert_allclose(decode(params, z, True), np.concatenate(alone, axis=1), atol=1e-5)
