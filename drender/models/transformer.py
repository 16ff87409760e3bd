"""Transformers over space and time: attention within frames, along frames, and to a context."""

import jax
import jax.numpy as jnp
from einops import pack, rearrange, unpack
from flax import nnx
from jaxtyping import Array, Float

from drender.config import UNetConfig
from drender.models.attention import Attention
from drender.models.layers import (
    AlphaBlender,
    GroupNorm,
    ImageOnly,
    LayerNorm,
    Linear,
    TimestepEmbedding,
    sinusoidal_embedding,
)


class GEGLU(nnx.Module):
    """A linear layer gated by the GELU of another (Shazeer 2020)."""

    def __init__(self, inputs: int, outputs: int):
        self.proj = Linear(inputs, 2 * outputs)

    def __call__(self, x: Float[Array, "*rows c"]) -> Float[Array, "*rows c2"]:
        x, gate = jnp.split(self.proj(x), 2, axis=-1)
        return x * jax.nn.gelu(gate, approximate=False)


class FeedForward(nnx.Module):
    """A GEGLU to four times the channels, and a linear layer back."""

    def __init__(self, channels: int):
        hidden = 4 * channels
        # None stands for the released list's dropout of rate 0: parameter names count it.
        self.net = nnx.List([GEGLU(channels, hidden), None, Linear(hidden, channels)])

    def __call__(self, x: Float[Array, "*rows c"]) -> Float[Array, "*rows c"]:
        # With several batch axes, XLA for CPUs (jax 0.10.2) fuses the norm before into the wide product, which then
        # takes 1.5 times as long.
        x, rows = pack([x], "* c")
        return unpack(self.net[2](self.net[0](x)), rows, "* c")[0]


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention and feed-forward, each with a pre-norm and a residual.

    A spatial block attends within each frame. A temporal block attends along the frames at each position, and begins
    with one more feed-forward. Without `context_channels` there is no cross-attention.
    """

    def __init__(self, channels: int, heads: int, context_channels: int | None, temporal: bool = False):
        self.temporal = temporal
        if temporal:
            self.norm_in = LayerNorm(channels)
            self.ff_in = FeedForward(channels)
        self.norm1 = LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm2 = LayerNorm(channels) if context_channels else None
        self.attn2 = Attention(channels, heads, context_channels) if context_channels else None
        self.norm3 = LayerNorm(channels)
        self.ff = FeedForward(channels)

    def __call__(self, x: Float[Array, "b f t c"], context: Float[Array, "b2 f2 u e"]) -> Float[Array, "b f t c"]:
        """Transform tokens; `context` has tokens per frame, or per clip (f2 = 1), for all clips or the first b2."""
        b, rows = len(x), "(b f) t c"
        if self.temporal:
            x = x + self.ff_in(self.norm_in(x))
            rows = "(b t) f c"
        y = self.attn1(rearrange(self.norm1(x), f"b f t c -> {rows}"))
        x = x + rearrange(y, f"{rows} -> b f t c", b=b)
        if self.attn2 is not None:
            x = x + self._cross_attention(self.norm2(x), context)
        return x + self.ff(self.norm3(x))

    def _cross_attention(
        self, x: Float[Array, "b f t c"], context: Float[Array, "b2 f2 u e"]
    ) -> Float[Array, "b f t2 c"]:
        """Attend to the context; clips beyond its batch attend to zeros. t2 is 1 for a context of one token."""
        with_context = len(context)
        rows = rearrange(x[:with_context], "b f t c -> (b f) t c")
        out = self.attn2(rows, rearrange(context, "b f u e -> (b f) u e"))
        out = rearrange(out, "(b f) t c -> b f t c", b=with_context)
        if with_context == len(x):
            return out
        # Values of zeros are zero, so attention to them is exactly the output projection's bias.
        bias = jnp.broadcast_to(self.attn2.to_out[0].bias[...], (len(x) - with_context, *out.shape[1:]))
        return jnp.concatenate([out, bias])


class SpatioTemporalTransformer(nnx.Module):
    """Pairs of a spatial and a temporal transformer block, blended, between two projections."""

    def __init__(self, config: UNetConfig, level: int):
        channels, heads = config.block_out_channels[level], config.num_attention_heads[level]
        context, temporal_context = config.cross_attention_dim[level], config.temporal_cross_attention_dim
        layers = range(config.transformer_layers_per_block[level])
        self.norm = GroupNorm(channels, config.norm_num_groups)
        self.proj_in = Linear(channels, channels)
        self.transformer_blocks = nnx.List([TransformerBlock(channels, heads, context) for _ in layers])
        self.temporal_transformer_blocks = nnx.List(
            [TransformerBlock(channels, heads, temporal_context, temporal=True) for _ in layers]
        )
        self.time_pos_embed = TimestepEmbedding(channels, 4 * channels, channels)
        self.time_mixer = AlphaBlender()
        self.proj_out = Linear(channels, channels)

    def __call__(
        self, x: Float[Array, "b f h w c"], context: Float[Array, "b2 f2 u e"], image_only: ImageOnly = None
    ) -> Float[Array, "b f h w c"]:
        f, h, _, c = x.shape[1:]
        position = self.time_pos_embed(sinusoidal_embedding(jnp.arange(f, dtype=jnp.float32), c))
        position = rearrange(position, "f c -> f 1 c")
        y = self.norm(rearrange(x, "b f h w c -> (b f) h w c"))
        y = self.proj_in(rearrange(y, "(b f) h w c -> b f (h w) c", f=f))
        for spatial, temporal in zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True):
            y = spatial(y, context)
            if image_only is not True:
                # As in SVD, every frame of the temporal branch sees the first frame's context.
                y = self.time_mixer(y, temporal(y + position, context[:, :1]), image_only)
        return x + rearrange(self.proj_out(y), "b f (h w) c -> b f h w c", h=h)
