"""The video auto-encoder: frames to latents one by one, latents to frames with a decoder that couples them in time."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from .attention import Attention
from .config import VAEConfig
from .layers import Downsample, Keys, ResnetBlock, SpatioTemporalResBlock, Upsample, conv, group_norm

EPS = 1e-6
TEMPORAL_EPS = 1e-5


class DownEncoderBlock(nnx.Module):
    """Residual blocks, then half the size where wanted; the VAE pads that on one side only."""

    def __init__(self, inputs, outputs, num_layers, groups, downsample: bool, one_sided: bool = True, *, rngs: Keys):
        channels = [inputs] + [outputs] * (num_layers - 1)
        self.resnets = nnx.List([ResnetBlock(c, outputs, None, groups, EPS, rngs=rngs) for c in channels])
        self.downsamplers = nnx.List([Downsample(outputs, one_sided, rngs=rngs)] if downsample else [])

    def __call__(self, x: Float[Array, "rows h w c"]) -> Float[Array, "rows h2 w2 c2"]:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class FrameAttention(Attention):
    """Self-attention with one head over all positions of a frame, with norm and residual."""

    def __init__(self, channels: int, groups: int, *, rngs: Keys):
        super().__init__(channels, heads=1, bias=True, rngs=rngs)
        self.group_norm = group_norm(channels, groups, EPS, rngs=rngs)

    def __call__(self, x: Float[Array, "rows h w c"]) -> Float[Array, "rows h w c"]:
        tokens = rearrange(self.group_norm(x), "r h w c -> r (h w) c")
        return x + super().__call__(tokens).reshape(x.shape)


class EncoderMidBlock(nnx.Module):
    def __init__(self, channels: int, groups: int, *, rngs: Keys):
        self.attentions = nnx.List([FrameAttention(channels, groups, rngs=rngs)])
        self.resnets = nnx.List([ResnetBlock(channels, channels, None, groups, EPS, rngs=rngs) for _ in range(2)])

    def __call__(self, x: Float[Array, "rows h w c"]) -> Float[Array, "rows h w c"]:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Encoder(nnx.Module):
    def __init__(self, config: VAEConfig, *, rngs: Keys):
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

    def __call__(self, x: Float[Array, "rows h w c"]) -> Float[Array, "rows h2 w2 c2"]:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(self.mid_block(x))))


def _decoder_resnet(inputs: int, outputs: int, groups: int, *, rngs: Keys) -> SpatioTemporalResBlock:
    return SpatioTemporalResBlock(inputs, outputs, None, groups, EPS, TEMPORAL_EPS, weighs_temporal=True, rngs=rngs)


class UpDecoderBlock(nnx.Module):
    """Residual blocks, then twice the size."""

    def __init__(self, inputs, outputs, num_layers, groups, upsample: bool, *, rngs: Keys):
        channels = [inputs] + [outputs] * (num_layers - 1)
        self.resnets = nnx.List([_decoder_resnet(c, outputs, groups, rngs=rngs) for c in channels])
        self.upsamplers = nnx.List([Upsample(outputs, rngs=rngs)] if upsample else [])

    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c2"]:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class DecoderMidBlock(nnx.Module):
    def __init__(self, channels: int, num_layers: int, groups: int, *, rngs: Keys):
        self.attentions = nnx.List([FrameAttention(channels, groups, rngs=rngs)])
        self.resnets = nnx.List([_decoder_resnet(channels, channels, groups, rngs=rngs) for _ in range(num_layers)])

    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        f = x.shape[1]
        x = self.resnets[0](x)
        if len(self.resnets) > 1:
            # The released decoder pairs resnets and attentions, of which there is one, and drops what is left over.
            x = rearrange(self.attentions[0](rearrange(x, "b f h w c -> (b f) h w c")), "(b f) h w c -> b f h w c", f=f)
            x = self.resnets[1](x)
        return x


class TemporalDecoder(nnx.Module):
    def __init__(self, config: VAEConfig, *, rngs: Keys):
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

    def __call__(self, z: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c2"]:
        f = z.shape[1]
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        h = x.shape[2]
        x = jax.nn.silu(self.conv_norm_out(rearrange(x, "b f h w c -> (b f) h w c")))
        x = rearrange(self.conv_out(x), "(b f) h w c -> b f (h w) c", f=f)
        return rearrange(self.time_conv_out(x), "b f (h w) c -> b f h w c", h=h)


class VAE(nnx.Module):
    """`encode` and `decode`; both unscaled: `scaling_factor` is the caller's business."""

    def __init__(self, config: VAEConfig, *, rngs: Keys):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = TemporalDecoder(config, rngs=rngs)
        self.quant_conv = conv(2 * config.latent_channels, 2 * config.latent_channels, 1, rngs=rngs)

    def moments(self, x: Float[Array, "b f h w 3"]) -> tuple[Float[Array, "b f h2 w2 c"], Float[Array, "b f h2 w2 c"]]:
        """Mean and log-variance (clipped to [−30, 20]) of the latents of images in [−1, 1]; frames are independent."""
        f = x.shape[1]
        x = rearrange(x.astype(self.quant_conv.kernel[...].dtype), "b f h w c -> (b f) h w c")
        moments = rearrange(self.quant_conv(self.encoder(x)), "(b f) h w c -> b f h w c", f=f).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30, 20)

    def encode(self, x: Float[Array, "b f h w 3"]) -> Float[Array, "b f h2 w2 c"]:
        """The posterior mean, float32, of images in [−1, 1]."""
        return self.moments(x)[0]

    def decode(self, z: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 3"]:
        """Images, float32, about [−1, 1]; the frames given are decoded together as one run."""
        return self.decoder(z.astype(self.quant_conv.kernel[...].dtype)).astype(jnp.float32)
