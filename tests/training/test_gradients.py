"""Gradients of the denoising loss against PyTorch's, for every parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import small
from helpers.oracles import array, channels_first, diffusers, gradients_of, params_of, randomized, torch

from drender import diffusion
from drender.config import UNetConfig
from drender.models.params import abstract_module, flatten
from drender.models.unet import UNet


@pytest.mark.slow
@pytest.mark.oracle
def test_denoising_loss_gradients_equal_torch():
    """mean((F − v)²) over two clips at different noise levels, through rematerialized blocks."""
    options = small.UNET | {"cross_attention_dim": 24}
    config = UNetConfig(**options, temporal_cross_attention_dim=24)
    torch.manual_seed(0)
    oracle = randomized(diffusers.UNetSpatioTemporalConditionModel(**options))
    latents, noise, condition = (array(2, 3, 4, 6, 4, seed=i) for i in range(3))
    context, micro, sigma = array(2, 3, 24, seed=3), np.float32([[6, 127, 0], [23, 30, 0.1]]), np.float32([0.3, 4])

    level = sigma[:, None, None, None, None]
    noisy = (latents + level * noise) / np.sqrt(1 + level**2)
    inputs, time = np.concatenate([noisy, condition], axis=-1), np.log(sigma) / 4
    v = (noise - level * latents) / np.sqrt(1 + level**2)
    for i in range(2):
        one = slice(i, i + 1)
        predicted = oracle(
            channels_first(inputs[one]),
            torch.tensor(time[i]),
            torch.from_numpy(context[one]),
            torch.from_numpy(micro[one]),
        ).sample
        (torch.mean((predicted - channels_first(v[one])) ** 2) / 2).backward()

    graphdef = abstract_module(UNet, config)[0]

    @jax.jit
    @jax.grad
    def gradient(params, latents, noise, condition, context, micro, sigma):
        level = sigma[:, None, None, None, None]
        inputs = diffusion.scale_model_input(diffusion.add_noise(latents, noise, level), level)
        inputs = jnp.concatenate([inputs, condition], axis=-1)
        unet = nnx.merge(graphdef, params)
        predicted = unet(inputs, diffusion.c_noise(sigma), context[:, None], micro, remat=True)
        return jnp.mean((predicted - diffusion.v_target(latents, noise, level)) ** 2)

    gradients = flatten(gradient(params_of(UNet, config, oracle), latents, noise, condition, context, micro, sigma))
    expected = flatten(gradients_of(UNet, config, oracle))
    norms = {name: np.linalg.norm(x) for name, x in expected.items()}
    # A channel alone in its norm's group has a gradient of zero up to rounding.
    rounding = 1e-6 * max(norms.values())
    assert sum(norm > rounding for norm in norms.values()) > 0.9 * len(norms)
    for name, x in gradients.items():
        assert np.linalg.norm(x - expected[name]) <= 1e-3 * norms[name] + rounding, name
