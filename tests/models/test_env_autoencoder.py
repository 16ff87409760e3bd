"""The autoencoder that trains the environment encoder: shapes, dependence on its inputs, and training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import small

from drender.config import EnvEncoderConfig
from drender.errors import InputError
from drender.models.params import abstract_module
from drender.models.registry import AUXILIARY_NETWORKS, NETWORKS
from drender.training import init

# The three networks that the environment objective trains, all configured as the encoder is.
AUTOENCODER = {"env_encoder": NETWORKS["env_encoder"], **AUXILIARY_NETWORKS}
CONFIG = EnvEncoderConfig(channels=(32, 64), num_res_blocks=1)


def reconstruct(params: dict, maps: jax.Array, config: EnvEncoderConfig = CONFIG, remat: bool = False) -> jax.Array:
    """Return D(E(h), E_dir(n)) for three latents of four channels each."""
    networks = {name: nnx.merge(abstract_module(cls, config)[0], params[name]) for name, cls in AUTOENCODER.items()}
    light, directions = networks["env_encoder"], networks["nrm_encoder"]
    features = light.features(maps, remat), directions.features(maps[..., 8:], remat)
    return networks["env_decoder"](*features, remat)


def maps(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((*shape, 12)), jnp.float32)


@pytest.fixture(scope="module")
def params():
    return {name: small.random_params(cls, CONFIG) for name, cls in AUTOENCODER.items()}


def test_full_size_decoder_has_the_published_layout():
    """Channels from coarse to fine, heads of 64 channels, and the latents of two images as output."""
    config = EnvEncoderConfig()
    shapes = {name: abstract_module(cls, config)[1] for name, cls in AUTOENCODER.items()}
    decoder = shapes["env_decoder"]
    assert [block["norm"]["scale"].shape[0] for block in decoder["transformers"].values()] == [1280, 1280, 640, 320]
    blocks = decoder["up_blocks"].values()
    assert [[r["conv2"]["kernel"].shape[3] for r in b["resnets"].values()] for b in blocks] == [
        [1280] * 2, [640] * 2, [320] * 2, [320] * 2
    ]  # fmt: skip
    assert ["upsamplers" in block for block in blocks] == [True, True, True, False]
    heads = [
        t.attn2.heads for t in nnx.merge(abstract_module(AUTOENCODER["env_decoder"], config)[0], decoder).transformers
    ]
    assert heads == [20, 20, 10, 5]
    assert shapes["nrm_encoder"]["conv_in"]["kernel"].shape == (3, 3, 4, 320)
    output = jax.eval_shape(lambda params, x: reconstruct(params, x, config), shapes, jnp.zeros((1, 2, 64, 64, 12)))
    assert (output.shape, output.dtype) == ((1, 2, 64, 64, 8), jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(8, 8), (5, 7)])
def test_frames_are_independent_and_sides_may_be_odd(params, size):
    x = maps(2, 3, *size)
    call = jax.jit(reconstruct)
    output = call(params, x)
    assert output.shape == (2, 3, *size, 8)
    alone = call(params, x[1:, 2:])
    np.testing.assert_allclose(output[1:, 2:], alone, atol=1e-4)


def test_output_depends_on_light_and_directions(params):
    call = jax.jit(reconstruct)
    x = maps(1, 1, 8, 8)
    for channels in (slice(0, 4), slice(4, 8), slice(8, 12)):
        assert np.abs(call(params, x.at[..., channels].set(0)) - call(params, x)).max() > 1e-3


@pytest.mark.slow
def test_tiny_autoencoder_learns():
    """From initial parameters, on one sample, with rematerialization as in full-size training."""
    params = {name: init.init_params(cls, CONFIG, seed=0) for name, cls in AUTOENCODER.items()}
    x, optimizer = maps(1, 2, 8, 8), optax.adam(2e-3)

    @jax.jit
    def step(params, state):
        loss = lambda params: jnp.mean((reconstruct(params, x, remat=True) - x[..., :8]) ** 2)
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for _ in range(30):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("name", ["nrm_encoder", "env_decoder"])
def test_pixel_encoders_are_rejected(name):
    with pytest.raises(InputError, match=r"env_encoder.latent_encoder is false; .* set it to true"):
        abstract_module(AUTOENCODER[name], dataclasses.replace(CONFIG, latent_encoder=False, in_channels=9))
