"""Sizes: how a frame of any shape becomes one that a network takes."""

from functools import partial

import jax
import numpy as np
from jaxtyping import Float, Float32


def cover_size(source: tuple[int, int], target: tuple[int, int], multiple: int = 64) -> tuple[int, int]:
    """The (height, width) of `source` scaled to cover `target`, then each side rounded up to a `multiple`.

    With 64 this is the released preprocessing; it crops nothing.
    """
    (h, w), (height, width) = source, target
    # The scale, the larger of height/h and width/w, stays a fraction: a float could turn 512 into 512.0000001, and 576.
    numerator, denominator = (height, h) if height * w >= width * h else (width, w)
    return tuple(-(-side * numerator // (multiple * denominator)) * multiple for side in (h, w))


def fit_cover(
    frames: Float[np.ndarray, "*b h w 3"], size: tuple[int, int] | None = None, multiple: int = 64
) -> Float32[np.ndarray, "*b H W 3"]:
    """The frame or frames at the `cover_size` of `size` (height, width), or of their own: bilinear and antialiased."""
    size = cover_size(frames.shape[-3:-1], size or frames.shape[-3:-1], multiple)
    frames = np.asarray(frames, np.float32)
    if size == frames.shape[-3:-1]:
        return frames
    resized = np.empty((*frames.shape[:-3], *size, 3), np.float32)
    for index in np.ndindex(*frames.shape[:-3]):  # one at a time: they may be large
        resized[index] = _resize(frames[index], shape=(*size, 3))
    return resized


_resize = jax.jit(partial(jax.image.resize, method="linear"), static_argnames="shape")
