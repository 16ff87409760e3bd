"""Counted operations against exact arithmetic, PyTorch's counter, and the published size of the networks."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from helpers.oracles import diffusers, torch

from drender.config import EnvEncoderConfig, RendererConfig, VAEConfig
from drender.models.env_encoder import EnvEncoder
from drender.models.params import abstract_module
from drender.models.unet import UNet
from drender.models.vae import VAE
from drender.training import flops, init


def array(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def convolve(x, kernel, stride=1, groups=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(1, 1), (1, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


X, W = array(5, 7), array(7, 7)
PRODUCT = 2 * 5 * 7 * 7


@pytest.mark.parametrize(
    ("fn", "arguments", "expected"),
    [
        (lambda x, w: jnp.sin(x @ w), (X, W), PRODUCT),
        (lambda x: jnp.einsum("bhqd,bhkd->bhqk", x, x), (array(2, 3, 5, 8),), 2 * 2 * 3 * 5 * 5 * 8),
        (convolve, (array(2, 6, 4, 3), array(3, 3, 3, 8)), 2 * (2 * 6 * 4 * 8) * (3 * 9)),
        (lambda x, w: convolve(x, w, stride=2), (array(2, 6, 4, 3), array(3, 3, 3, 8)), 2 * (2 * 3 * 2 * 8) * (3 * 9)),
        (lambda x, w: convolve(x, w, groups=2), (array(2, 6, 4, 6), array(3, 3, 3, 8)), 2 * (2 * 6 * 4 * 8) * (3 * 9)),
        (jax.jit(lambda x, w: jax.jit(jnp.matmul)(x, w) @ w), (X, W), 2 * PRODUCT),
        (lambda x, w: jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=11)[0], (X, W), 11 * PRODUCT),
        (lambda x, w: jax.lax.map(lambda row: row @ w, x, batch_size=2), (X, W), PRODUCT),
        (lambda x, w: jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w), (X, W), 2 * PRODUCT),
        (lambda x, w: jax.lax.platform_dependent(x, cpu=lambda x: x, default=lambda x: x @ w), (X, W), PRODUCT),
        (lambda x, w: jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ w, x), (X, W), PRODUCT),
        # Backward, two products more; the forward one once more where it is not kept.
        (jax.grad(lambda x, w: jnp.sum(jnp.sin(x @ w)), (0, 1)), (X, W), 3 * PRODUCT),
        (jax.grad(jax.checkpoint(lambda x, w: jnp.sum(jnp.sin(x @ w))), (0, 1)), (X, W), 4 * PRODUCT),
        (lambda x: x + 1, (X,), 0),
    ],
)  # fmt: skip
def test_arithmetic(fn, arguments, expected):
    assert flops.count(fn, *arguments) == expected


@pytest.mark.oracle
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_convolutions_match_torch(stride):
    gradient = jax.grad(lambda x, w: jnp.sum(convolve(x, w, stride) ** 2), (0, 1))
    x, w = torch.ones(2, 6, 8, 12, requires_grad=True), torch.ones(10, 6, 3, 3, requires_grad=True)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        (torch.nn.functional.conv2d(x, w, stride=stride, padding=1) ** 2).sum().backward()
    assert flops.count(gradient, array(2, 8, 12, 6), array(3, 3, 6, 10)) == counter.get_total_flops()


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_grouped_convolutions_triple_the_count(stride):
    """As PyTorch computes and miscounts them."""
    call = lambda x, w: jnp.sum(convolve(x, w, stride, groups=2) ** 2)
    arguments = array(2, 8, 12, 6), array(3, 3, 3, 10)
    assert flops.count(jax.grad(call, (0, 1)), *arguments) == 3 * flops.count(call, *arguments)


@pytest.mark.oracle
def test_vae_matches_diffusers():
    options = {"block_out_channels": (32, 64), "layers_per_block": 1}
    oracle = diffusers.AutoencoderKLTemporalDecoder(**options, down_block_types=("DownEncoderBlock2D",) * 2)
    images = torch.zeros(3, 3, 16, 24)
    # PyTorch does not count its fused attention for CPUs.
    with (
        torch.no_grad(),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        torch.utils.flop_counter.FlopCounterMode(display=False) as counter,
    ):
        oracle.decode(oracle.encode(images).latent_dist.mode(), num_frames=3)
    graphdef, params = abstract_module(VAE, VAEConfig(**options))

    def autoencode(params, images):
        vae = nnx.merge(graphdef, params)
        return vae.decode(vae.encode(images))

    assert flops.count(autoencode, params, array(1, 3, 16, 24, 3)) == counter.get_total_flops()


LEVELS = [array(1, 24, tokens, width) for tokens, width in ((4096, 320), (1024, 640), (256, 1280), (64, 1280))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "config", "method", "arguments", "tera"),
    [
        # A context of one token, which needs no attention, saves 1.2 of 30.4.
        (UNet, "inverse", "__call__", (array(1, 24, 64, 64, 8), array(1), array(1, 1, 2, 1024), array(1, 3)), 30.4),
        (UNet, "inverse", "__call__", (array(1, 24, 64, 64, 8), array(1), array(1, 1, 1, 1024), array(1, 3)), 29.2),
        (UNet, "forward", "__call__", (array(1, 24, 64, 64, 24), array(1), LEVELS, array(1, 3)), 33.3),
        (VAE, "vae", "encode", (array(1, 24, 512, 512, 3),), 26.8),
        (VAE, "vae", "decode", (array(1, 24, 64, 64, 4),), 73.0),
        (EnvEncoder, "env_encoder", "__call__", (array(1, 24, 64, 64, 12),), 7.0),
    ],
    ids=["inverse", "inverse with one token", "forward", "encode", "decode", "environment"],
)
def test_full_size_networks_on_24_frames_of_512(cls, config, method, arguments, tera):
    """In TFLOP, against counts of the released networks."""
    if cls is UNet:
        config = init.renderer_config(config, RendererConfig("svd")).unet
    else:
        config = {"vae": VAEConfig(), "env_encoder": EnvEncoderConfig()}[config]
    graphdef, params = abstract_module(cls, config)
    call = lambda params, *arguments: getattr(nnx.merge(graphdef, params), method)(*arguments)
    assert flops.count(call, params, *arguments) / 1e12 == pytest.approx(tera, abs=0.06)
