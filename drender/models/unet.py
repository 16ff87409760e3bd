"""The UNet: Stable Video Diffusion's spatio-temporal UNet (Blattmann et al. 2023), as the two renderers vary it.

The inverse renderer has one context token per clip, to which it adds a learned embedding of the G-buffer to estimate.
The forward renderer has a context per frame and level, the environment encoder's features, and no temporal
cross-attention (Liang et al. 2025, sections 4.1 and 4.2).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from drender.config import UNetConfig
from drender.models.layers import (
    Conv,
    Downsample,
    GroupNorm,
    ImageOnly,
    SpatioTemporalResBlock,
    TimestepEmbedding,
    Upsample,
    maybe_remat,
    parameter,
    sinusoidal_embedding,
)
from drender.models.transformer import SpatioTemporalTransformer

# Domain embeddings are scaled down to this norm at lookup, as by PyTorch's `nn.Embedding(max_norm=10)`.
MAX_DOMAIN_NORM = 10.0

Features = Float[Array, "b f h w c"]
# Levels differ in tokens and channels. Batch and frames may be fewer than the latents' (see `UNet.__call__`).
Context = Float[Array, "b2 f2 u e"] | list[Float[Array, "_ _ _ _"]]
# Runs a residual block and a transformer, if any, on concatenated inputs: (resnet, attention, inputs, context).
Layer = Callable[[SpatioTemporalResBlock, SpatioTemporalTransformer | None, list[Array], Array], Array]


# --- blocks ----------------------------------------------------------------------------------------------------------


def _resnet(config: UNetConfig, inputs: int, outputs: int, eps: float) -> SpatioTemporalResBlock:
    return SpatioTemporalResBlock(inputs, outputs, time_channels(config), config.norm_num_groups, eps)


def _layer(
    resnet: SpatioTemporalResBlock,
    attention: SpatioTemporalTransformer | None,
    inputs: list[Array],
    context: Array,
    time: Array,
    image_only: ImageOnly,
) -> Array:
    """Compute one `Layer`; `UNet.__call__` binds the time features and `image_only`."""
    x = resnet(jnp.concatenate(inputs, axis=-1), time, image_only)
    return x if attention is None else attention(x, context, image_only)


class Block(nnx.Module):
    """Residual blocks, each followed by a transformer where the level has cross-attention.

    `inputs` are the channels that enter each residual block.
    """

    def __init__(self, config: UNetConfig, level: int, inputs: list[int], attention: bool, eps: float):
        outputs = config.block_out_channels[level]
        self.resnets = nnx.List([_resnet(config, channels, outputs, eps) for channels in inputs])
        self.attentions = nnx.List([SpatioTemporalTransformer(config, level) for _ in inputs] if attention else [])

    def layers(self) -> list[tuple[SpatioTemporalResBlock, SpatioTemporalTransformer | None]]:
        """Return each residual block with its transformer, or None."""
        return list(zip(self.resnets, self.attentions or [None] * len(self.resnets), strict=True))


class DownBlock(Block):
    """One level of the way down; all but the last level end by halving the grid."""

    def __init__(self, config: UNetConfig, level: int):
        outputs = config.block_out_channels[level]
        inputs = [config.block_out_channels[max(level - 1, 0)]] + [outputs] * (config.layers_per_block[level] - 1)
        attention = config.down_block_types[level].startswith("CrossAttn")
        super().__init__(config, level, inputs, attention, 1e-6 if attention else 1e-5)
        is_last = level == len(config.block_out_channels) - 1
        self.downsamplers = nnx.List([] if is_last else [Downsample(outputs)])

    def __call__(self, x: Features, context: Array, layer: Layer) -> tuple[Array, list[Array]]:
        """Return the output, and the skip connections to the way up."""
        skips = []
        for resnet, attention in self.layers():
            x = layer(resnet, attention, [x], context)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x, skips


class MidBlock(nnx.Module):
    """Residual block, transformer, residual block, on the coarsest grid."""

    def __init__(self, config: UNetConfig):
        channels = config.block_out_channels[-1]
        self.attentions = nnx.List([SpatioTemporalTransformer(config, -1)])
        self.resnets = nnx.List([_resnet(config, channels, channels, 1e-5) for _ in range(2)])

    def __call__(self, x: Features, context: Array, layer: Layer) -> Features:
        x = layer(self.resnets[0], self.attentions[0], [x], context)
        return layer(self.resnets[1], None, [x], context)


class UpBlock(Block):
    """One level of the way up, counted as on the way down; all but level 0 end by doubling the grid."""

    def __init__(self, config: UNetConfig, level: int):
        channels, num_layers = config.block_out_channels, config.layers_per_block[level] + 1
        outputs = channels[level]
        # A residual block takes the output of the one before, the first that of the level below, and a skip. The last
        # skip comes from the level above.
        before = [channels[min(level + 1, len(channels) - 1)]] + [outputs] * (num_layers - 1)
        skips = [outputs] * (num_layers - 1) + [channels[max(level - 1, 0)]]
        inputs = [a + b for a, b in zip(before, skips, strict=True)]
        attention = config.up_block_types[len(channels) - 1 - level].startswith("CrossAttn")
        super().__init__(config, level, inputs, attention, 1e-6)
        self.upsamplers = nnx.List([Upsample(outputs)] if level else [])

    def __call__(self, x: Features, skips: list[Array], context: Array, layer: Layer) -> Array:
        """Return the output; consume `skips` from the end."""
        for resnet, attention in self.layers():
            x = layer(resnet, attention, [x, skips.pop()], context)
        for upsample in self.upsamplers:
            x = upsample(x, skips[-1].shape[2:4])
        return x


# --- the network -----------------------------------------------------------------------------------------------------


def time_channels(config: UNetConfig) -> int:
    """Return the channels of the time features, four times those of the first level."""
    return 4 * config.block_out_channels[0]


class DomainEmbedding(nnx.Module):
    """A learned vector for every G-buffer that can be estimated (Liang et al. 2025, section 4.2)."""

    def __init__(self, rows: int, size: int):
        self.embedding = parameter(rows, size)

    def __call__(self, domain: Int[Array, " b"]) -> Float[Array, "b e"]:
        row = self.embedding[...][domain].astype(jnp.float32)
        norm = jnp.linalg.norm(row, axis=-1, keepdims=True)
        return jnp.where(norm > MAX_DOMAIN_NORM, row * (MAX_DOMAIN_NORM / (norm + 1e-7)), row)


class UNet(nnx.Module):
    """Predict F of the preconditioned denoiser (see `diffusion.py`) from noisy and conditioning latents."""

    def __init__(self, config: UNetConfig):
        self.config = config
        first, time = config.block_out_channels[0], time_channels(config)
        self.conv_in = Conv(config.in_channels, first)
        self.time_embedding = TimestepEmbedding(first, time, time)
        self.add_embedding = TimestepEmbedding(config.projection_class_embeddings_input_dim, time, time)
        rows, size = config.context_vocab_size, config.cross_attention_dim[-1]
        self.context_embedding = DomainEmbedding(rows, size) if config.context_embedding_type else None
        levels = range(len(config.block_out_channels))
        self.down_blocks = nnx.List([DownBlock(config, level) for level in levels])
        self.mid_block = MidBlock(config)
        self.up_blocks = nnx.List([UpBlock(config, level) for level in reversed(levels)])
        self.conv_norm_out = GroupNorm(first, config.norm_num_groups, 1e-5)
        self.conv_out = Conv(first, config.out_channels)

    def __call__(
        self,
        x: Features,
        time: Float[Array, " b"],
        context: Context,
        micro_conditioning: Float[Array, "b 3"],
        domain: Int[Array, " b"] | None = None,
        image_only: ImageOnly = None,
        remat: bool = False,
    ) -> Float[Array, "b f h w c_out"]:
        """Run the network once.

        Args:
          x: scaled noisy latents and conditioning latents, concatenated in channels.
          time: ¼·ln σ (c_noise of EDM).
          context: tokens for cross-attention, per frame or (f2 = 1) per clip; with `multi_res_encoder_hidden_states` a
            list with an entry per level. Clips beyond its batch b2 have a context of zeros.
          micro_conditioning: SVD's frames per second − 1, motion bucket and noise augmentation strength.
          domain: rows of the embedding table to add to the context.
          image_only: rows whose frames are unrelated images; see `ImageOnly`.
          remat: recompute every layer in the backward pass.
        Returns:
          F, float32, in latent channels.
        """
        dtype = self.conv_in.kernel[...].dtype
        time = self._time_features(time, micro_conditioning)
        layer = maybe_remat(functools.partial(_layer, time=time, image_only=image_only), remat)
        contexts = [level.astype(dtype) for level in self._contexts(context, domain)]

        x = self.conv_in(x.astype(dtype))
        skips = [x]
        for block, level in zip(self.down_blocks, contexts, strict=True):
            x, block_skips = block(x, level, layer)
            skips += block_skips
        x = self.mid_block(x, contexts[-1], layer)
        for block, level in zip(self.up_blocks, reversed(contexts), strict=True):
            x = block(x, skips, level, layer)
        f = x.shape[1]
        x = jax.nn.silu(self.conv_norm_out(rearrange(x, "b f h w c -> (b f) h w c")))
        return rearrange(self.conv_out(x), "(b f) h w c -> b f h w c", f=f).astype(jnp.float32)

    def _time_features(self, time: Float[Array, " b"], micro_conditioning: Float[Array, "b 3"]) -> Float[Array, "b e"]:
        micro = sinusoidal_embedding(micro_conditioning, self.config.addition_time_embed_dim)
        features = self.time_embedding(sinusoidal_embedding(time, self.config.block_out_channels[0]))
        return features + self.add_embedding(rearrange(micro, "b i e -> b (i e)"))

    def _contexts(self, context: Context, domain: Int[Array, " b"] | None) -> list[Array]:
        """Return the context of every level, with the domain embedding added."""
        is_per_level = self.config.multi_res_encoder_hidden_states
        contexts = list(context) if is_per_level else [context] * len(self.down_blocks)
        if domain is None:
            return contexts
        token = rearrange(self.context_embedding(domain), "b e -> b 1 1 e")
        return [level + token for level in contexts]
