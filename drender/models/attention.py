"""Attention and transformers: over the positions of a frame, over time, and to a context."""

import functools

import jax
import jax.numpy as jnp
from einops import pack, rearrange, repeat, unpack
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from drender.models.layers import (
    AlphaBlender,
    ImageOnly,
    TimestepEmbedding,
    group_norm,
    layer_norm,
    sinusoidal_embedding,
)
from drender.models.params import ParamRngs
from drender.sharding import share_rows

# Attention without a fused kernel computes at most this many logits at a time: 1 GiB in float32. On CPUs 4 MiB, which
# stay in the cache.
MAX_LOGITS = 2**28
MAX_LOGITS_CPU = 2**20
# cuDNN's grid of CUDA blocks has no room for more rows.
MAX_FUSED_ROWS = 2**16 - 1


# --- softmax(q kᵀ / √d) v --------------------------------------------------------------------------------------------


def attend(
    q: Float[Array, "rows t n d"], k: Float[Array, "groups u n d"], v: Float[Array, "groups u n d"]
) -> Float[Array, "rows t n d"]:
    """Compute attention by cuDNN's fused kernel where it applies, else in chunks of bounded memory.

    Where there are fewer groups than rows, each group of consecutive rows shares its keys and values.
    """
    rows, _, _, d = q.shape
    fits_cudnn = q.dtype != jnp.float32 and rows <= MAX_FUSED_ROWS and d <= 128 and d % 8 == 0
    if fits_cudnn and _has_fused_attention():
        return lax.platform_dependent(q, k, v, cuda=_attend_fused, default=_attend_unfused)
    return _attend_unfused(q, k, v)


@functools.cache
def _has_fused_attention() -> bool:
    """Return whether all GPUs are Ampere or later, which have flash attention in cuDNN."""
    try:
        return all(float(device.compute_capability) >= 8 for device in jax.devices("cuda"))
    except RuntimeError:
        return False


def _attend_fused(q, k, v):
    k, v = (repeat(x, "groups ... -> (groups r) ...", r=len(q) // len(k)) for x in (k, v))
    return jax.nn.dot_product_attention(share_rows(q), share_rows(k), share_rows(v), implementation="cudnn")


def _attend_unfused(q, k, v):
    if q.dtype == jnp.float16:
        # XLA has no float16 products with float32 sums on CPUs.
        return _attend_unfused(*(x.astype(jnp.float32) for x in (q, k, v))).astype(q.dtype)
    if len(q) == len(k):
        q, k, v = map(share_rows, (q, k, v))
    (_, t, n, _), groups = q.shape, len(k)
    # Rows that share keys become one row of more queries. That takes less memory, and XLA's CPU products (jax 0.10.2)
    # are wrong where the second factor is broadcast over all rows. Heads become rows.
    q = rearrange(q, "(groups r) t n d -> (groups n) (r t) d", groups=groups)
    k, v = (rearrange(x, "groups u n d -> (groups n) u d") for x in (k, v))
    if len(q) * q.shape[1] * k.shape[1] <= MAX_LOGITS_CPU:
        out = _softmax_attention(q, k, v)
    else:
        in_chunks = lambda max_logits: functools.partial(_attend_in_chunks, max_logits=max_logits)
        out = lax.platform_dependent(q, k, v, cpu=in_chunks(MAX_LOGITS_CPU), default=in_chunks(MAX_LOGITS))
    return rearrange(out, "(groups n) (r t) d -> (groups r) t n d", n=n, t=t)


def _attend_in_chunks(
    q: Float[Array, "rows t d"], k: Float[Array, "rows u d"], v: Float[Array, "rows u d"], max_logits: int
) -> Float[Array, "rows t d"]:
    """Compute attention a few rows at a time, or a few queries of a row where its logits alone exceed `max_logits`."""
    t, u = q.shape[1], k.shape[1]
    # The backward pass computes the logits of a chunk again: kept, they would take as much memory as without chunks.
    attention = jax.checkpoint(_softmax_attention)
    if t * u <= max_logits:
        return lax.map(lambda row: attention(*row), (q, k, v), batch_size=max_logits // (t * u))

    def attend_row(row):
        q, k, v = row
        return lax.map(lambda query: attention(query[None], k, v)[0], q, batch_size=max(1, max_logits // u))

    return lax.map(attend_row, (q, k, v))


def _softmax_attention(q: Float[Array, "*rows t d"], k: Float[Array, "*rows u d"], v: Float[Array, "*rows u d"]):
    logits = jnp.einsum("...td,...ud->...tu", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    weights = jnp.exp(logits - lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.einsum("...tu,...ud->...td", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    # Normalize the output instead of the weights, which are larger.
    return (out / total).astype(v.dtype)


# --- modules ---------------------------------------------------------------------------------------------------------


class Attention(nnx.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2)."""

    def __init__(
        self, channels: int, heads: int, context_channels: int | None = None, bias: bool = False, *, rngs: ParamRngs
    ):
        context_channels = context_channels or channels
        self.heads = heads
        self.to_q = nnx.Linear(channels, channels, use_bias=bias, rngs=rngs)
        self.to_k = nnx.Linear(context_channels, channels, use_bias=bias, rngs=rngs)
        self.to_v = nnx.Linear(context_channels, channels, use_bias=bias, rngs=rngs)
        self.to_out = nnx.List([nnx.Linear(channels, channels, rngs=rngs)])

    def __call__(
        self, x: Float[Array, "rows t c"], context: Float[Array, "groups u e"] | None = None
    ) -> Float[Array, "rows t2 c"]:
        """Attend from each row's tokens to one another, or to the tokens of the context that its group of rows shares.

        Returns:
          [rows, t, c], or [rows, 1, c] to broadcast over tokens if there is one key.
        """
        # Also before the projections: on a mesh that shards frames, temporal attention trades them for positions here.
        x = share_rows(x)
        context = x if context is None else context
        v = self.to_v(context)
        if context.shape[1] == 1:
            # Softmax over one key is 1, so every query receives its value.
            return repeat(self.to_out[0](v), "groups 1 c -> (groups r) 1 c", r=len(x) // len(v))
        q, k = self.to_q(x), self.to_k(context)
        q, k, v = (rearrange(y, "rows t (n d) -> rows t n d", n=self.heads) for y in (q, k, v))
        return self.to_out[0](rearrange(attend(q, k, v), "rows t n d -> rows t (n d)"))


class GEGLU(nnx.Module):
    """A linear layer gated by the GELU of another (Shazeer 2020)."""

    def __init__(self, inputs: int, outputs: int, *, rngs: ParamRngs):
        self.proj = nnx.Linear(inputs, 2 * outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "*rows c"]) -> Float[Array, "*rows c2"]:
        x, gate = jnp.split(self.proj(x), 2, axis=-1)
        return x * jax.nn.gelu(gate, approximate=False)


class FeedForward(nnx.Module):
    """A GEGLU to four times the channels, and a linear layer back."""

    def __init__(self, channels: int, *, rngs: ParamRngs):
        hidden = 4 * channels
        # None stands for the released list's dropout of rate 0: parameter names count it.
        self.net = nnx.List([GEGLU(channels, hidden, rngs=rngs), None, nnx.Linear(hidden, channels, rngs=rngs)])

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

    def __call__(self, x: Float[Array, "b f t c"], context: Float[Array, "b2 f2 u e"]) -> Float[Array, "b f t c"]:
        """Transform tokens; `context` has tokens per frame, or per clip (f2 = 1), for all clips or the first b2."""
        if self.temporal:
            x = x + self.ff_in(self.norm_in(x))
        x = x + self._self_attention(self.norm1(x))
        if self.attn2 is not None:
            x = x + self._cross_attention(self.norm2(x), context)
        return x + self.ff(self.norm3(x))

    def _self_attention(self, x: Float[Array, "b f t c"]) -> Float[Array, "b f t c"]:
        f, t = x.shape[1:3]
        if self.temporal:
            return rearrange(self.attn1(rearrange(x, "b f t c -> (b t) f c")), "(b t) f c -> b f t c", t=t)
        return rearrange(self.attn1(rearrange(x, "b f t c -> (b f) t c")), "(b f) t c -> b f t c", f=f)

    def _cross_attention(
        self, x: Float[Array, "b f t c"], context: Float[Array, "b2 f2 u e"]
    ) -> Float[Array, "b f t2 c"]:
        """Attend to the context; clips beyond its batch attend to zeros. t2 is 1 for a context of one token."""
        f, with_context = x.shape[1], len(context)
        rows = rearrange(x[:with_context], "b f t c -> (b f) t c")
        out = self.attn2(rows, rearrange(context, "b f u e -> (b f) u e"))
        out = rearrange(out, "(b f) t c -> b f t c", f=f)
        if with_context == len(x):
            return out
        # Values of zeros are zero, so attention to them is exactly the output projection's bias.
        bias = jnp.broadcast_to(self.attn2.to_out[0].bias[...], (len(x) - with_context, *out.shape[1:]))
        return jnp.concatenate([out, bias.astype(out.dtype)])


class SpatioTemporalTransformer(nnx.Module):
    """Pairs of a spatial and a temporal transformer block, blended, between two projections."""

    def __init__(
        self,
        channels: int,
        heads: int,
        num_layers: int,
        context_channels: int,
        temporal_context_channels: int | None,
        groups: int,
        *,
        rngs: ParamRngs,
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
