"""The video autoencoder: frames to latents one by one, and back by a decoder that couples them in time.

It is Stable Video Diffusion's (`AutoencoderKLTemporalDecoder` in diffusers).
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from drender.config import VAEConfig
from drender.models.attention import Attention
from drender.models.layers import (
    Conv,
    Downsample,
    GroupNorm,
    Level,
    ResnetBlock,
    SpatioTemporalResBlock,
    Upsample,
    maybe_remat,
)


class FrameAttention(Attention):
    """Self-attention with one head over all positions of a frame, with norm and residual."""

    def __init__(self, channels: int, groups: int):
        super().__init__(channels, heads=1, bias=True)
        self.group_norm = GroupNorm(channels, groups)

    def __call__(self, x: Float[Array, "rows h w c"]) -> Float[Array, "rows h w c"]:
        out = super().__call__(rearrange(self.group_norm(x), "rows h w c -> rows (h w) c"))
        return x + rearrange(out, "rows (h w) c -> rows h w c", h=x.shape[1])


def image_level(inputs: int, outputs: int, num_layers: int, groups: int) -> Level:
    """Return residual blocks over images, of which the first changes the channels."""
    channels = [inputs] + [outputs] * (num_layers - 1)
    return Level([ResnetBlock(c, outputs, groups, eps=1e-6, time_channels=None) for c in channels])


class Encoder(nnx.Module):
    """Images to the moments of their latents, before `quant_conv`."""

    def __init__(self, config: VAEConfig):
        levels, groups, num_layers = config.block_out_channels, config.norm_num_groups, config.layers_per_block
        self.conv_in = Conv(config.in_channels, levels[0])
        self.down_blocks = nnx.List()
        for i, outputs in enumerate(levels):
            self.down_blocks.append(image_level(levels[max(i - 1, 0)], outputs, num_layers, groups))
            if i < len(levels) - 1:
                self.down_blocks[i].downsamplers.append(Downsample(outputs, one_sided=True))
        self.mid_block = image_level(levels[-1], levels[-1], 2, groups)
        self.mid_block.attentions.append(FrameAttention(levels[-1], groups))
        self.conv_norm_out = GroupNorm(levels[-1], groups)
        self.conv_out = Conv(levels[-1], 2 * config.latent_channels)

    def __call__(self, x: Float[Array, "rows h w c"], remat: bool) -> Float[Array, "rows h2 w2 c2"]:
        mid, output = self.mid_block, lambda x: self.conv_out(jax.nn.silu(self.conv_norm_out(x)))
        layers = [layer for block in self.down_blocks for layer in (*block.resnets, *block.downsamplers)]
        x = self.conv_in(x)
        for layer in (*layers, mid.resnets[0], mid.attentions[0], mid.resnets[1], output):
            x = maybe_remat(layer, remat)(x)
        return x


class TemporalDecoder(nnx.Module):
    """Latents to images, with residual blocks over time and a last convolution over time."""

    def __init__(self, config: VAEConfig):
        levels, groups, num_layers = config.block_out_channels[::-1], config.norm_num_groups, config.layers_per_block
        resnet = functools.partial(
            SpatioTemporalResBlock, groups=groups, eps=1e-6, temporal_eps=1e-5, weighs_temporal=True
        )
        self.conv_in = Conv(config.latent_channels, levels[0])
        mid_resnets = [resnet(levels[0], levels[0]) for _ in range(num_layers)]
        self.mid_block = Level(mid_resnets, [FrameAttention(levels[0], groups)])
        self.up_blocks = nnx.List()
        for i, outputs in enumerate(levels):
            resnets = [resnet(c, outputs) for c in [levels[max(i - 1, 0)]] + [outputs] * num_layers]
            self.up_blocks.append(Level(resnets))
            if i < len(levels) - 1:
                self.up_blocks[i].upsamplers.append(Upsample(outputs))
        self.conv_norm_out = GroupNorm(levels[-1], groups)
        self.conv_out = Conv(levels[-1], config.out_channels)
        self.time_conv_out = Conv(config.out_channels, config.out_channels, (3, 1))

    def __call__(self, z: Float[Array, "b f h w c"], remat: bool, image_only: bool) -> Float[Array, "b f h2 w2 c2"]:
        f, mid = z.shape[1], self.mid_block
        resnet = maybe_remat(lambda layer, x: layer(x, image_only=image_only or None), remat)
        apply = maybe_remat(lambda layer, x: layer(x), remat)
        x = resnet(mid.resnets[0], self.conv_in(z))
        # As in SVD, the one attention is zipped with the residual blocks after the first: those beyond two are unused.
        for attention, layer in zip(mid.attentions, mid.resnets[1:], strict=False):
            x = apply(attention, rearrange(x, "b f h w c -> (b f) h w c"))
            x = resnet(layer, rearrange(x, "(b f) h w c -> b f h w c", f=f))
        for block in self.up_blocks:
            for layer in block.resnets:
                x = resnet(layer, x)
            for layer in block.upsamplers:
                x = apply(layer, x)
        h = x.shape[2]
        x = rearrange(x, "b f h w c -> (b f) h w c")
        x = maybe_remat(lambda x: self.conv_out(jax.nn.silu(self.conv_norm_out(x))), remat)(x)
        # Unrelated images are clips of one frame each.
        x = self.time_conv_out(rearrange(x, "(clips f) h w c -> clips f (h w) c", f=1 if image_only else f))
        return rearrange(x, "(b r) f (h w) c -> b (r f) h w c", b=len(z), h=h)


class VAE(nnx.Module):
    """Encode and decode unscaled latents; callers apply `scaling_factor`.

    With `remat`, the backward pass recomputes every layer.
    """

    def __init__(self, config: VAEConfig):
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = TemporalDecoder(config)
        self.quant_conv = Conv(2 * config.latent_channels, 2 * config.latent_channels, (1, 1))

    def moments(
        self, x: Float[Array, "b f h w 3"], remat: bool = False
    ) -> tuple[Float[Array, "b f h2 w2 c"], Float[Array, "b f h2 w2 c"]]:
        """Return mean and log-variance (clipped to [−30, 20]), float32, of the latents of images in [−1, 1]."""
        moments = self.quant_conv(self.encoder(rearrange(x, "b f h w c -> (b f) h w c"), remat)).astype(jnp.float32)
        mean, log_variance = jnp.split(rearrange(moments, "(b f) h w c -> b f h w c", b=len(x)), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30, 20)

    def encode(self, x: Float[Array, "b f h w 3"], remat: bool = False) -> Float[Array, "b f h2 w2 c"]:
        """Return the posterior mean, float32, of images in [−1, 1]; frames are independent."""
        return self.moments(x, remat)[0]

    def decode(
        self, z: Float[Array, "b f h w c"], remat: bool = False, image_only: bool = False
    ) -> Float[Array, "b f h2 w2 3"]:
        """Return images, float32, in about [−1, 1]; all frames of a clip are decoded together.

        Args:
          image_only: treat frames as unrelated images, without computing the temporal branches.
        """
        return self.decoder(z, remat, image_only).astype(jnp.float32)
