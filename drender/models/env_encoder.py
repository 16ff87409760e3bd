"""The environment encoder: latents of the three environment images to one map of light features per UNet level."""

import itertools

import jax
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from drender.config import EnvEncoderConfig
from drender.models.layers import conv, strided_conv
from drender.models.params import ParamRngs
from drender.models.vae import DownEncoderBlock

STEM_CHANNELS = (16, 32, 96, 256)


class PixelStem(nnx.Module):
    """For `latent_encoder: false`: pixels to an eighth of their size, by plain and stride-2 convolutions."""

    def __init__(self, inputs: int, outputs: int, *, rngs: ParamRngs):
        self.conv_in = conv(inputs, STEM_CHANNELS[0], rngs=rngs)
        blocks = []
        for before, after in itertools.pairwise(STEM_CHANNELS):
            blocks += [conv(before, before, rngs=rngs), strided_conv(before, after, rngs=rngs)]
        self.blocks = nnx.List(blocks)
        self.conv_out = conv(STEM_CHANNELS[-1], outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "rows h w c"]) -> Float[Array, "rows h8 w8 c2"]:
        for layer in (self.conv_in, *self.blocks):
            x = jax.nn.silu(layer(x))
        return self.conv_out(x)


class EnvEncoder(nnx.Module):
    """Per frame: a convolution, then one `DownEncoderBlock` per level; every level's output is a level of context."""

    def __init__(self, config: EnvEncoderConfig, *, rngs: ParamRngs):
        self.config = config
        channels = config.channels
        stem = conv if config.latent_encoder else PixelStem
        self.conv_in = stem(config.in_channels, channels[0], rngs=rngs)
        self.down_blocks = nnx.List(
            [
                DownEncoderBlock(
                    channels[max(i - 1, 0)],
                    c,
                    config.num_res_blocks,
                    config.norm_num_groups,
                    i > 0,
                    one_sided=False,
                    rngs=rngs,
                )
                for i, c in enumerate(channels)
            ]
        )

    def __call__(self, x: Float[Array, "b f h w c"], remat: bool = False) -> list[Float[Array, "b f n e"]]:
        """One array of tokens per level; n falls by four from level to level.

        Args:
          x: the environment images' latents × scaling factor (or their pixels in [−1, 1]), concatenated in the order of
            `in_labels`.
          remat: compute the inside of every layer again in the backward pass.
        """
        return [rearrange(level, "b f h w e -> b f (h w) e") for level in self.features(x, remat)]

    def features(self, x: Float[Array, "b f h w c"], remat: bool = False) -> list[Float[Array, "b f _ _ e"]]:
        """As `__call__`, with the tokens where they are in the image."""
        f = x.shape[1]
        x = rearrange(x.astype(self.down_blocks[0].resnets[0].conv1.kernel[...].dtype), "b f h w c -> (b f) h w c")
        x = self.stem(x)
        levels = []
        for block in self.down_blocks:
            x = block(x, remat)
            levels.append(rearrange(x, "(b f) h w c -> b f h w c", f=f))
        return levels

    def stem(self, x: Float[Array, "rows h w c"]) -> Float[Array, "rows h2 w2 c2"]:
        return self.conv_in(x)
