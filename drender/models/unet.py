"""The denoiser: Stable Video Diffusion's spatio-temporal UNet, with the variations of the two renderers.

The inverse renderer's has one context token per clip and a learned embedding per G-buffer kind; the forward renderer's
has a context per frame and level, the environment encoder's features, and no temporal cross-attention.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from drender.config import UNetConfig
from drender.models.attention import SpatioTemporalTransformer
from drender.models.layers import (
    Downsample,
    SpatioTemporalResBlock,
    TimestepEmbedding,
    Upsample,
    conv,
    group_norm,
    maybe_remat,
    sinusoidal_embedding,
)
from drender.models.params import ParamRngs

# A domain embedding longer than this is scaled back to it when looked up, as torch's `nn.Embedding(max_norm=10)` does.
MAX_DOMAIN_NORM = 10.0

# Levels differ in tokens and channels; their batch and frames may be fewer than the latents' (see `UNet.__call__`).
Context = Float[Array, "b2 f2 n e"] | list[Float[Array, "_ _ _ _"]]


class Block(nnx.Module):
    """Residual blocks, each followed by a transformer where the level has cross-attention."""

    def __init__(
        self, config: UNetConfig, level: int, channels: list[int], attention: bool, eps: float, *, rngs: ParamRngs
    ):
        """channels: the input channels of each residual block."""
        outputs, groups = config.block_out_channels[level], config.norm_num_groups
        self.resnets = nnx.List(
            [SpatioTemporalResBlock(c, outputs, time_channels(config), groups, eps, rngs=rngs) for c in channels]
        )
        self.attentions = nnx.List(
            [transformer(config, level, rngs=rngs) if attention else None for _ in channels] if attention else []
        )

    def layers(self) -> list[tuple[SpatioTemporalResBlock, SpatioTemporalTransformer | None]]:
        return list(zip(self.resnets, self.attentions or [None] * len(self.resnets), strict=True))


def _layer(resnet, attention, inputs: list[Array], context, time, image_only) -> Array:
    """A residual block over the concatenated inputs, then a transformer; blocks get it with the last two filled in."""
    x = resnet(jnp.concatenate(inputs, axis=-1), time, image_only)
    return x if attention is None else attention(x, context, image_only)


class DownBlock(Block):
    def __init__(self, config: UNetConfig, level: int, *, rngs: ParamRngs):
        inputs = config.block_out_channels[max(level - 1, 0)]
        outputs = config.block_out_channels[level]
        attention = config.down_block_types[level].startswith("CrossAttn")
        channels = [inputs] + [outputs] * (config.layers_per_block[level] - 1)
        super().__init__(config, level, channels, attention, 1e-6 if attention else 1e-5, rngs=rngs)
        last = level == len(config.block_out_channels) - 1
        self.downsamplers = nnx.List([] if last else [Downsample(outputs, rngs=rngs)])

    def __call__(self, x, context, layer: Callable) -> tuple[Array, list[Array]]:
        """Returns the output and what the up path will need of this level."""
        skips = []
        for resnet, attention in self.layers():
            x = layer(resnet, attention, [x], context)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x, skips


class MidBlock(nnx.Module):
    def __init__(self, config: UNetConfig, *, rngs: ParamRngs):
        channels = config.block_out_channels[-1]
        resnet = lambda: SpatioTemporalResBlock(
            channels, channels, time_channels(config), config.norm_num_groups, 1e-5, rngs=rngs
        )
        self.attentions = nnx.List([transformer(config, -1, rngs=rngs)])
        self.resnets = nnx.List([resnet(), resnet()])

    def __call__(self, x, context, layer: Callable) -> Array:
        x = layer(self.resnets[0], self.attentions[0], [x], context)
        return layer(self.resnets[1], None, [x], context)


class UpBlock(Block):
    def __init__(self, config: UNetConfig, level: int, *, rngs: ParamRngs):
        """level: counted as on the way down; the up path begins at the last."""
        levels = config.block_out_channels
        outputs, below, above = levels[level], levels[min(level + 1, len(levels) - 1)], levels[max(level - 1, 0)]
        num_layers = config.layers_per_block[level] + 1
        # Each layer's input is what came before beside a skip; the last skip comes from the level above.
        before = [below] + [outputs] * (num_layers - 1)
        skips = [outputs] * (num_layers - 1) + [above]
        attention = config.up_block_types[len(levels) - 1 - level].startswith("CrossAttn")
        super().__init__(config, level, [a + b for a, b in zip(before, skips, strict=True)], attention, 1e-6, rngs=rngs)
        self.upsamplers = nnx.List([Upsample(outputs, rngs=rngs)] if level else [])

    def __call__(self, x, skips: list[Array], context, layer: Callable) -> Array:
        """skips: consumed from the end."""
        for resnet, attention in self.layers():
            x = layer(resnet, attention, [x, skips.pop()], context)
        for upsample in self.upsamplers:
            x = upsample(x, skips[-1].shape[2:4])
        return x


def time_channels(config: UNetConfig) -> int:
    return 4 * config.block_out_channels[0]


def transformer(config: UNetConfig, level: int, *, rngs: ParamRngs) -> SpatioTemporalTransformer:
    return SpatioTemporalTransformer(
        config.block_out_channels[level],
        config.num_attention_heads[level],
        config.transformer_layers_per_block[level],
        config.cross_attention_dim[level],
        config.temporal_cross_attention_dim,
        config.norm_num_groups,
        rngs=rngs,
    )


class UNet(nnx.Module):
    """Predicts F of the preconditioned denoiser (see `diffusion.py`) from noisy and conditioning latents."""

    def __init__(self, config: UNetConfig, *, rngs: ParamRngs):
        self.config = config
        first = config.block_out_channels[0]
        self.conv_in = conv(config.in_channels, first, rngs=rngs)
        self.time_embedding = TimestepEmbedding(first, time_channels(config), time_channels(config), rngs=rngs)
        self.add_embedding = TimestepEmbedding(
            config.projection_class_embeddings_input_dim, time_channels(config), time_channels(config), rngs=rngs
        )
        self.context_embedding = (
            nnx.Embed(config.context_vocab_size, config.cross_attention_dim[-1], rngs=rngs)
            if config.context_embedding_type
            else None
        )
        levels = range(len(config.block_out_channels))
        self.down_blocks = nnx.List([DownBlock(config, level, rngs=rngs) for level in levels])
        self.mid_block = MidBlock(config, rngs=rngs)
        self.up_blocks = nnx.List([UpBlock(config, level, rngs=rngs) for level in reversed(levels)])
        self.conv_norm_out = group_norm(first, config.norm_num_groups, 1e-5, rngs=rngs)
        self.conv_out = conv(first, config.out_channels, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b f h w c"],
        time: Float[Array, " b"],
        context: Context,
        micro_conditioning: Float[Array, "b 3"],
        domain: Int[Array, " b"] | None = None,
        image_only: Bool[Array, " b"] | Literal[True] | None = None,
        remat: bool = False,
    ) -> Float[Array, "b f h w c_out"]:
        """One call of the network.

        Args:
          x: scaled noisy latents and conditioning latents, concatenated in channels.
          time: ¼·ln σ.
          context: tokens for cross-attention, per frame or (f = 1) per clip; with `multi_res_encoder_hidden_states` a
            list of one entry per level. Batch rows beyond the context's have a context of zeros.
          micro_conditioning: frames per second − 1, motion bucket, noise augmentation strength.
          domain: row of the domain table whose embedding is added to the context.
          image_only: clips that are single images, for which the temporal branches are switched off; True: all are, and
            the branches are not even computed.
          remat: compute the inside of every layer again in the backward pass.
        Returns:
          float32, in latent channels.
        """
        dtype = self.conv_in.kernel[...].dtype
        time = self._time_features(time, micro_conditioning)
        layer = maybe_remat(functools.partial(_layer, time=time, image_only=image_only), remat)
        down, mid, up = self._contexts(context, domain, dtype)

        x = self.conv_in(x.astype(dtype))
        skips = [x]
        for block, tokens in zip(self.down_blocks, down, strict=True):
            x, more = block(x, tokens, layer)
            skips += more
        x = self.mid_block(x, mid, layer)
        for block, tokens in zip(self.up_blocks, up, strict=True):
            x = block(x, skips, tokens, layer)
        f = x.shape[1]
        x = jax.nn.silu(self.conv_norm_out(rearrange(x, "b f h w c -> (b f) h w c")))
        return rearrange(self.conv_out(x), "(b f) h w c -> b f h w c", f=f).astype(jnp.float32)

    def _time_features(self, time, micro_conditioning) -> Float[Array, "b e"]:
        micro = sinusoidal_embedding(micro_conditioning, self.config.addition_time_embed_dim)
        features = self.time_embedding(sinusoidal_embedding(time, self.config.block_out_channels[0]))
        return features + self.add_embedding(rearrange(micro, "b i e -> b (i e)"))

    def _contexts(self, context: Context, domain, dtype) -> tuple[list[Array], Array, list[Array]]:
        """The context of each down block, of the middle block, and of each up block."""
        levels = len(self.down_blocks)
        context = list(context) if self.config.multi_res_encoder_hidden_states else [context] * levels
        if domain is not None:
            token = self._domain_embedding(domain)[:, None, None]
            context = [c + token for c in context]
        context = [c.astype(dtype) for c in context]
        return context, context[-1], context[::-1]

    def _domain_embedding(self, domain: Int[Array, " b"]) -> Float[Array, "b e"]:
        row = self.context_embedding(domain).astype(jnp.float32)
        norm = jnp.linalg.norm(row, axis=-1, keepdims=True)
        return jnp.where(norm > MAX_DOMAIN_NORM, row * (MAX_DOMAIN_NORM / (norm + 1e-7)), row)
