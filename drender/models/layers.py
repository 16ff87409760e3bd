"""Layers that the networks share: convolutions, norms, embeddings, and residual blocks over space and time."""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from einops import pack, rearrange, reduce, repeat, unpack
from flax import nnx
from jaxtyping import Array, Bool, Float

from drender.models.cpu_conv import conv2d

# Marks the rows of a training batch whose frames are unrelated images, to switch their temporal branches off. With True
# all rows are, and the temporal branches are not computed at all. Sampling never sets it: the temporal branches of a
# single image see one frame, as in the released pipeline.
ImageOnly = Bool[Array, " b"] | Literal[True] | None


def maybe_remat(fn: Callable, remat: bool) -> Callable:
    """Wrap `fn`, often a module, in `jax.checkpoint` if `remat`.

    The backward pass then keeps the arguments of each call and computes the rest again (Chen et al. 2016).
    """
    return jax.checkpoint(fn) if remat else fn


# --- linear layers and convolutions ----------------------------------------------------------------------------------


def parameter(*shape: int) -> nnx.Param:
    """Make a parameter that has a shape and no value: values are data, see `drender.models.params`."""
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32))


class Linear(nnx.Module):
    """A linear layer over the last axis."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        self.kernel = parameter(inputs, outputs)
        self.bias = parameter(outputs) if bias else None

    def __call__(self, x: Float[Array, "*rows c"]) -> Float[Array, "*rows c2"]:
        kernel = self.kernel[...]
        y = x.astype(kernel.dtype) @ kernel
        return y if self.bias is None else y + self.bias[...]


class Conv(nnx.Module):
    """A 2-D convolution over the last three axes; see `conv2d` for `stride` and `one_sided`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int] = (3, 3), stride: int = 1, one_sided: bool = False
    ):
        self.kernel, self.bias = parameter(*kernel, inputs, outputs), parameter(outputs)
        self.stride, self.one_sided = stride, one_sided

    def __call__(self, x: Float[Array, "*rows h w c"]) -> Float[Array, "*rows h2 w2 c2"]:
        kernel = self.kernel[...]
        x, rows = pack([x.astype(kernel.dtype)], "* h w c")
        return unpack(conv2d(x, kernel, self.stride, self.one_sided) + self.bias[...], rows, "* h w c")[0]


class Downsample(nnx.Module):
    """Halve the grid by a strided convolution; the VAE's is padded on one side only."""

    def __init__(self, channels: int, one_sided: bool = False):
        self.conv = Conv(channels, channels, stride=2, one_sided=one_sided)

    def __call__(self, x: Float[Array, "*rows h w c"]) -> Float[Array, "*rows h2 w2 c"]:
        return self.conv(x)


class Upsample(nnx.Module):
    """Double the grid by nearest neighbor, then convolve."""

    def __init__(self, channels: int):
        self.conv = Conv(channels, channels)

    def __call__(
        self, x: Float[Array, "*rows h w c"], size: tuple[int, int] | None = None
    ) -> Float[Array, "*rows h2 w2 c"]:
        """Upsample to `size` = (h2, w2), which has odd sides where the level above has; None: exactly twice."""
        x = repeat(x, "... h w c -> ... (h h2) (w w2) c", h2=2, w2=2)
        return self.conv(x if size is None else x[..., : size[0], : size[1], :])


# --- norms and embeddings --------------------------------------------------------------------------------------------


class LayerNorm(nnx.Module):
    """Layer normalization over the last axis, with float32 statistics and PyTorch's epsilon (Ba et al. 2016)."""

    def __init__(self, channels: int, eps: float = 1e-5):
        self.scale, self.bias = parameter(channels), parameter(channels)
        self.eps = eps

    def __call__(self, x: Float[Array, "*rows c"]) -> Float[Array, "*rows c"]:
        y = x.astype(jnp.float32)
        y = y - self._means(y)
        y = y * (jax.lax.rsqrt(self._means(y**2) + self.eps) * self.scale[...]) + self.bias[...]
        return y.astype(x.dtype)

    def _means(self, y: Float[Array, "*rows c"]) -> Float[Array, "*rows 1"]:
        return reduce(y, "... c -> ... 1", "mean")


class GroupNorm(LayerNorm):
    """Group normalization of each row over its grid, with float32 statistics (Wu & He 2018)."""

    def __init__(self, channels: int, groups: int, eps: float = 1e-6):
        super().__init__(channels, eps)
        self.groups = groups

    def _means(self, y: Float[Array, "rows h w c"]) -> Float[Array, "rows 1 1 c"]:
        # XLA vectorizes the mean per channel on CPUs, but not the mean over positions and channels of a group at once.
        means = reduce(y, "rows h w c -> rows c", "mean")
        means = reduce(means, "rows (g k) -> rows g", "mean", g=self.groups)
        return repeat(means, "rows g -> rows 1 1 (g k)", k=y.shape[-1] // self.groups)


def sinusoidal_embedding(x: Float[Array, "*shape"], size: int) -> Float[Array, "*shape {size}"]:
    """Embed numbers by cosines, then sines, in float32 (Vaswani et al. 2017, section 3.5)."""
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(size // 2, dtype=jnp.float32) / (size // 2))
    angles = x.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepEmbedding(nnx.Module):
    """A two-layer MLP over the features of `sinusoidal_embedding`."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        self.linear_1 = Linear(inputs, hidden)
        self.linear_2 = Linear(hidden, outputs)

    def __call__(self, features: Float[Array, "*shape inputs"]) -> Float[Array, "*shape outputs"]:
        return self.linear_2(jax.nn.silu(self.linear_1(features)))


class AlphaBlender(nnx.Module):
    """Blend the spatial and the temporal branch by one learned factor (Blattmann et al. 2023, SVD's `AlphaBlender`).

    The sigmoid of the UNet's factor weighs the spatial branch, that of the VAE decoder's weighs the temporal one.
    """

    def __init__(self, weighs_temporal: bool = False):
        self.weighs_temporal = weighs_temporal
        self.mix_factor = parameter(1)

    def __call__(
        self, spatial: Float[Array, "b ..."], temporal: Float[Array, "b ..."], image_only: ImageOnly = None
    ) -> Float[Array, "b ..."]:
        weight = jax.nn.sigmoid(self.mix_factor[...])
        weight = 1 - weight if self.weighs_temporal else weight
        if image_only is not None:
            weight = jnp.where(image_only, 1, weight).reshape(-1, *[1] * (spatial.ndim - 1)).astype(spatial.dtype)
        return weight * spatial + (1 - weight) * temporal


# --- residual blocks -------------------------------------------------------------------------------------------------


class ResnetBlock(nnx.Module):
    """Norm, SiLU and convolution, twice, beside a shortcut.

    It works on images, `(b f) h w c`, or over time, on `b f (h w) c`. A kernel (3, 1) then equals PyTorch's 3-D
    convolution with kernel (3, 1, 1), and 2-D convolutions are faster.
    """

    def __init__(
        self, inputs: int, outputs: int, groups: int, eps: float, time_channels: int | None, over_time: bool = False
    ):
        kernel = (3, 1) if over_time else (3, 3)
        self.norm1 = GroupNorm(inputs, groups, eps)
        self.conv1 = Conv(inputs, outputs, kernel)
        self.time_emb_proj = Linear(time_channels, outputs) if time_channels else None
        self.norm2 = GroupNorm(outputs, groups, eps)
        self.conv2 = Conv(outputs, outputs, kernel)
        self.conv_shortcut = Conv(inputs, outputs, (1, 1)) if inputs != outputs else None

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
    """A residual block over each frame, then one over time, blended (Blattmann et al. 2023, "Align your Latents")."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        groups: int,
        eps: float,
        temporal_eps: float,
        time_channels: int | None = None,
        weighs_temporal: bool = False,
    ):
        self.spatial_res_block = ResnetBlock(inputs, outputs, groups, eps, time_channels)
        self.temporal_res_block = ResnetBlock(outputs, outputs, groups, temporal_eps, time_channels, over_time=True)
        self.time_mixer = AlphaBlender(weighs_temporal)

    def __call__(
        self, x: Float[Array, "b f h w c"], time: Float[Array, "b e"] | None = None, image_only: ImageOnly = None
    ) -> Float[Array, "b f h w c2"]:
        f, h = x.shape[1:3]
        x = self.spatial_res_block(rearrange(x, "b f h w c -> (b f) h w c"), time)
        if image_only is True:
            return rearrange(x, "(b f) h w c -> b f h w c", f=f)
        x = rearrange(x, "(b f) h w c -> b f (h w) c", f=f)
        x = self.time_mixer(x, self.temporal_res_block(x, time), image_only)
        return rearrange(x, "b f (h w) c -> b f h w c", h=h)


class Level(nnx.Module):
    """The layers of one grid size under their released names. The `__call__` of a network runs them."""

    def __init__(self, resnets: Sequence[nnx.Module], attentions: Sequence[nnx.Module] = ()):
        self.resnets, self.attentions = nnx.List(resnets), nnx.List(attentions)
        self.downsamplers, self.upsamplers = nnx.List(), nnx.List()
