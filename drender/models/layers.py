"""The convolutional parts that the UNet, the VAE and the environment encoder share.

Attributes bear the names of the released checkpoints, so that conversion is one rule (see `convert.py`). A module
computes in the dtype of its parameters; norms take their statistics in float32.

Shapes: b batch, f frames, h w grid, s = h·w positions, c channels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat
from flax import nnx
from jaxtyping import Array, Bool, Float

from drender.models.cpu_conv import conv2d
from drender.models.params import ParamRngs


def call(block: Callable, *arguments):
    return block(*arguments)


def maybe_remat(fn: Callable, remat: bool) -> Callable:
    """With `remat` a function of modules and arrays of which the backward pass keeps nothing but the arguments.

    What is inside is computed again (Chen et al. 2016), one call of `fn` at a time: time for memory.
    """
    return jax.checkpoint(fn) if remat else fn


class Conv(nnx.Conv):
    """A convolution, of stride 1 with the padding that keeps the grid, as torch writes `padding=kernel // 2`."""

    def __call__(self, x: Float[Array, "*rows h w c"]) -> Float[Array, "*rows h2 w2 c2"]:
        rows, x = x.shape[:-3], x.reshape(-1, *x.shape[-3:])
        kernel, padding = self.kernel[...], self.padding
        if self.strides == 1:
            # Taps that would see nothing but padding are left out: on a grid one wide (the temporal convolution of a
            # single image, the deepest level of a small one) that is all but the middle.
            reach = [min(k // 2, size - 1) for k, size in zip(kernel.shape[:2], x.shape[1:3], strict=True)]
            middle = [slice(k // 2 - r, k // 2 + r + 1) for k, r in zip(kernel.shape[:2], reach, strict=True)]
            kernel, padding = kernel[*middle], [(r, r) for r in reach]
        y = conv2d(x, kernel, padding, self.strides) + self.bias[...]
        return y.reshape(*rows, *y.shape[1:])


def conv(inputs: int, outputs: int, kernel: int | tuple = 3, *, rngs: ParamRngs) -> Conv:
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


def group_norm(channels: int, groups: int, eps: float, *, rngs: ParamRngs) -> GroupNorm:
    return GroupNorm(channels, groups, epsilon=eps, rngs=rngs)


def sinusoidal_embedding(x: Float[Array, "*shape"], size: int) -> Float[Array, "*shape {size}"]:
    """Transformer position features of a number, cosines first, in float32 (Vaswani et al. 2017, section 3.5)."""
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(size // 2, dtype=jnp.float32) / (size // 2))
    angles = x.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepEmbedding(nnx.Module):
    """The MLP over `sinusoid` features."""

    def __init__(self, inputs: int, hidden: int, outputs: int, *, rngs: ParamRngs):
        self.linear_1 = nnx.Linear(inputs, hidden, rngs=rngs)
        self.linear_2 = nnx.Linear(hidden, outputs, rngs=rngs)

    def __call__(self, features: Float[Array, "*shape inputs"]) -> Float[Array, "*shape outputs"]:
        features = features.astype(self.linear_1.kernel[...].dtype)
        return self.linear_2(jax.nn.silu(self.linear_1(features)))


class AlphaBlender(nnx.Module):
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

    def __init__(self, inputs, outputs, time_channels, groups, eps, kernel=(3, 3), *, rngs: ParamRngs):
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
    """A residual block over each frame, then one over time, blended; `image_only` is explained in `UNet.__call__`."""

    def __init__(
        self, inputs, outputs, time_channels, groups, eps, temporal_eps=None, weighs_temporal=False, *, rngs: ParamRngs
    ):
        self.spatial_res_block = ResnetBlock(inputs, outputs, time_channels, groups, eps, rngs=rngs)
        self.temporal_res_block = ResnetBlock(
            outputs, outputs, time_channels, groups, temporal_eps or eps, (3, 1), rngs=rngs
        )
        self.time_mixer = AlphaBlender(weighs_temporal)

    def __call__(self, x: Float[Array, "b f h w c"], time=None, image_only=None) -> Float[Array, "b f h w c2"]:
        f, h = x.shape[1:3]
        spatial = self.spatial_res_block(rearrange(x, "b f h w c -> (b f) h w c"), time)
        if image_only is True:
            return rearrange(spatial, "(b f) h w c -> b f h w c", f=f)
        spatial = rearrange(spatial, "(b f) h w c -> b f (h w) c", f=f)
        temporal = self.temporal_res_block(spatial, time)
        return rearrange(self.time_mixer(spatial, temporal, image_only), "b f (h w) c -> b f h w c", h=h)


def strided_conv(inputs: int, outputs: int, one_sided: bool = False, *, rngs: ParamRngs) -> Conv:
    """A 3×3 convolution of stride 2, padded by one all around, or on the right and bottom only."""
    return Conv(inputs, outputs, (3, 3), strides=2, padding=[(int(not one_sided), 1)] * 2, rngs=rngs)


class Downsample(nnx.Module):
    """Half the size; the VAE pads on one side only."""

    def __init__(self, channels: int, one_sided: bool = False, *, rngs: ParamRngs):
        self.conv = strided_conv(channels, channels, one_sided, rngs=rngs)

    def __call__(self, x: Float[Array, "*rows h w c"]) -> Float[Array, "*rows h2 w2 c"]:
        return self.conv(x)


class Upsample(nnx.Module):
    """Nearest neighbour to twice the size, then a convolution."""

    def __init__(self, channels: int, *, rngs: ParamRngs):
        self.conv = conv(channels, channels, rngs=rngs)

    def __call__(
        self, x: Float[Array, "*rows h w c"], size: tuple[int, int] | None = None
    ) -> Float[Array, "*rows h2 w2 c"]:
        """size: crop to it, where the level above has an odd side."""
        x = repeat(x, "... h w c -> ... (h h2) (w w2) c", h2=2, w2=2)
        return self.conv(x if size is None else x[..., : size[0], : size[1], :])
