"""Multi-head attention: a textbook module, and softmax attention that is fast and small on GPUs and CPUs."""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from drender.models.layers import Linear
from drender.sharding import share_rows

# Attention without a fused kernel computes at most this many logits at a time: 1 GiB in float32. On CPUs 4 MiB, which
# stay in the cache.
MAX_LOGITS = 2**28
MAX_LOGITS_CPU = 2**20
# cuDNN's grid of CUDA blocks has no room for more rows.
MAX_FUSED_ROWS = 2**16 - 1


class Attention(nnx.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, channels: int, heads: int, context_channels: int | None = None, bias: bool = False):
        context_channels = context_channels or channels
        self.heads = heads
        self.to_q = Linear(channels, channels, bias)
        self.to_k = Linear(context_channels, channels, bias)
        self.to_v = Linear(context_channels, channels, bias)
        self.to_out = nnx.List([Linear(channels, channels)])

    def __call__(
        self, x: Float[Array, "rows t c"], context: Float[Array, "groups u e"] | None = None
    ) -> Float[Array, "rows t2 c"]:
        """Attend from each row's tokens to one another, or to a context's tokens; consecutive rows share one context.

        Returns:
          [rows, t, c], or [rows, 1, c] to broadcast over tokens if there is one key.
        """
        # On a mesh that shards frames, attention over time needs whole clips: frames are exchanged for positions here,
        # before the projections, which then run on the exchanged rows.
        x = share_rows(x)
        context = x if context is None else context
        v = self.to_v(context)
        if context.shape[1] == 1:
            # Softmax over one key is 1, so every query receives its value.
            return repeat(self.to_out[0](v), "groups 1 c -> (groups r) 1 c", r=len(x) // len(v))
        q, k = self.to_q(x), self.to_k(context)
        q, k, v = (rearrange(y, "rows t (n d) -> rows t n d", n=self.heads) for y in (q, k, v))
        return self.to_out[0](rearrange(attend(q, k, v), "rows t n d -> rows t (n d)"))


# --- softmax(q kᵀ / √d) v --------------------------------------------------------------------------------------------


def attend(
    q: Float[Array, "rows t n d"], k: Float[Array, "groups u n d"], v: Float[Array, "groups u n d"]
) -> Float[Array, "rows t n d"]:
    """Compute attention by cuDNN's fused kernel where it applies, else in chunks of bounded memory.

    Where there are fewer groups than rows, each group of consecutive rows shares its keys and values.
    """
    rows, _, _, d = q.shape
    fits_cudnn = q.dtype != jnp.float32 and rows <= MAX_FUSED_ROWS and d <= 128 and d % 8 == 0
    if fits_cudnn and has_fused_attention():
        return lax.platform_dependent(q, k, v, cuda=_attend_fused, default=_attend_unfused)
    return _attend_unfused(q, k, v)


@functools.cache
def has_fused_attention() -> bool:
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
