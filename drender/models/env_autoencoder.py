"""The rest of the autoencoder that trains the environment encoder; dropped afterwards (Liang et al. 2025, section 4.1).

The loss is mean (h − D(E(h, n), E_dir(n)))². h are the latents of `env_ldr` and `env_log`, the light from each
direction, and n those of `env_nrm`, the direction that each pixel sees. `EnvDecoder` D queries the features of
`EnvEncoder` E with those of `DirectionEncoder` E_dir, and returns h. So E must encode where light comes from.

All three are configured by E's `EnvEncoderConfig`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from drender.config import EnvEncoderConfig
from drender.errors import InputError
from drender.models.attention import Attention
from drender.models.env_encoder import EnvEncoder
from drender.models.layers import Conv, GroupNorm, LayerNorm, Linear, Upsample, maybe_remat
from drender.models.transformer import FeedForward
from drender.models.vae import image_level

DIRECTIONS = "env_nrm"
HEAD_SIZE = 64


def latent_channels(config: EnvEncoderConfig) -> int:
    """Return the channels of one image's latent; raise InputError for an encoder of pixels."""
    if not config.latent_encoder:
        problem = "only an encoder of latents can be trained alone"
        raise InputError(f"env_encoder.latent_encoder is false; {problem}: set it to true")
    return config.in_channels // len(config.in_labels)


class DirectionEncoder(EnvEncoder):
    """E_dir: the environment encoder on one latent, with a SiLU after its first convolution."""

    silu_after_stem = True

    def __init__(self, config: EnvEncoderConfig):
        super().__init__(dataclasses.replace(config, in_channels=latent_channels(config)))


class LightTransformer(nnx.Module):
    """Cross-attention from directions to light within a frame, and a feed-forward; no self-attention."""

    def __init__(self, channels: int, groups: int):
        # Heads of 64 channels, or the next larger size that divides the channels.
        heads = next(n for n in range(max(1, channels // HEAD_SIZE), 0, -1) if channels % n == 0)
        self.norm = GroupNorm(channels, groups)
        self.proj_in = Linear(channels, channels)
        self.norm2 = LayerNorm(channels)
        self.attn2 = Attention(channels, heads, channels)
        self.norm3 = LayerNorm(channels)
        self.ff = FeedForward(channels)
        self.proj_out = Linear(channels, channels)

    def __call__(
        self, directions: Float[Array, "rows h w c"], light: Float[Array, "rows h w c"]
    ) -> Float[Array, "rows h w c"]:
        flat = "rows h w c -> rows (h w) c"
        y = self.proj_in(rearrange(self.norm(directions), flat))
        y = y + self.attn2(self.norm2(y), rearrange(light, flat))
        y = y + self.ff(self.norm3(y))
        return directions + rearrange(self.proj_out(y), "rows (h w) c -> rows h w c", h=directions.shape[1])


class EnvDecoder(nnx.Module):
    """D: the light from each direction, added up from the coarsest level to the finest."""

    def __init__(self, config: EnvEncoderConfig):
        channels, groups = config.channels[::-1], config.norm_num_groups
        self.transformers = nnx.List([LightTransformer(c, groups) for c in channels])
        self.up_blocks = nnx.List()
        for i, outputs in enumerate([*channels[1:], channels[-1]]):
            self.up_blocks.append(image_level(channels[i], outputs, config.num_res_blocks, groups))
            if i < len(channels) - 1:
                self.up_blocks[i].upsamplers.append(Upsample(outputs))
        self.conv_1 = Conv(channels[-1], channels[-1])
        num_images = sum(label != DIRECTIONS for label in config.in_labels)
        self.conv_out = Conv(channels[-1], num_images * latent_channels(config))

    def __call__(
        self, light: list[Float[Array, "b f _ _ _"]], directions: list[Float[Array, "b f _ _ _"]], remat: bool = False
    ) -> Float[Array, "b f h w c"]:
        """Return the latents × scaling factor, float32, of `env_ldr`, then of `env_log`.

        Args:
          light, directions: `features` of E and of E_dir, from the finest level to the coarsest.
        """
        f = light[0].shape[1]
        frames = lambda x: rearrange(x, "b f h w c -> (b f) h w c")
        coarse_to_fine = reversed(range(len(light)))
        x = 0
        for transformer, block, level in zip(self.transformers, self.up_blocks, coarse_to_fine, strict=True):
            x = x + maybe_remat(transformer, remat)(frames(directions[level]), frames(light[level]))
            for resnet in block.resnets:
                x = maybe_remat(resnet, remat)(x)
            for upsample in block.upsamplers:
                x = upsample(x, light[level - 1].shape[2:4])
        x = self.conv_out(jax.nn.silu(self.conv_1(x)))
        return rearrange(x, "(b f) h w c -> b f h w c", f=f).astype(jnp.float32)
