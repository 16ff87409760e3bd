"""The environment encoder: three environment images to one map of lighting features per UNet level.

Liang et al. 2025, section 4.1. It encodes each frame on its own, by blocks of the VAE's encoder.
"""

import itertools

import jax
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from drender.config import EnvEncoderConfig
from drender.models.layers import Conv, Downsample, maybe_remat
from drender.models.vae import image_level

STEM_CHANNELS = (16, 32, 96, 256)


class PixelStem(nnx.Module):
    """Shrink pixels to an eighth by convolutions, each but the last with a SiLU (for `latent_encoder: false`)."""

    def __init__(self, inputs: int, outputs: int):
        self.conv_in = Conv(inputs, STEM_CHANNELS[0])
        self.blocks = nnx.List()
        for before, after in itertools.pairwise(STEM_CHANNELS):
            self.blocks += [Conv(before, before), Conv(before, after, stride=2)]
        self.conv_out = Conv(STEM_CHANNELS[-1], outputs)

    def __call__(self, x: Float[Array, "rows h w c"]) -> Float[Array, "rows h8 w8 c2"]:
        for layer in (self.conv_in, *self.blocks):
            x = jax.nn.silu(layer(x))
        return self.conv_out(x)


class EnvEncoder(nnx.Module):
    """A convolution, then residual blocks per level, whose output is that level's context.

    Unlike the VAE's, these blocks pad on all sides when they downsample, and the first level does not downsample.
    """

    silu_after_stem = False

    def __init__(self, config: EnvEncoderConfig):
        channels, groups = config.channels, config.norm_num_groups
        stem = Conv if config.latent_encoder else PixelStem
        self.conv_in = stem(config.in_channels, channels[0])
        self.down_blocks = nnx.List()
        for i, outputs in enumerate(channels):
            self.down_blocks.append(image_level(channels[max(i - 1, 0)], outputs, config.num_res_blocks, groups))
            if i:
                self.down_blocks[i].downsamplers.append(Downsample(outputs))

    def __call__(self, x: Float[Array, "b f h w c"], remat: bool = False) -> list[Float[Array, "b f u e"]]:
        """Return tokens per level, the context of the UNet; each level has a quarter of the tokens of the one before.

        Args:
          x: latents of the environment images × scaling factor (or their pixels in [−1, 1]), concatenated in channels
            in the order of `in_labels`.
        """
        return [rearrange(level, "b f h w e -> b f (h w) e") for level in self.features(x, remat)]

    def features(self, x: Float[Array, "b f h w c"], remat: bool = False) -> list[Float[Array, "b f _ _ e"]]:
        """Return feature maps per level, as `__call__` but not flattened to tokens."""
        f = x.shape[1]
        x = self.conv_in(rearrange(x, "b f h w c -> (b f) h w c"))
        x = jax.nn.silu(x) if self.silu_after_stem else x
        levels = []
        for block in self.down_blocks:
            for layer in (*block.resnets, *block.downsamplers):
                x = maybe_remat(layer, remat)(x)
            levels.append(rearrange(x, "(b f) h w c -> b f h w c", f=f))
        return levels
