"""The video auto-encoder: frames to latents one by one, latents to frames with a decoder that couples them in time."""

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
    call,
    conv,
    group_norm,
    maybe_remat,
)
from drender.models.params import ParamRngs

EPS = 1e-6
TEMPORAL_EPS = 1e-5


class DownEncoderBlock(nnx.Module):
    """Residual blocks, then half the size where wanted; the VAE pads that on one side only."""

    def __init__(
        self, inputs, outputs, num_layers, groups, downsample: bool, one_sided: bool = True, *, rngs: ParamRngs
    ):
        channels = [inputs] + [outputs] * (num_layers - 1)
        self.resnets = nnx.List([ResnetBlock(c, outputs, None, groups, EPS, rngs=rngs) for c in channels])
        self.downsamplers = nnx.List([Downsample(outputs, one_sided, rngs=rngs)] if downsample else [])

    def __call__(self, x: Float[Array, "rows h w c"], remat: bool = False) -> Float[Array, "rows h2 w2 c2"]:
        for layer in (*self.resnets, *self.downsamplers):
            x = maybe_remat(call, remat)(layer, x)
        return x


class FrameAttention(Attention):
    """Self-attention with one head over all positions of a frame, with norm and residual."""

    def __init__(self, channels: int, groups: int, *, rngs: ParamRngs):
        super().__init__(channels, heads=1, bias=True, rngs=rngs)
        self.group_norm = group_norm(channels, groups, EPS, rngs=rngs)

    def __call__(self, x: Float[Array, "rows h w c"]) -> Float[Array, "rows h w c"]:
        tokens = rearrange(self.group_norm(x), "r h w c -> r (h w) c")
        return x + super().__call__(tokens).reshape(x.shape)


class EncoderMidBlock(nnx.Module):
    def __init__(self, channels: int, groups: int, *, rngs: ParamRngs):
        self.attentions = nnx.List([FrameAttention(channels, groups, rngs=rngs)])
        self.resnets = nnx.List([ResnetBlock(channels, channels, None, groups, EPS, rngs=rngs) for _ in range(2)])

    def __call__(self, x: Float[Array, "rows h w c"], remat: bool) -> Float[Array, "rows h w c"]:
        for layer in (self.resnets[0], self.attentions[0], self.resnets[1]):
            x = maybe_remat(call, remat)(layer, x)
        return x


class Encoder(nnx.Module):
    def __init__(self, config: VAEConfig, *, rngs: ParamRngs):
        levels, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = conv(config.in_channels, levels[0], rngs=rngs)
        self.down_blocks = nnx.List(
            [
                DownEncoderBlock(
                    levels[max(i - 1, 0)], c, config.layers_per_block, groups, i < len(levels) - 1, rngs=rngs
                )
                for i, c in enumerate(levels)
            ]
        )
        self.mid_block = EncoderMidBlock(levels[-1], groups, rngs=rngs)
        self.conv_norm_out = group_norm(levels[-1], groups, EPS, rngs=rngs)
        self.conv_out = conv(levels[-1], 2 * config.latent_channels, rngs=rngs)

    def __call__(self, x: Float[Array, "rows h w c"], remat: bool) -> Float[Array, "rows h2 w2 c2"]:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x, remat)
        x = self.mid_block(x, remat)
        return maybe_remat(_head, remat)(self.conv_norm_out, self.conv_out, x)


def _head(norm: GroupNorm, conv: Conv, x: Float[Array, "rows h w c"]) -> Float[Array, "rows h w c2"]:
    return conv(jax.nn.silu(norm(x)))


def _decoder_resnet(inputs: int, outputs: int, groups: int, *, rngs: ParamRngs) -> SpatioTemporalResBlock:
    return SpatioTemporalResBlock(inputs, outputs, None, groups, EPS, TEMPORAL_EPS, weighs_temporal=True, rngs=rngs)


def _decoded(
    resnet: SpatioTemporalResBlock, x: Float[Array, "b f h w c"], remat: bool, images: bool
) -> Float[Array, "b f h w c2"]:
    return maybe_remat(lambda resnet, x: resnet(x, image_only=images or None), remat)(resnet, x)


class UpDecoderBlock(nnx.Module):
    """Residual blocks, then twice the size."""

    def __init__(self, inputs, outputs, num_layers, groups, upsample: bool, *, rngs: ParamRngs):
        channels = [inputs] + [outputs] * (num_layers - 1)
        self.resnets = nnx.List([_decoder_resnet(c, outputs, groups, rngs=rngs) for c in channels])
        self.upsamplers = nnx.List([Upsample(outputs, rngs=rngs)] if upsample else [])

    def __call__(self, x: Float[Array, "b f h w c"], remat: bool, images: bool) -> Float[Array, "b f h2 w2 c2"]:
        for resnet in self.resnets:
            x = _decoded(resnet, x, remat, images)
        for upsample in self.upsamplers:
            x = maybe_remat(call, remat)(upsample, x)
        return x


class DecoderMidBlock(nnx.Module):
    def __init__(self, channels: int, num_layers: int, groups: int, *, rngs: ParamRngs):
        self.attentions = nnx.List([FrameAttention(channels, groups, rngs=rngs)])
        self.resnets = nnx.List([_decoder_resnet(channels, channels, groups, rngs=rngs) for _ in range(num_layers)])

    def __call__(self, x: Float[Array, "b f h w c"], remat: bool, images: bool) -> Float[Array, "b f h w c"]:
        f = x.shape[1]
        x = _decoded(self.resnets[0], x, remat, images)
        if len(self.resnets) > 1:
            # The released decoder pairs resnets and attentions, of which there is one, and drops what is left over.
            x = maybe_remat(call, remat)(self.attentions[0], rearrange(x, "b f h w c -> (b f) h w c"))
            x = _decoded(self.resnets[1], rearrange(x, "(b f) h w c -> b f h w c", f=f), remat, images)
        return x


class TemporalDecoder(nnx.Module):
    def __init__(self, config: VAEConfig, *, rngs: ParamRngs):
        levels, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = conv(config.latent_channels, levels[0], rngs=rngs)
        self.mid_block = DecoderMidBlock(levels[0], config.layers_per_block, groups, rngs=rngs)
        self.up_blocks = nnx.List(
            [
                UpDecoderBlock(
                    levels[max(i - 1, 0)], c, config.layers_per_block + 1, groups, i < len(levels) - 1, rngs=rngs
                )
                for i, c in enumerate(levels)
            ]
        )
        self.conv_norm_out = group_norm(levels[-1], groups, EPS, rngs=rngs)
        self.conv_out = conv(levels[-1], config.out_channels, rngs=rngs)
        self.time_conv_out = conv(config.out_channels, config.out_channels, (3, 1), rngs=rngs)

    def __call__(self, z: Float[Array, "b f h w c"], remat: bool, images: bool) -> Float[Array, "b f h2 w2 c2"]:
        f = z.shape[1]
        x = self.mid_block(self.conv_in(z), remat, images)
        for block in self.up_blocks:
            x = block(x, remat, images)
        h, x = x.shape[2], rearrange(x, "b f h w c -> (b f) h w c")
        x = maybe_remat(_head, remat)(self.conv_norm_out, self.conv_out, x)
        run = 1 if images else f
        x = self.time_conv_out(rearrange(x, "(b f) h w c -> b f (h w) c", f=run))
        return rearrange(x, "(b run) f (h w) c -> b (run f) h w c", b=len(z), h=h)


class VAE(nnx.Module):
    """`encode` and `decode`; both unscaled: `scaling_factor` is the caller's business.

    With `remat` the inside of every layer is computed again in the backward pass.
    """

    def __init__(self, config: VAEConfig, *, rngs: ParamRngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = TemporalDecoder(config, rngs=rngs)
        self.quant_conv = conv(2 * config.latent_channels, 2 * config.latent_channels, 1, rngs=rngs)

    def moments(
        self, x: Float[Array, "b f h w 3"], remat: bool = False
    ) -> tuple[Float[Array, "b f h2 w2 c"], Float[Array, "b f h2 w2 c"]]:
        """Mean and log-variance (clipped to [−30, 20]) of the latents of images in [−1, 1]; frames are independent."""
        f = x.shape[1]
        x = rearrange(x.astype(self.quant_conv.kernel[...].dtype), "b f h w c -> (b f) h w c")
        moments = self.quant_conv(self.encoder(x, remat)).astype(jnp.float32)
        moments = rearrange(moments, "(b f) h w c -> b f h w c", f=f)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30, 20)

    def encode(self, x: Float[Array, "b f h w 3"], remat: bool = False) -> Float[Array, "b f h2 w2 c"]:
        """The posterior mean, float32, of images in [−1, 1]."""
        return self.moments(x, remat)[0]

    def decode(
        self, z: Float[Array, "b f h w c"], remat: bool = False, images: bool = False
    ) -> Float[Array, "b f h2 w2 3"]:
        """Images, float32, about [−1, 1]; the frames given are decoded together as one run.

        images: they have nothing to do with each other: the temporal branches are not computed.
        """
        return self.decoder(z.astype(self.quant_conv.kernel[...].dtype), remat, images).astype(jnp.float32)
