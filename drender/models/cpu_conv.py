"""2-D convolution, computed in the way that is fastest for its shape and device.

A kernel of one tap is a matrix product, and so is a convolution over few positions. XLA's convolution does the rest,
except on a CPU. There, kernels of three taps use minimal filtering: F(2, 3) computes two neighboring outputs from four
products instead of six, and from 16 instead of 36 along both axes (Winograd 1980; Lavin & Gray 2016, "Fast Algorithms
for Convolutional Neural Networks", section 4.1). In float32 it is as exact as the direct sum.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jaxtyping import Array, Float

# Below this many positions, reading the kernel dominates. XLA's CPU convolution would first copy it into another
# layout, and filtering it takes as long, so use a matrix product.
FEW_POSITIONS = 512
# With fewer input or output channels, the additions of filtering cost more than the products that it saves.
FEW_CHANNELS = 64
# With fewer channels and positions, filtering is no faster and takes several times as long to compile.
MANY_CHANNELS, MANY_POSITIONS = 256, 2**17
# Input elements that are filtered at a time: 8 MiB in float32, so that they stay in a CPU's cache.
CHUNK_SIZE = 2**21

Padding = Sequence[tuple[int, int]]


def conv2d(
    x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw c c2"], padding: Padding, stride: int = 1
) -> Float[Array, "n h2 w2 c2"]:
    """Convolve images with a kernel (cross-correlation, as everywhere in deep learning).

    Args:
      padding: zeros before and after the rows, and before and after the columns.
      stride: 1, with odd kernels and padding that keeps the grid's size, or 2.
    """
    if stride == 1:
        kernel, padding = _crop_to_grid(kernel, x.shape[1:3])
    if kernel.shape[:2] == (1, 1):
        return x @ kernel[0, 0]
    positions, channels, taps = math.prod(x.shape[:3]), min(kernel.shape[2:]), set(kernel.shape[:2])
    if positions < FEW_POSITIONS * stride**2:
        return _conv_by_product(x, kernel, padding, stride)
    large = channels >= MANY_CHANNELS or (channels >= FEW_CHANNELS and positions >= MANY_POSITIONS)
    if large and stride == 1 and 3 in taps <= {1, 3} and x.dtype == jnp.float32:
        return _conv_filtered_on_cpu(x, kernel)
    return _conv_by_xla(x, kernel, padding, stride)


def _crop_to_grid(kernel: Float[Array, "kh kw c c2"], grid: tuple[int, int]) -> tuple[Array, Padding]:
    """Drop the taps that see nothing but padding, and return the kernel with the padding that keeps the grid's size.

    On a grid one wide only the center tap is left: the temporal convolution of a single image, or the deepest level of
    a small one.
    """
    reach = [min(k // 2, size - 1) for k, size in zip(kernel.shape, grid, strict=False)]
    center = [slice(k // 2 - r, k // 2 + r + 1) for k, r in zip(kernel.shape, reach, strict=False)]
    return kernel[*center], [(r, r) for r in reach]


def _conv_by_xla(x, kernel, padding: Padding, stride: int = 1):
    layouts = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layouts)


def _conv_by_product(x, kernel, padding: Padding, stride: int):
    """Multiply the shifted images of all taps, side by side in channels, with the flattened kernel (im2col)."""
    x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
    kh, kw = kernel.shape[:2]
    h, w = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    shifted = [x[:, i : i + h : stride, j : j + w : stride] for i in range(kh) for j in range(kw)]
    return jnp.concatenate(shifted, axis=-1) @ rearrange(kernel, "kh kw c c2 -> (kh kw c) c2")


# --- minimal filtering -----------------------------------------------------------------------------------------------


@jax.custom_jvp
def _conv_filtered_on_cpu(x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw c c2"]) -> Float[Array, "n h w c2"]:
    """Convolve with a kernel that is three long along one axis or both; by minimal filtering on CPUs alone."""
    return lax.platform_dependent(x, kernel, cpu=_conv_filtered, default=_conv_same)


@_conv_filtered_on_cpu.defjvp
def _conv_filtered_jvp(primals, tangents):
    # Differentiating the filtering would keep all of its sums for the backward pass, so differentiate the convolution.
    (x, kernel), (dx, dkernel) = primals, tangents
    return _conv_filtered_on_cpu(x, kernel), _conv_same(dx, kernel) + _conv_same(x, dkernel)


def _conv_same(x, kernel):
    return _conv_by_xla(x, kernel, [(k // 2, k // 2) for k in kernel.shape[:2]])


def _conv_filtered(x, kernel):
    """Compute Aᵀ[(G g) ⊙ (Bᵀ d)] for tiles d of the input, along each axis on which the kernel g is three long."""
    n, h, w, _ = x.shape
    axes = [axis for axis in (1, 2) if kernel.shape[axis - 1] == 3]
    kernels = [kernel]
    for axis in axes:
        kernels = [part for k in kernels for part in _filter_kernel(k, axis - 1)]

    def convolve(x):
        parts = [x]
        for axis in axes:
            parts = [part for p in parts for part in _filter_input(p, axis)]
        products = [part @ k[0, 0] for part, k in zip(parts, kernels, strict=True)]
        for axis in reversed(axes):
            products = [_filter_output(*products[i : i + 4], axis) for i in range(0, len(products), 4)]
        return products[0]

    bands = _cut_into_bands(x, axes)
    num_bands = len(bands) // n
    chunk = max(1, CHUNK_SIZE // math.prod(bands.shape[1:]))
    if len(bands) <= chunk:
        y = convolve(bands)
    else:
        y = lax.map(lambda band: convolve(band[None])[0], bands, batch_size=chunk)
    return rearrange(y, "(n bands) h w c -> n (bands h) w c", bands=num_bands)[:, :h, :w]


def _cut_into_bands(x: Float[Array, "n h w c"], axes: list[int]) -> Float[Array, "rows h2 w2 c"]:
    """Pad the filtered axes to whole tiles, and cut images above `CHUNK_SIZE` into bands of rows.

    Tiles are two outputs wide and see one input more on each side, so bands overlap by two rows.
    """
    h, w = x.shape[1:3]
    tile = 2 if 1 in axes else 1
    num_bands = min(math.ceil(math.prod(x.shape[1:]) / CHUNK_SIZE), math.ceil(h / tile))
    height = tile * math.ceil(h / tile / num_bands)
    padding = {1: (1, num_bands * height - h + 1), 2: (1, w % 2 + 1)}
    x = jnp.pad(x, [padding[axis] if axis in axes else (0, 0) for axis in range(4)])
    bands = [x[:, i * height : (i + 1) * height + 2 * (tile - 1)] for i in range(num_bands)]
    return rearrange(bands, "bands n h w c -> (n bands) h w c")


def _filter_input(x, axis: int) -> list[Array]:
    """Bᵀ d: the four combinations of tiles of four inputs, which overlap by two."""
    last = x.shape[axis] - 3
    a, b, c, d = (lax.slice_in_dim(x, i, i + last, 2, axis) for i in range(4))
    return [a - c, b + c, c - b, b - d]


def _filter_kernel(kernel, axis: int) -> list[Array]:
    """G g: the four factors made from three taps."""
    a, b, c = (lax.slice_in_dim(kernel, i, i + 1, axis=axis) for i in range(3))
    return [a, (a + b + c) / 2, (a - b + c) / 2, c]


def _filter_output(a, b, c, d, axis: int) -> Array:
    """Aᵀ m: two outputs from four products, side by side along the axis."""
    y = jnp.stack([a + b + c, b - c - d], axis=axis + 1)
    return y.reshape(*y.shape[:axis], -1, *y.shape[axis + 2 :])
