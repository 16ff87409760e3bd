"""The environment encoder against diffusers' blocks, and its pixel stem against PyTorch's convolutions."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import small
from helpers.oracles import array, channels_first, diffusers, network, params_of, randomized, torch

from drender.config import EnvEncoderConfig
from drender.models.env_encoder import EnvEncoder
from drender.models.params import abstract_module


@pytest.mark.oracle
def test_encoder_equals_diffusers_blocks():
    torch.manual_seed(0)
    config = EnvEncoderConfig(channels=(32, 64), num_res_blocks=2)
    blocks = [
        diffusers.models.unets.unet_2d_blocks.DownEncoderBlock2D(before, after, num_layers=2, add_downsample=i > 0)
        for i, (before, after) in enumerate([(32, 32), (32, 64)])
    ]
    oracle = torch.nn.Module()
    oracle.conv_in, oracle.down_blocks = torch.nn.Conv2d(12, 32, 3, padding=1), torch.nn.ModuleList(blocks)
    randomized(oracle)
    maps = array(1, 2, 8, 6, 12)
    tokens = network(EnvEncoder, config, params_of(EnvEncoder, config, oracle))(maps)
    with torch.no_grad():
        x = oracle.conv_in(channels_first(maps)[0])
        for block, level in zip(blocks, tokens, strict=True):
            x = block(x)
            np.testing.assert_allclose(level[0], x.flatten(2).mT.numpy(), atol=1e-4)


@pytest.mark.oracle
def test_pixel_stem_equals_torch_and_shrinks_by_eight():
    config = EnvEncoderConfig(in_channels=9, channels=(32, 64), latent_encoder=False)
    params = small.random_params(EnvEncoder, config)
    oracle = torch.nn.Sequential()
    for name in ("conv_in", *(f"blocks.{i}" for i in range(6)), "conv_out"):
        branch = functools.reduce(lambda tree, key: tree[key], map(_key, name.split(".")), params["conv_in"])
        kernel = branch["kernel"]
        conv = torch.nn.Conv2d(
            *kernel.shape[2:], 3, stride=2 if name in ("blocks.1", "blocks.3", "blocks.5") else 1, padding=1
        )
        conv.weight.data, conv.bias.data = (
            torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()),
            torch.from_numpy(branch["bias"]),
        )
        oracle.extend([conv, torch.nn.SiLU()])
    maps = array(1, 1, 32, 16, 9)
    with torch.no_grad():
        expected = oracle[:-1](channels_first(maps)[0])
    stem = jax.jit(lambda params, x: nnx.merge(abstract_module(EnvEncoder, config)[0], params).conv_in(x))(
        params, maps[0]
    )
    np.testing.assert_allclose(np.moveaxis(np.asarray(stem), -1, 1), expected.numpy(), atol=1e-4)
    assert stem.shape == (1, 4, 2, 32)


def _key(part: str) -> str | int:
    return int(part) if part.isdecimal() else part
