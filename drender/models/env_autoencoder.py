"""What the environment encoder is trained with, as an auto-encoder, and dropped afterwards (Liang et al. 2025, 4.1).

The loss is ‖h − D(E(h), E_dir(n))‖²: `EnvEncoder` E takes the latents of the environment images, `DirectionEncoder`
E_dir those of `env_nrm`, the direction that each pixel sees; `EnvDecoder` D asks E's features what light comes from
E_dir's directions, and answers with the latents h of the light's images. So E has to say where the light is.

All three are made of the configuration of E. Shapes: b batch, f frames, h w grid of a level, c channels of a level.
"""

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from drender.config import EnvEncoderConfig
from drender.errors import InputError
from drender.models.attention import Attention, FeedForward, layer_norm
from drender.models.env_encoder import EnvEncoder
from drender.models.layers import ResnetBlock, Upsample, call, conv, group_norm, maybe_remat
from drender.models.params import ParamRngs
from drender.models.vae import EPS

DIRECTIONS = "env_nrm"
HEAD_SIZE = 64


def latent_channels(config: EnvEncoderConfig) -> int:
    """Channels of one image's latent; InputError for an encoder of pixels."""
    if not config.latent_encoder:
        raise InputError(
            "env_encoder.latent_encoder is false; only an encoder of latents can be trained alone: set it to true"
        )
    return config.in_channels // len(config.in_labels)


class DirectionEncoder(EnvEncoder):
    """E_dir: the environment encoder on one latent, with a SiLU after its first convolution."""

    def __init__(self, config: EnvEncoderConfig, *, rngs: ParamRngs):
        super().__init__(dataclasses.replace(config, in_channels=latent_channels(config)), rngs=rngs)

    def stem(self, x: Float[Array, "rows h w c"]) -> Float[Array, "rows h w c2"]:
        return jax.nn.silu(self.conv_in(x))


class LightTransformer(nnx.Module):
    """Cross-attention from directions to light, within a frame, and a feed-forward; no self-attention."""

    def __init__(self, channels: int, groups: int, *, rngs: ParamRngs):
        # Heads of 64 channels, or as near to it as divides them.
        heads = next(n for n in range(max(1, channels // HEAD_SIZE), 0, -1) if channels % n == 0)
        self.norm = group_norm(channels, groups, EPS, rngs=rngs)
        self.proj_in = nnx.Linear(channels, channels, rngs=rngs)
        self.norm2 = layer_norm(channels, rngs=rngs)
        self.attn2 = Attention(channels, heads, channels, rngs=rngs)
        self.norm3 = layer_norm(channels, rngs=rngs)
        self.ff = FeedForward(channels, rngs=rngs)
        self.proj_out = nnx.Linear(channels, channels, rngs=rngs)

    def __call__(
        self, directions: Float[Array, "rows h w c"], light: Float[Array, "rows h w c"]
    ) -> Float[Array, "rows h w c"]:
        tokens = lambda x: rearrange(x, "r h w c -> r (h w) c")
        y = self.proj_in(tokens(self.norm(directions)))
        y = y + self.attn2(self.norm2(y), tokens(light))
        y = y + self.ff(self.norm3(y))
        return directions + self.proj_out(y).reshape(directions.shape)


class UpBlock(nnx.Module):
    """Residual blocks, then the size of the next finer level."""

    def __init__(self, inputs: int, outputs: int, config: EnvEncoderConfig, upsample: bool, *, rngs: ParamRngs):
        channels = [inputs] + [outputs] * (config.num_res_blocks - 1)
        groups = config.norm_num_groups
        self.resnets = nnx.List([ResnetBlock(c, outputs, None, groups, EPS, rngs=rngs) for c in channels])
        self.upsamplers = nnx.List([Upsample(outputs, rngs=rngs)] if upsample else [])

    def __call__(self, x: Float[Array, "rows h w c"], size: tuple[int, int], remat: bool) -> Float[Array, "rows _ _ _"]:
        for resnet in self.resnets:
            x = maybe_remat(call, remat)(resnet, x)
        for upsample in self.upsamplers:
            x = upsample(x, size)
        return x


class EnvDecoder(nnx.Module):
    """D: from the coarsest level to the finest, the light from each direction, added to what is known of it."""

    def __init__(self, config: EnvEncoderConfig, *, rngs: ParamRngs):
        images = [label for label in config.in_labels if label != DIRECTIONS]
        channels, groups = config.channels[::-1], config.norm_num_groups
        finer = [*channels[1:], channels[-1]]
        self.transformers = nnx.List([LightTransformer(c, groups, rngs=rngs) for c in channels])
        self.up_blocks = nnx.List(
            [
                UpBlock(c, outputs, config, i < len(channels) - 1, rngs=rngs)
                for i, (c, outputs) in enumerate(zip(channels, finer, strict=True))
            ]
        )
        self.conv_1 = conv(channels[-1], channels[-1], rngs=rngs)
        self.conv_out = conv(channels[-1], len(images) * latent_channels(config), rngs=rngs)

    def __call__(
        self, light: list[Float[Array, "b f _ _ _"]], directions: list[Float[Array, "b f _ _ _"]], remat: bool = False
    ) -> Float[Array, "b f h w c"]:
        """Latents of the environment images but `env_nrm`, × scaling factor, in the order of `in_labels`; float32.

        Args:
          light, directions: `features` of E and of E_dir, from the finest level to the coarsest.
          remat: compute the inside of every layer again in the backward pass.
        """
        f, apply = light[0].shape[1], maybe_remat(call, remat)
        rows = lambda levels: [rearrange(x, "b f h w c -> (b f) h w c") for x in levels[::-1]]
        finer = [level.shape[2:4] for level in (light[0], *light[:-1])][::-1]
        x = 0
        for transformer, block, found, asked, size in zip(
            self.transformers, self.up_blocks, rows(light), rows(directions), finer, strict=True
        ):
            x = block(x + apply(transformer, asked, found), size, remat)
        x = self.conv_out(jax.nn.silu(self.conv_1(x)))
        return rearrange(x, "(b f) h w c -> b f h w c", f=f).astype(jnp.float32)
