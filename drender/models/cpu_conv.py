"""Convolutions, each the way that is fastest where it runs.

A kernel of one tap is a product of matrices, and so is a convolution over few positions. On a CPU one over many takes
fewer products than it has taps, by minimal filtering: F(2, 3) makes two neighbouring outputs of three taps of four
products instead of six, and along both axes of 16 instead of 36 (Winograd 1980; Lavin & Gray 2016, "Fast Algorithms
for Convolutional Neural Networks", section 4.1). In float32 that is as exact as the plain sum. Cards have cuDNN.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jaxtyping import Array, Float

# Below so many positions reading the kernel is most of the work, and XLA's convolutions for CPUs first copy it into
# another layout; filtering it takes as long.
FEW_POSITIONS = 512
# With fewer channels, of inputs or outputs, what filtering adds up takes longer than the products it saves.
FEW_CHANNELS = 64
# Numbers of the input that are filtered at a time on a CPU: 8 MiB, so that they stay in its cache.
PIECE = 2**21


def conv2d(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c c2"],
    padding: Sequence[tuple[int, int]],
    stride: int = 1,
) -> Float[Array, "n h2 w2 c2"]:
    """The sum over a kernel's taps, which is what networks call a convolution.

    Args:
      padding: before and after the rows, and the columns, with zeros.
      stride: 1, with such padding that the grid keeps its size, or 2.
    """
    if kernel.shape[:2] == (1, 1):
        return x @ kernel[0, 0]
    if math.prod(x.shape[:3]) < FEW_POSITIONS * stride**2:
        return _as_product(x, kernel, padding, stride)
    taps = set(kernel.shape[:2])
    if stride == 1 and 3 in taps <= {1, 3} and x.dtype == jnp.float32 and min(kernel.shape[2:]) >= FEW_CHANNELS:
        return _minimal(x, kernel)
    return _plain(x, kernel, padding, stride)


def _plain(x, kernel, padding, stride):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=dimensions)


def _as_product(x, kernel, padding, stride):
    x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
    kh, kw, c, outputs = kernel.shape
    h, w = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    taps = [x[:, i : i + h : stride, j : j + w : stride] for i in range(kh) for j in range(kw)]
    return jnp.concatenate(taps, axis=-1) @ kernel.reshape(kh * kw * c, outputs)


# --- minimal filtering -----------------------------------------------------------------------------------------------


@jax.custom_jvp
def _minimal(x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw c c2"]) -> Float[Array, "n h w c2"]:
    """A convolution whose kernel is three long along either axis or both; on a CPU by minimal filtering."""
    return lax.platform_dependent(x, kernel, cpu=_filter, default=_centred)


@_minimal.defjvp
def _minimal_jvp(primals, tangents):
    # Of the filtering, a backward pass would keep every sum.
    (x, kernel), (dx, dkernel) = primals, tangents
    return _minimal(x, kernel), _centred(dx, kernel) + _centred(x, dkernel)


def _centred(x, kernel):
    return _plain(x, kernel, [(k // 2, k // 2) for k in kernel.shape[:2]], stride=1)


def _filter(x, kernel):
    n, h, w, _ = x.shape
    axes = [axis for axis in (1, 2) if kernel.shape[axis - 1] == 3]
    # Large grids are cut into bands of rows, small ones taken together, so that a piece fits the cache.
    step = 2 if 1 in axes else 1
    bands = min(math.ceil(math.prod(x.shape[1:]) / PIECE), math.ceil(h / step))
    height = step * math.ceil(h / step / bands)
    padding = [(0, 0), (1, bands * height - h + 1), (1, w % 2 + 1), (0, 0)]
    x = jnp.pad(x, [p if axis in (0, 3, *axes) else (0, 0) for axis, p in enumerate(padding)])
    x = jnp.stack([x[:, i * height : (i + 1) * height + 2 * (step - 1)] for i in range(bands)], axis=1)
    x = rearrange(x, "n bands h w c -> (n bands) h w c")

    kernels = [kernel]
    for axis in axes:
        kernels = [k for each in kernels for k in _of_kernel(each, axis - 1)]

    def filtered(x):
        sums = [x]
        for axis in axes:
            sums = [s for each in sums for s in _of_input(each, axis)]
        products = [s @ k[0, 0] for s, k in zip(sums, kernels, strict=True)]
        for axis in reversed(axes):
            products = [_of_output(*products[i : i + 4], axis) for i in range(0, len(products), 4)]
        return products[0]

    together = max(1, PIECE // math.prod(x.shape[1:]))
    in_pieces = lambda x: lax.map(lambda piece: filtered(piece[None])[0], x, batch_size=together)
    y = filtered(x) if len(x) <= together else in_pieces(x)
    return rearrange(y, "(n bands) h w c -> n (bands h) w c", n=n)[:, :h, :w]


def _of_input(x, axis: int) -> list[Array]:
    """What is multiplied, of tiles of four that overlap by two (Bᵀ d)."""
    last = x.shape[axis] - 3
    a, b, c, d = (lax.slice_in_dim(x, i, i + last, 2, axis) for i in range(4))
    return [a - c, b + c, c - b, b - d]


def _of_kernel(kernel, axis: int) -> list[Array]:
    """What it is multiplied with (G g)."""
    a, b, c = (lax.slice_in_dim(kernel, i, i + 1, axis=axis) for i in range(3))
    return [a, (a + b + c) / 2, (a - b + c) / 2, c]


def _of_output(a, b, c, d, axis: int) -> Array:
    """Two outputs of four products (Aᵀ m), beside each other along the axis."""
    y = jnp.stack([a + b + c, b - c - d], axis=axis + 1)
    return y.reshape(*y.shape[:axis], -1, *y.shape[axis + 2 :])
