"""Attention and transformers: over the positions of a frame, over time, and over a context.

Shapes: b batch, f frames, h w grid, s = h·w positions, c channels, t u tokens, n heads, d head size.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Float

from drender.models.layers import AlphaBlender, TimestepEmbedding, group_norm, sinusoidal_embedding
from drender.models.params import ParamRngs
from drender.sharding import share_rows

# Attention logits above this many elements are computed in pieces: so that memory stays bounded (1 GiB in float32), and
# on a CPU so that a piece stays in its cache (4 MiB).
MAX_LOGITS = 2**28
MAX_LOGITS_CPU = 2**20
# More rows than a grid of CUDA blocks has along an axis are not given to cuDNN.
MAX_FUSED_ROWS = 2**16 - 1


def attend(
    q: Float[Array, "rows t n d"], k: Float[Array, "some u n d"], v: Float[Array, "some u n d"]
) -> Float[Array, "rows t n d"]:
    """softmax(q kᵀ / √d) v, by a fused kernel where the device has one, else in pieces of bounded size.

    Of rows that are a multiple of `some`, as many in turn have the same keys and values.
    """
    rows, head = q.shape[0], q.shape[-1]
    suits = q.dtype != jnp.float32 and rows <= MAX_FUSED_ROWS and head <= 128 and head % 8 == 0
    if suits and _has_fused_attention():
        return jax.lax.platform_dependent(q, k, v, cuda=_attend_fused, default=_attend_plainly)
    return _attend_plainly(q, k, v)


@functools.cache
def _has_fused_attention() -> bool:
    """Is there a card of Ampere or later, on which cuDNN has flash attention?"""
    try:
        return all(float(device.compute_capability) >= 8 for device in jax.devices("cuda"))
    except RuntimeError:
        return False


def _attend_fused(q, k, v):
    k, v = (repeat(x, "some ... -> (some each) ...", each=len(q) // len(k)) for x in (k, v))
    return jax.nn.dot_product_attention(*map(share_rows, (q, k, v)), implementation="cudnn")


def _attend_plainly(q, k, v):
    if q.dtype == jnp.float16:
        # XLA has no float16 products with a float32 sum for CPUs.
        return _attend_plainly(*(x.astype(jnp.float32) for x in (q, k, v))).astype(q.dtype)
    each, heads = len(q) // len(k), q.shape[2]
    if each == 1:
        q, k, v = map(share_rows, (q, k, v))
    # A head is a row of its own. Rows that share their keys are one row of more queries: that is less to hold, and
    # XLA's products for CPUs (jax 0.10.2) are wrong where the second factor is one and the same for all rows.
    q = rearrange(q, "(some each) t n d -> (some n) (each t) d", each=each)
    k, v = (rearrange(x, "some u n d -> (some n) u d") for x in (k, v))
    if len(q) * q.shape[1] * k.shape[1] <= min(MAX_LOGITS_CPU, MAX_LOGITS):
        out = _attend_at_once(q, k, v)
    else:
        limited = lambda most: functools.partial(_attend_in_pieces, most=most)
        out = jax.lax.platform_dependent(q, k, v, cpu=limited(MAX_LOGITS_CPU), default=limited(MAX_LOGITS))
    return rearrange(out, "(some n) (each t) d -> (some each) t n d", n=heads, each=each)


def _attend_in_pieces(
    q: Float[Array, "rows t d"], k: Float[Array, "rows u d"], v: Float[Array, "rows u d"], most: int
) -> Float[Array, "rows t d"]:
    """Some rows at a time, or some queries of a row."""
    (rows, tokens, _), keys = q.shape, k.shape[1]
    # In a backward pass, the logits of a piece are computed again: kept, they would be as many as without pieces.
    piece = jax.checkpoint(_attend_at_once)
    if rows * tokens * keys <= most:
        return piece(q, k, v)
    if tokens * keys <= most:
        return jax.lax.map(lambda row: piece(*row), (q, k, v), batch_size=most // (tokens * keys))

    def one_row(row):
        q, k, v = row
        return jax.lax.map(lambda query: piece(query[None], k, v)[0], q, batch_size=max(1, most // keys))

    return jax.lax.map(one_row, (q, k, v))


def _attend_at_once(q: Float[Array, "*rows t d"], k: Float[Array, "*rows u d"], v: Float[Array, "*rows u d"]):
    """The result is divided by the sum, for it is smaller than the weights."""
    logits = jnp.einsum("...td,...ud->...tu", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.einsum("...tu,...ud->...td", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / total).astype(v.dtype)


def layer_norm(channels: int, *, rngs: ParamRngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(channels, epsilon=1e-5, use_fast_variance=False, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head attention over a row's own tokens, or over the tokens of a context."""

    def __init__(self, channels: int, heads: int, context_channels: int | None = None, bias=False, *, rngs: ParamRngs):
        context_channels = context_channels or channels
        self.heads = heads
        self.to_q = nnx.Linear(channels, channels, use_bias=bias, rngs=rngs)
        self.to_k = nnx.Linear(context_channels, channels, use_bias=bias, rngs=rngs)
        self.to_v = nnx.Linear(context_channels, channels, use_bias=bias, rngs=rngs)
        self.to_out = nnx.List([nnx.Linear(channels, channels, rngs=rngs)])

    def __call__(
        self, x: Float[Array, "rows t c"], context: Float[Array, "some u e"] | None = None, each: int = 1
    ) -> Float[Array, "rows t2 c"]:
        """
        Args:
          each: how many rows in turn have one row of context, whose keys and values are computed once. Rows beyond
            those have a context of zeros, over which attention is `to_out`'s bias, exactly.

        Returns:
          what all tokens get (t2 = 1) of a context of one token, which needs no attention: softmax over one key is 1.
        """
        x = share_rows(x)
        context = x if context is None else context
        heads = lambda y: rearrange(y, "r t (n d) -> r t n d", n=self.heads)
        some = context.shape[0] * each
        v = self.to_v(context)
        if context.shape[1] > 1:
            attended = attend(*map(heads, (self.to_q(x[:some]), self.to_k(context), v)))
            out = self.to_out[0](rearrange(attended, "r t n d -> r t (n d)"))
        else:
            out = repeat(self.to_out[0](v), "r ... -> (r each) ...", each=each)
        if some < x.shape[0]:
            bias = jnp.broadcast_to(self.to_out[0].bias[...], (x.shape[0] - some, *out.shape[1:]))
            out = jnp.concatenate([out, bias.astype(out.dtype)])
        return out


class GEGLU(nnx.Module):
    """A linear layer gated by the GELU of another (Shazeer 2020)."""

    def __init__(self, inputs: int, outputs: int, *, rngs: ParamRngs):
        self.proj = nnx.Linear(inputs, 2 * outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "*rows c"]) -> Float[Array, "*rows c2"]:
        x, gate = jnp.split(self.proj(x), 2, axis=-1)
        return x * jax.nn.gelu(gate, approximate=False)


class FeedForward(nnx.Module):
    def __init__(self, channels: int, *, rngs: ParamRngs):
        hidden = 4 * channels
        # The released list has a dropout of rate 0 in the middle; the parameters' names count it.
        self.net = nnx.List([GEGLU(channels, hidden, rngs=rngs), None, nnx.Linear(hidden, channels, rngs=rngs)])

    def __call__(self, x: Float[Array, "*rows c"]) -> Float[Array, "*rows c"]:
        # One axis of rows: XLA for CPUs (jax 0.10.2) takes half as long again where it joins a norm and a wide product
        # over several.
        rows = rearrange(x, "... c -> (...) c")
        return self.net[2](self.net[0](rows)).reshape(x.shape)


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention, feed-forward; a temporal block begins with one more feed-forward.

    A spatial block attends within each frame, a temporal block along the frames at each position.
    """

    def __init__(
        self, channels: int, heads: int, context_channels: int | None, temporal: bool = False, *, rngs: ParamRngs
    ):
        self.temporal = temporal
        if temporal:
            self.norm_in = layer_norm(channels, rngs=rngs)
            self.ff_in = FeedForward(channels, rngs=rngs)
        self.norm1 = layer_norm(channels, rngs=rngs)
        self.attn1 = Attention(channels, heads, rngs=rngs)
        self.norm2 = layer_norm(channels, rngs=rngs) if context_channels else None
        self.attn2 = Attention(channels, heads, context_channels, rngs=rngs) if context_channels else None
        self.norm3 = layer_norm(channels, rngs=rngs)
        self.ff = FeedForward(channels, rngs=rngs)

    def __call__(self, x: Float[Array, "b f s c"], context: Float[Array, "b2 f2 u e"]) -> Float[Array, "b f s c"]:
        """context: tokens per frame, or for the whole clip (f2 = 1); `Attention` says what b2 < b means."""
        f, s = x.shape[1:3]
        if self.temporal:
            x = x + self.ff_in(self.norm_in(x))
            rows = rearrange(self.norm1(x), "b f s c -> (b s) f c")
            x = x + rearrange(self.attn1(rows), "(b s) f c -> b f s c", s=s)
        else:
            rows = rearrange(self.norm1(x), "b f s c -> (b f) s c")
            x = x + rearrange(self.attn1(rows), "(b f) s c -> b f s c", f=f)
        if self.attn2 is not None:
            rows = rearrange(self.norm2(x), "b f s c -> (b f) s c")
            out = self.attn2(rows, rearrange(context, "b f2 u e -> (b f2) u e"), each=f // context.shape[1])
            x = x + rearrange(out, "(b f) t c -> b f t c", f=f)  # t is s or, the same for all of them, 1
        return x + self.ff(self.norm3(x))


class SpatioTemporalTransformer(nnx.Module):
    """Pairs of a spatial and a temporal transformer block, blended, between two projections.

    `image_only` is explained in `UNet.__call__`.
    """

    def __init__(
        self, channels, heads, num_layers, context_channels, temporal_context_channels, groups, *, rngs: ParamRngs
    ):
        self.norm = group_norm(channels, groups, 1e-6, rngs=rngs)
        self.proj_in = nnx.Linear(channels, channels, rngs=rngs)
        self.transformer_blocks = nnx.List(
            [TransformerBlock(channels, heads, context_channels, rngs=rngs) for _ in range(num_layers)]
        )
        self.temporal_transformer_blocks = nnx.List(
            [TransformerBlock(channels, heads, temporal_context_channels, True, rngs=rngs) for _ in range(num_layers)]
        )
        self.time_pos_embed = TimestepEmbedding(channels, 4 * channels, channels, rngs=rngs)
        self.time_mixer = AlphaBlender()
        self.proj_out = nnx.Linear(channels, channels, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b f h w c"], context: Float[Array, "b2 f2 u e"], image_only=None
    ) -> Float[Array, "b f h w c"]:
        f, h, _, c = x.shape[1:]
        position = self.time_pos_embed(sinusoidal_embedding(jnp.arange(f, dtype=jnp.float32), c))[:, None]
        y = rearrange(self.norm(rearrange(x, "b f h w c -> (b f) h w c")), "(b f) h w c -> b f (h w) c", f=f)
        y = self.proj_in(y)
        for spatial, temporal in zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True):
            y = spatial(y, context)
            if image_only is not True:
                # Every frame of the temporal branch sees the first frame's context.
                y = self.time_mixer(y, temporal(y + position, context[:, :1]), image_only)
        return x + rearrange(self.proj_out(y), "b f (h w) c -> b f h w c", h=h)
