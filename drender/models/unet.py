"""The UNet: Stable Video Diffusion's spatio-temporal UNet (Blattmann et al. 2023), as the two renderers vary it.

The inverse renderer has one context token per clip, to which it adds a learned embedding of the G-buffer to estimate.
The forward renderer has a context per frame and level, the environment encoder's features, and no temporal
cross-attention (Liang et al. 2025, sections 4.1 and 4.2).
"""

import itertools

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
    Level,
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

# Levels differ in tokens and channels. Batch and frames may be fewer than the latents' (see `UNet.__call__`).
Context = Float[Array, "b2 f2 u e"] | list[Float[Array, "_ _ _ _"]]


# --- levels ----------------------------------------------------------------------------------------------------------


def _level(config: UNetConfig, level: int, inputs: list[int], num_attentions: int, eps: float) -> Level:
    """Return residual blocks that take `inputs` channels, the first ones each followed by a transformer."""
    first, outputs, groups = config.block_out_channels[0], config.block_out_channels[level], config.norm_num_groups
    resnets = [SpatioTemporalResBlock(channels, outputs, groups, eps, eps, 4 * first) for channels in inputs]
    return Level(resnets, [SpatioTemporalTransformer(config, level) for _ in range(num_attentions)])


def _down_level(config: UNetConfig, level: int) -> Level:
    """Return one level of the way down; all but the last end by halving the grid."""
    channels, num_layers = config.block_out_channels, config.layers_per_block[level]
    inputs = [channels[max(level - 1, 0)]] + [channels[level]] * (num_layers - 1)
    attention = config.down_block_types[level].startswith("CrossAttn")
    # The epsilons here and below are those of diffusers' block classes, with which the released weights were trained.
    block = _level(config, level, inputs, num_layers * attention, eps=1e-6 if attention else 1e-5)
    if level < len(channels) - 1:
        block.downsamplers.append(Downsample(channels[level]))
    return block


def _up_level(config: UNetConfig, level: int) -> Level:
    """Return one level of the way up, counted as on the way down; all but level 0 end by doubling the grid."""
    channels, num_layers = config.block_out_channels, config.layers_per_block[level] + 1
    outputs = channels[level]
    # A residual block takes the output of the one before, the first that of the level below, and a skip. The last skip
    # comes from the level above.
    before = [channels[min(level + 1, len(channels) - 1)]] + [outputs] * (num_layers - 1)
    skips = [outputs] * (num_layers - 1) + [channels[max(level - 1, 0)]]
    inputs = [a + b for a, b in zip(before, skips, strict=True)]
    attention = config.up_block_types[len(channels) - 1 - level].startswith("CrossAttn")
    block = _level(config, level, inputs, num_layers * attention, eps=1e-6)
    if level:
        block.upsamplers.append(Upsample(outputs))
    return block


# --- the network -----------------------------------------------------------------------------------------------------


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
        first = config.block_out_channels[0]
        time = 4 * first  # channels of the time features
        self.conv_in = Conv(config.in_channels, first)
        self.time_embedding = TimestepEmbedding(first, time, time)
        self.add_embedding = TimestepEmbedding(config.projection_class_embeddings_input_dim, time, time)
        rows, size = config.context_vocab_size, config.cross_attention_dim[-1]
        self.context_embedding = DomainEmbedding(rows, size) if config.context_embedding_type else None
        levels = range(len(config.block_out_channels))
        self.down_blocks = nnx.List([_down_level(config, level) for level in levels])
        self.mid_block = _level(config, -1, [config.block_out_channels[-1]] * 2, num_attentions=1, eps=1e-5)
        self.up_blocks = nnx.List([_up_level(config, level) for level in reversed(levels)])
        self.conv_norm_out = GroupNorm(first, config.norm_num_groups, 1e-5)
        self.conv_out = Conv(first, config.out_channels)

    def __call__(
        self,
        x: Float[Array, "b f h w c"],
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
        config, dtype = self.config, self.conv_in.kernel[...].dtype
        micro = sinusoidal_embedding(micro_conditioning, config.addition_time_embed_dim)
        time = self.time_embedding(sinusoidal_embedding(time, config.block_out_channels[0]))
        time = time + self.add_embedding(rearrange(micro, "b i e -> b (i e)"))
        contexts = context if config.multi_res_encoder_hidden_states else [context] * len(self.down_blocks)
        if domain is not None:
            token = rearrange(self.context_embedding(domain), "b e -> b 1 1 e")
            contexts = [level + token for level in contexts]
        contexts = [level.astype(dtype) for level in contexts]

        def layer(inputs: list[Array], resnet: nnx.Module, attention: nnx.Module | None, context: Array) -> Array:
            x = resnet(jnp.concatenate(inputs, axis=-1), time, image_only)
            return x if attention is None else attention(x, context, image_only)

        layer = maybe_remat(layer, remat)
        layers = lambda block: itertools.zip_longest(block.resnets, block.attentions)

        x = self.conv_in(x)
        skips = [x]
        for block, context in zip(self.down_blocks, contexts, strict=True):
            for resnet, attention in layers(block):
                x = layer([x], resnet, attention, context)
                skips.append(x)
            for downsample in block.downsamplers:
                x = downsample(x)
                skips.append(x)
        for resnet, attention in layers(self.mid_block):
            x = layer([x], resnet, attention, contexts[-1])
        for block, context in zip(self.up_blocks, reversed(contexts), strict=True):
            for resnet, attention in layers(block):
                x = layer([x, skips.pop()], resnet, attention, context)
            for upsample in block.upsamplers:
                x = upsample(x, skips[-1].shape[2:4])
        y = jax.nn.silu(self.conv_norm_out(rearrange(x, "b f h w c -> (b f) h w c")))
        return rearrange(self.conv_out(y), "(b f) h w c -> b f h w c", b=len(x)).astype(jnp.float32)
