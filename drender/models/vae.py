"""The video autoencoder: frames to latents one by one, and back by a decoder that couples them in time.

It is Stable Video Diffusion's (`AutoencoderKLTemporalDecoder` in diffusers).
"""

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
    ResnetBlock,
    SpatioTemporalResBlock,
    Upsample,
    maybe_remat,
)

EPS = 1e-6
TEMPORAL_EPS = 1e-5


class FrameAttention(Attention):
    """Self-attention with one head over all positions of a frame, with norm and residual."""

    def __init__(self, channels: int, groups: int):
        super().__init__(channels, heads=1, bias=True)
        self.group_norm = GroupNorm(channels, groups, EPS)

    def __call__(self, x: Float[Array, "rows h w c"]) -> Float[Array, "rows h w c"]:
        out = super().__call__(rearrange(self.group_norm(x), "rows h w c -> rows (h w) c"))
        return x + rearrange(out, "rows (h w) c -> rows h w c", h=x.shape[1])


def _output(norm: GroupNorm, conv_out: Conv, x: Float[Array, "rows h w c"]) -> Float[Array, "rows h w c2"]:
    return conv_out(jax.nn.silu(norm(x)))


# --- encoder ---------------------------------------------------------------------------------------------------------


class DownEncoderBlock(nnx.Module):
    """Residual blocks; then the grid is halved if `downsample`; `one_sided` as in `Conv`."""

    def __init__(
        self, inputs: int, outputs: int, num_layers: int, groups: int, downsample: bool, one_sided: bool = True
    ):
        channels = [inputs] + [outputs] * (num_layers - 1)
        self.resnets = nnx.List([ResnetBlock(c, outputs, None, groups, EPS) for c in channels])
        self.downsamplers = nnx.List([Downsample(outputs, one_sided)] if downsample else [])

    def __call__(self, x: Float[Array, "rows h w c"], remat: bool = False) -> Float[Array, "rows h2 w2 c2"]:
        for layer in (*self.resnets, *self.downsamplers):
            x = maybe_remat(layer, remat)(x)
        return x


class EncoderMidBlock(nnx.Module):
    """Residual block, attention, residual block, on the coarsest grid."""

    def __init__(self, channels: int, groups: int):
        self.attentions = nnx.List([FrameAttention(channels, groups)])
        self.resnets = nnx.List([ResnetBlock(channels, channels, None, groups, EPS) for _ in range(2)])

    def __call__(self, x: Float[Array, "rows h w c"], remat: bool) -> Float[Array, "rows h w c"]:
        for layer in (self.resnets[0], self.attentions[0], self.resnets[1]):
            x = maybe_remat(layer, remat)(x)
        return x


class Encoder(nnx.Module):
    """Images to the moments of their latents, before `quant_conv`."""

    def __init__(self, config: VAEConfig):
        levels, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = Conv(config.in_channels, levels[0])
        blocks = []
        for i, outputs in enumerate(levels):
            inputs, downsample = levels[max(i - 1, 0)], i < len(levels) - 1
            blocks.append(DownEncoderBlock(inputs, outputs, config.layers_per_block, groups, downsample))
        self.down_blocks = nnx.List(blocks)
        self.mid_block = EncoderMidBlock(levels[-1], groups)
        self.conv_norm_out = GroupNorm(levels[-1], groups, EPS)
        self.conv_out = Conv(levels[-1], 2 * config.latent_channels)

    def __call__(self, x: Float[Array, "rows h w c"], remat: bool) -> Float[Array, "rows h2 w2 c2"]:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x, remat)
        x = self.mid_block(x, remat)
        return maybe_remat(_output, remat)(self.conv_norm_out, self.conv_out, x)


# --- decoder ---------------------------------------------------------------------------------------------------------


class DecoderResBlock(SpatioTemporalResBlock):
    """A residual block of the temporal decoder; `image_only` marks all frames as unrelated images."""

    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__(inputs, outputs, None, groups, EPS, TEMPORAL_EPS, weighs_temporal=True)

    def __call__(self, x: Float[Array, "b f h w c"], remat: bool, image_only: bool) -> Float[Array, "b f h w c2"]:
        forward = super().__call__
        return maybe_remat(lambda x: forward(x, image_only=image_only or None), remat)(x)


class UpDecoderBlock(nnx.Module):
    """Residual blocks; then the grid is doubled if `upsample`."""

    def __init__(self, inputs: int, outputs: int, num_layers: int, groups: int, upsample: bool):
        channels = [inputs] + [outputs] * (num_layers - 1)
        self.resnets = nnx.List([DecoderResBlock(c, outputs, groups) for c in channels])
        self.upsamplers = nnx.List([Upsample(outputs)] if upsample else [])

    def __call__(self, x: Float[Array, "b f h w c"], remat: bool, image_only: bool) -> Float[Array, "b f h2 w2 c2"]:
        for resnet in self.resnets:
            x = resnet(x, remat, image_only)
        for upsample in self.upsamplers:
            x = maybe_remat(upsample, remat)(x)
        return x


class DecoderMidBlock(nnx.Module):
    """Residual block, attention within each frame, residual block, on the coarsest grid."""

    def __init__(self, channels: int, num_layers: int, groups: int):
        self.attentions = nnx.List([FrameAttention(channels, groups)])
        self.resnets = nnx.List([DecoderResBlock(channels, channels, groups) for _ in range(num_layers)])

    def __call__(self, x: Float[Array, "b f h w c"], remat: bool, image_only: bool) -> Float[Array, "b f h w c"]:
        f = x.shape[1]
        x = self.resnets[0](x, remat, image_only)
        # SVD's decoder zips its one attention with the residual blocks after the first: those beyond two are unused.
        if len(self.resnets) > 1:
            x = maybe_remat(self.attentions[0], remat)(rearrange(x, "b f h w c -> (b f) h w c"))
            x = self.resnets[1](rearrange(x, "(b f) h w c -> b f h w c", f=f), remat, image_only)
        return x


class TemporalDecoder(nnx.Module):
    """Latents to images, with residual blocks over time and a last convolution over time."""

    def __init__(self, config: VAEConfig):
        levels, groups, num_layers = config.block_out_channels[::-1], config.norm_num_groups, config.layers_per_block
        self.conv_in = Conv(config.latent_channels, levels[0])
        self.mid_block = DecoderMidBlock(levels[0], num_layers, groups)
        blocks = []
        for i, outputs in enumerate(levels):
            inputs, upsample = levels[max(i - 1, 0)], i < len(levels) - 1
            blocks.append(UpDecoderBlock(inputs, outputs, num_layers + 1, groups, upsample))
        self.up_blocks = nnx.List(blocks)
        self.conv_norm_out = GroupNorm(levels[-1], groups, EPS)
        self.conv_out = Conv(levels[-1], config.out_channels)
        self.time_conv_out = Conv(config.out_channels, config.out_channels, (3, 1))

    def __call__(self, z: Float[Array, "b f h w c"], remat: bool, image_only: bool) -> Float[Array, "b f h2 w2 c2"]:
        f = z.shape[1]
        x = self.mid_block(self.conv_in(z), remat, image_only)
        for block in self.up_blocks:
            x = block(x, remat, image_only)
        h = x.shape[2]
        x = rearrange(x, "b f h w c -> (b f) h w c")
        x = maybe_remat(_output, remat)(self.conv_norm_out, self.conv_out, x)
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
        self.quant_conv = Conv(2 * config.latent_channels, 2 * config.latent_channels, 1)

    def moments(
        self, x: Float[Array, "b f h w 3"], remat: bool = False
    ) -> tuple[Float[Array, "b f h2 w2 c"], Float[Array, "b f h2 w2 c"]]:
        """Return mean and log-variance (clipped to [−30, 20]), float32, of the latents of images in [−1, 1]."""
        f = x.shape[1]
        x = rearrange(x.astype(self.quant_conv.kernel[...].dtype), "b f h w c -> (b f) h w c")
        moments = self.quant_conv(self.encoder(x, remat)).astype(jnp.float32)
        mean, log_variance = jnp.split(rearrange(moments, "(b f) h w c -> b f h w c", f=f), 2, axis=-1)
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
        return self.decoder(z.astype(self.quant_conv.kernel[...].dtype), remat, image_only).astype(jnp.float32)
