"""2-D convolution, computed in the way that is fastest for its shape and device.

A kernel of one tap is a matrix product, and so is a convolution over few positions. XLA's convolution does the rest,
except on a CPU. There, wide kernels of 3×3 taps use minimal filtering: F(2×2, 3×3) computes four neighboring outputs
from 16 products instead of 36 (Winograd 1980; Lavin & Gray 2016, "Fast Algorithms for Convolutional Neural Networks",
section 4.1). In float32 it is as exact as the direct sum.
"""

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jaxtyping import Array, Float

# Below this many positions, reading the kernel dominates. XLA's CPU convolution would first copy it into another
# layout, and filtering it takes as long, so use a matrix product.
FEW_POSITIONS = 512
# With fewer input or output channels, filtering is hardly faster and takes several times as long to compile.
MANY_CHANNELS = 256
# Input elements that are filtered at a time, or one image: 8 MiB in float32, so that they stay in a CPU's cache.
CHUNK_SIZE = 2**21


def conv2d(
    x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw c c2"], stride: int = 1, one_sided: bool = False
) -> Float[Array, "n h2 w2 c2"]:
    """Convolve images with a kernel of odd sides (cross-correlation, as everywhere in deep learning).

    Zeros around the grid keep its size, or with `stride` 2 half of it; `one_sided`: on the right and bottom only.
    """
    if stride == 1:
        kernel = _crop_to_grid(kernel, x.shape[1:3])
    padding = [(0 if one_sided else k // 2, k // 2) for k in kernel.shape[:2]]
    if kernel.shape[:2] == (1, 1):
        return x @ kernel[0, 0]
    if math.prod(x.shape[:3]) < FEW_POSITIONS * stride**2:
        return _conv_by_product(x, kernel, padding, stride)
    is_wide = kernel.shape[:2] == (3, 3) and min(kernel.shape[2:]) >= MANY_CHANNELS
    if is_wide and stride == 1 and x.dtype == jnp.float32:
        return _conv_filtered_on_cpu(x, kernel)
    return _conv_by_xla(x, kernel, padding, stride)


def _crop_to_grid(kernel: Float[Array, "kh kw c c2"], grid: tuple[int, int]) -> Float[Array, "_ _ c c2"]:
    """Drop the taps that see nothing but padding.

    On a grid one wide only the center tap is left: the temporal convolution of a single image, or the deepest level of
    a small one.
    """
    cut = [max(k // 2 - (size - 1), 0) for k, size in zip(kernel.shape, grid, strict=False)]
    return kernel[*(slice(c, k - c) for c, k in zip(cut, kernel.shape, strict=False))]


def _conv_by_xla(x, kernel, padding="SAME", stride: int = 1):
    layouts = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layouts)


def _conv_by_product(x, kernel, padding: list[tuple[int, int]], stride: int):
    """Multiply the shifted images of all taps, side by side in channels, with the flattened kernel (im2col)."""
    x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
    kh, kw = kernel.shape[:2]
    h, w = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    shifted = [x[:, i : i + h : stride, j : j + w : stride] for i in range(kh) for j in range(kw)]
    return jnp.concatenate(shifted, axis=-1) @ rearrange(kernel, "kh kw c c2 -> (kh kw c) c2")


# --- minimal filtering -----------------------------------------------------------------------------------------------


@jax.custom_jvp
def _conv_filtered_on_cpu(x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c c2"]) -> Float[Array, "n h w c2"]:
    """Convolve and keep the grid's size; by minimal filtering on CPUs alone."""
    return lax.platform_dependent(x, kernel, cpu=_conv_filtered, default=_conv_by_xla)


@_conv_filtered_on_cpu.defjvp
def _conv_filtered_jvp(primals, tangents):
    # Differentiating the filtering would keep all of its sums for the backward pass, so differentiate the convolution.
    (x, kernel), (dx, dkernel) = primals, tangents
    return _conv_filtered_on_cpu(x, kernel), _conv_by_xla(dx, kernel) + _conv_by_xla(x, dkernel)


def _conv_filtered(x, kernel):
    """Compute Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A for tiles d of 4×4 inputs, which give 2×2 outputs each."""
    n, h, w, _ = x.shape
    kernels = [part for rows in _filter_kernel(kernel, 0) for part in _filter_kernel(rows, 1)]

    def convolve(x):
        parts = [part for rows in _filter_input(x, 1) for part in _filter_input(rows, 2)]
        products = [part @ k[0, 0] for part, k in zip(parts, kernels, strict=True)]
        rows = [_filter_output(*products[i : i + 4], axis=2) for i in range(0, 16, 4)]
        return _filter_output(*rows, axis=1)

    x = jnp.pad(x, [(0, 0), (1, h % 2 + 1), (1, w % 2 + 1), (0, 0)])  # to whole tiles
    chunk = max(1, CHUNK_SIZE // math.prod(x.shape[1:]))
    y = convolve(x) if n <= chunk else lax.map(lambda image: convolve(image[None])[0], x, batch_size=chunk)
    return y[:, :h, :w]


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
