"""The parts that the UNet, the VAE and the environment encoder share.

Attributes bear the names of the released checkpoints, so that conversion is one rule (see `convert.py`). A module
computes in the dtype of its parameters; norms take their statistics in float32.

Shapes: b batch, f frames, h w grid, s = h·w positions, c channels, t tokens, n heads, d head size.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat
from flax import nnx
from jaxtyping import Array, Bool, Float

# Attention logits above this many elements are computed in pieces, so that memory stays bounded (1 GiB in float32).
MAX_LOGITS = 2**28
# Up to this many positions a convolution is a matrix product: reading the kernel is then most of the work, and XLA's
# convolutions for CPUs first copy it into another layout.
FEW_POSITIONS = 128


class Keys:
    """A stream of random keys, one per parameter; stands where flax takes `nnx.Rngs`.

    It counts in Python. `nnx.Rngs` counts in a traced variable, and tracing a thousand parameters takes half a minute.
    """

    def __init__(self, key: Array):
        self.key, self.count = key, 0

    def params(self) -> Array:
        self.count += 1
        return jax.random.fold_in(self.key, self.count)


@functools.cache
def structure(network: type[nnx.Module], config: Any) -> tuple[nnx.GraphDef, dict]:
    """The graph definition of a network, and its parameters as a nested dict of shapes, without their memory.

    `nnx.merge(graphdef, params)` makes the network of a nested dict of arrays.
    """
    graphdef, state = nnx.split(nnx.eval_shape(lambda: network(config, rngs=Keys(jax.random.key(0)))))
    return graphdef, nnx.to_pure_dict(state)


class Conv(nnx.Conv):
    """A convolution of stride 1 with the padding that keeps the grid, as torch writes `padding=kernel // 2`."""

    def __call__(self, x: Float[Array, "*rows h w c"]) -> Float[Array, "*rows h w c2"]:
        rows, x = x.shape[:-3], x.reshape(-1, *x.shape[-3:])
        # Taps that would see nothing but padding are left out: on a grid one wide (the temporal convolution of a single
        # image, the deepest level of a small one) that is all but the middle.
        kernel = self.kernel[...]
        reach = [min(k // 2, size - 1) for k, size in zip(kernel.shape[:2], x.shape[1:3], strict=True)]
        middle = [slice(k // 2 - r, k // 2 + r + 1) for k, r in zip(kernel.shape[:2], reach, strict=True)]
        y = _correlate(x, kernel[*middle], [(r, r) for r in reach])
        y = y + self.bias[...]
        return y.reshape(*rows, *y.shape[1:])


def _correlate(x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw c c2"], padding) -> Float[Array, "n h w c2"]:
    n, h, w, _ = x.shape
    kh, kw, c, outputs = kernel.shape
    if n * h * w > FEW_POSITIONS:
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
    patches = jnp.concatenate([x[:, i : i + h, j : j + w] for i in range(kh) for j in range(kw)], axis=-1)
    return patches @ kernel.reshape(kh * kw * c, outputs)


def conv(inputs: int, outputs: int, kernel: int | tuple = 3, *, rngs: Keys) -> Conv:
    return Conv(inputs, outputs, (kernel, kernel) if isinstance(kernel, int) else kernel, rngs=rngs)


class GroupNorm(nnx.GroupNorm):
    """Normalises over all axes but the first, per group of channels (Wu & He 2018)."""

    def __call__(self, x: Float[Array, "rows *grid c"]) -> Float[Array, "rows *grid c"]:
        y = x.astype(jnp.float32)
        y = y - self._group_means(y)
        y = y * (jax.lax.rsqrt(self._group_means(y**2) + self.epsilon) * self.scale[...]) + self.bias[...]
        return y.astype(x.dtype)

    def _group_means(self, y: Float[Array, "rows *grid c"]) -> Float[Array, "rows *ones c"]:
        # Over positions first, channel by channel: that loop is vectorised, one over groups is not.
        means = reduce(reduce(y, "r ... c -> r c", "mean"), "r (g c) -> r g 1", "mean", g=self.num_groups)
        means = jnp.broadcast_to(means, (*means.shape[:2], y.shape[-1] // self.num_groups))
        return means.reshape(len(y), *[1] * (y.ndim - 2), y.shape[-1])


def group_norm(channels: int, groups: int, eps: float, *, rngs: Keys) -> GroupNorm:
    return GroupNorm(channels, groups, epsilon=eps, rngs=rngs)


def layer_norm(channels: int, *, rngs: Keys) -> nnx.LayerNorm:
    return nnx.LayerNorm(channels, epsilon=1e-5, use_fast_variance=False, rngs=rngs)


def sinusoid(x: Float[Array, "*shape"], size: int) -> Float[Array, "*shape {size}"]:
    """Transformer position features of a number, cosines first, in float32 (Vaswani et al. 2017, section 3.5)."""
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(size // 2, dtype=jnp.float32) / (size // 2))
    angles = x.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepEmbedding(nnx.Module):
    """The MLP over `sinusoid` features."""

    def __init__(self, inputs: int, hidden: int, outputs: int, *, rngs: Keys):
        self.linear_1 = nnx.Linear(inputs, hidden, rngs=rngs)
        self.linear_2 = nnx.Linear(hidden, outputs, rngs=rngs)

    def __call__(self, features: Float[Array, "*shape inputs"]) -> Float[Array, "*shape outputs"]:
        features = features.astype(self.linear_1.kernel[...].dtype)
        return self.linear_2(jax.nn.silu(self.linear_1(features)))


class TimeMixer(nnx.Module):
    """Blends the spatial and the temporal branch by one learned factor."""

    def __init__(self, weighs_temporal: bool = False):
        # The UNet's factor weighs the spatial branch, the VAE decoder's the temporal one.
        self.weighs_temporal = weighs_temporal
        self.mix_factor = nnx.Param(jnp.zeros(1))

    def __call__(self, spatial: Array, temporal: Array, image_only: Bool[Array, " b"] | None = None) -> Array:
        """image_only: clips of the batch whose temporal branch is switched off."""
        weight = jax.nn.sigmoid(self.mix_factor[...])
        weight = 1 - weight if self.weighs_temporal else weight
        if image_only is not None:
            weight = jnp.where(image_only, 1, weight).reshape(-1, *[1] * (spatial.ndim - 1)).astype(spatial.dtype)
        return weight * spatial + (1 - weight) * temporal


# --- residual blocks -------------------------------------------------------------------------------------------------


class ResnetBlock(nnx.Module):
    """norm, SiLU, conv, twice, beside a shortcut.

    Over images `(b f) h w c` with kernel (3, 3), or over time as `b f (h w) c` with kernel (3, 1): the latter is
    exactly torch's (3, 1, 1) convolution, and a 2-D convolution is faster than a 3-D one.
    """

    def __init__(self, inputs, outputs, time_channels, groups, eps, kernel=(3, 3), *, rngs: Keys):
        self.norm1 = group_norm(inputs, groups, eps, rngs=rngs)
        self.conv1 = conv(inputs, outputs, kernel, rngs=rngs)
        self.time_emb_proj = nnx.Linear(time_channels, outputs, rngs=rngs) if time_channels else None
        self.norm2 = group_norm(outputs, groups, eps, rngs=rngs)
        self.conv2 = conv(outputs, outputs, kernel, rngs=rngs)
        self.conv_shortcut = conv(inputs, outputs, 1, rngs=rngs) if inputs != outputs else None

    def __call__(
        self, x: Float[Array, "rows y x c"], time: Float[Array, "b e"] | None = None
    ) -> Float[Array, "rows y x c2"]:
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        if time is not None:
            shift = self.time_emb_proj(jax.nn.silu(time))
            h = h + repeat(shift, "b c -> (b f) 1 1 c", f=x.shape[0] // shift.shape[0])
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class SpatioTemporalResBlock(nnx.Module):
    """A residual block over each frame, then one over time, blended."""

    def __init__(
        self, inputs, outputs, time_channels, groups, eps, temporal_eps=None, weighs_temporal=False, *, rngs: Keys
    ):
        self.spatial_res_block = ResnetBlock(inputs, outputs, time_channels, groups, eps, rngs=rngs)
        self.temporal_res_block = ResnetBlock(
            outputs, outputs, time_channels, groups, temporal_eps or eps, (3, 1), rngs=rngs
        )
        self.time_mixer = TimeMixer(weighs_temporal)

    def __call__(self, x: Float[Array, "b f h w c"], time=None, image_only=None) -> Float[Array, "b f h w c2"]:
        f, h = x.shape[1:3]
        spatial = self.spatial_res_block(rearrange(x, "b f h w c -> (b f) h w c"), time)
        spatial = rearrange(spatial, "(b f) h w c -> b f (h w) c", f=f)
        temporal = self.temporal_res_block(spatial, time)
        return rearrange(self.time_mixer(spatial, temporal, image_only), "b f (h w) c -> b f h w c", h=h)


def strided_conv(inputs: int, outputs: int, one_sided: bool = False, *, rngs: Keys) -> nnx.Conv:
    """A 3×3 convolution of stride 2, padded by one all around, or on the right and bottom only."""
    return nnx.Conv(inputs, outputs, (3, 3), strides=2, padding=[(int(not one_sided), 1)] * 2, rngs=rngs)


class Downsample(nnx.Module):
    """Half the size; the VAE pads on one side only."""

    def __init__(self, channels: int, one_sided: bool = False, *, rngs: Keys):
        self.conv = strided_conv(channels, channels, one_sided, rngs=rngs)

    def __call__(self, x: Float[Array, "*rows h w c"]) -> Float[Array, "*rows h2 w2 c"]:
        return self.conv(x)


class Upsample(nnx.Module):
    """Nearest neighbour to twice the size, then a convolution."""

    def __init__(self, channels: int, *, rngs: Keys):
        self.conv = conv(channels, channels, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b f h w c"], size: tuple[int, int] | None = None
    ) -> Float[Array, "b f h2 w2 c"]:
        """size: crop to it, where the level above has an odd side."""
        x = repeat(x, "b f h w c -> b f (h h2) (w w2) c", h2=2, w2=2)
        return self.conv(x if size is None else x[:, :, : size[0], : size[1]])


# --- attention -------------------------------------------------------------------------------------------------------


def attend(
    q: Float[Array, "rows t n d"], k: Float[Array, "rows u n d"], v: Float[Array, "rows u n d"]
) -> Float[Array, "rows t n d"]:
    """softmax(q kᵀ / √d) v, by a fused kernel where the device has one, else in pieces of at most MAX_LOGITS logits."""
    half = q.dtype != jnp.float32
    if half and q.shape[-1] <= 128 and q.shape[-1] % 8 == 0 and _has_fused_attention():
        return jax.lax.platform_dependent(q, k, v, cuda=_attend_fused, default=_attend_in_pieces)
    return _attend_in_pieces(q, k, v)


@functools.cache
def _has_fused_attention() -> bool:
    """Is there a card of Ampere or later, on which cuDNN has flash attention?"""
    try:
        return all(float(device.compute_capability) >= 8 for device in jax.devices("cuda"))
    except RuntimeError:
        return False


def _attend_fused(q, k, v):
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


def _attend_in_pieces(q, k, v):
    if q.dtype == jnp.float16:
        # XLA has no float16 products with a float32 sum for CPUs.
        return _attend_in_pieces(*(x.astype(jnp.float32) for x in (q, k, v))).astype(q.dtype)
    attention = jax.nn.dot_product_attention
    rows, tokens, heads, _ = q.shape
    per_query = heads * k.shape[1]
    if rows * tokens * per_query <= MAX_LOGITS:
        return attention(q, k, v)
    if tokens * per_query <= MAX_LOGITS:
        whole_row = lambda row: attention(*(x[None] for x in row))[0]
        return jax.lax.map(whole_row, (q, k, v), batch_size=MAX_LOGITS // (tokens * per_query))

    def one_row(row):
        q, k, v = row
        return jax.lax.map(lambda query: attention(query[None], k, v)[0], q, batch_size=max(1, MAX_LOGITS // per_query))

    return jax.lax.map(one_row, (q, k, v))


class Attention(nnx.Module):
    """Multi-head attention over a row's own tokens, or over the tokens of a context."""

    def __init__(self, channels: int, heads: int, context_channels: int | None = None, bias=False, *, rngs: Keys):
        context_channels = context_channels or channels
        self.heads = heads
        self.to_q = nnx.Linear(channels, channels, use_bias=bias, rngs=rngs)
        self.to_k = nnx.Linear(context_channels, channels, use_bias=bias, rngs=rngs)
        self.to_v = nnx.Linear(context_channels, channels, use_bias=bias, rngs=rngs)
        self.to_out = nnx.List([nnx.Linear(channels, channels, rngs=rngs)])

    def __call__(
        self, x: Float[Array, "rows t c"], context: Float[Array, "some u e"] | None = None
    ) -> Float[Array, "rows #t c"]:
        """Rows beyond the context's have a context of zeros, over which attention is `to_out`'s bias, exactly.

        A context of one token needs no attention either: softmax over one key is 1.
        """
        context = x if context is None else context
        heads = lambda y: rearrange(y, "r t (n d) -> r t n d", n=self.heads)
        some = context.shape[0]
        v = self.to_v(context)
        if context.shape[1] > 1:
            mixed = attend(heads(self.to_q(x[:some])), heads(self.to_k(context)), heads(v))
            v = rearrange(mixed, "r t n d -> r t (n d)")
        out = self.to_out[0](v)
        if some < x.shape[0]:
            bias = jnp.broadcast_to(self.to_out[0].bias[...], (x.shape[0] - some, *out.shape[1:]))
            out = jnp.concatenate([out, bias.astype(out.dtype)])
        return out


class GEGLU(nnx.Module):
    """A linear layer gated by the GELU of another (Shazeer 2020)."""

    def __init__(self, inputs: int, outputs: int, *, rngs: Keys):
        self.proj = nnx.Linear(inputs, 2 * outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "*rows c"]) -> Float[Array, "*rows c2"]:
        x, gate = jnp.split(self.proj(x), 2, axis=-1)
        return x * jax.nn.gelu(gate, approximate=False)


class FeedForward(nnx.Module):
    def __init__(self, channels: int, *, rngs: Keys):
        hidden = 4 * channels
        # The released list has a dropout of rate 0 in the middle; the parameters' names count it.
        self.net = nnx.List([GEGLU(channels, hidden, rngs=rngs), None, nnx.Linear(hidden, channels, rngs=rngs)])

    def __call__(self, x: Float[Array, "*rows c"]) -> Float[Array, "*rows c"]:
        return self.net[2](self.net[0](x))


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention, feed-forward; a temporal block begins with one more feed-forward.

    A spatial block attends within each frame, a temporal block along the frames at each position.
    """

    def __init__(self, channels: int, heads: int, context_channels: int | None, temporal: bool = False, *, rngs: Keys):
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
            # Frames that share their context are one row of queries: its keys and values are computed once.
            frames = context.shape[1]
            rows = rearrange(self.norm2(x), "b (f2 g) s c -> (b f2) (g s) c", f2=frames)
            out = self.attn2(rows, rearrange(context, "b f2 u e -> (b f2) u e"))
            if out.shape[1] == 1:  # one token: the same for every query
                x = x + rearrange(out, "(b f2) 1 c -> b f2 1 c", f2=frames)
            else:
                x = x + rearrange(out, "(b f2) (g s) c -> b (f2 g) s c", f2=frames, s=s)
        return x + self.ff(self.norm3(x))


class SpatioTemporalTransformer(nnx.Module):
    """Pairs of a spatial and a temporal transformer block, blended, between two projections."""

    def __init__(self, channels, heads, num_layers, context_channels, temporal_context_channels, groups, *, rngs: Keys):
        self.norm = group_norm(channels, groups, 1e-6, rngs=rngs)
        self.proj_in = nnx.Linear(channels, channels, rngs=rngs)
        self.transformer_blocks = nnx.List(
            [TransformerBlock(channels, heads, context_channels, rngs=rngs) for _ in range(num_layers)]
        )
        self.temporal_transformer_blocks = nnx.List(
            [TransformerBlock(channels, heads, temporal_context_channels, True, rngs=rngs) for _ in range(num_layers)]
        )
        self.time_pos_embed = TimestepEmbedding(channels, 4 * channels, channels, rngs=rngs)
        self.time_mixer = TimeMixer()
        self.proj_out = nnx.Linear(channels, channels, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b f h w c"], context: Float[Array, "b2 f2 u e"], image_only=None
    ) -> Float[Array, "b f h w c"]:
        f, h, _, c = x.shape[1:]
        position = self.time_pos_embed(sinusoid(jnp.arange(f, dtype=jnp.float32), c))[:, None]
        y = rearrange(self.norm(rearrange(x, "b f h w c -> (b f) h w c")), "(b f) h w c -> b f (h w) c", f=f)
        y = self.proj_in(y)
        for spatial, temporal in zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True):
            y = spatial(y, context)
            # Every frame of the temporal branch sees the first frame's context.
            y = self.time_mixer(y, temporal(y + position, context[:, :1]), image_only)
        return x + rearrange(self.proj_out(y), "b f (h w) c -> b f h w c", h=h)
