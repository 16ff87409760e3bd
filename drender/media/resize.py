"""Resize frames of any shape to a size that the networks accept, and their results to the written size."""

import math
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jaxtyping import Float, Float32

from drender.errors import InputError, extent
from drender.media.encodings import renormalize_normals

Size = tuple[int, int]  # height, width
MODES = ("cover", "contain", "stretch")
OUTPUTS = ("model", "source")
MAX_GROWTH = 16  # largest factor on the pixels of the size by which a strip may exceed it to cover it


def cover_size(source: Size, target: Size, multiple: int = 64) -> Size:
    """Return the size of `source` scaled to cover `target`, each side then rounded up to a `multiple`.

    With a multiple of 64 this is the released preprocessing, which crops nothing.
    """
    (h, w), (height, width) = source, target
    # The scale, the larger of height/h and width/w, stays a fraction: a float could round 512 up to 576.
    numerator, denominator = (height, h) if height * w >= width * h else (width, w)
    return tuple(-(-side * numerator // (multiple * denominator)) * multiple for side in (h, w))


def contain_size(source: Size, target: Size) -> Size:
    """Return the size of `source` scaled to fit inside `target`, each side rounded to the nearest pixel."""
    (h, w), (height, width) = source, target
    numerator, denominator = (height, h) if height * w <= width * h else (width, w)
    return tuple(max(1, (2 * side * numerator + denominator) // (2 * denominator)) for side in (h, w))


def resize(frame: Float[np.ndarray, "h w 3"], size: Size) -> Float32[np.ndarray, "H W 3"]:
    """Resize a frame to (height, width): bilinear, antialiased, and unchanged if it has that size."""
    frame = np.asarray(frame, np.float32)
    return frame if frame.shape[:2] == tuple(size) else np.asarray(_resize(frame, shape=(*size, 3)))


_resize = jax.jit(partial(jax.image.resize, method="linear"), static_argnames="shape")


def fit_cover(frame: Float[np.ndarray, "h w 3"], size: Size) -> Float32[np.ndarray, "H W 3"]:
    """Scale a frame to cover `size` (height, width), each side rounded up to a pixel."""
    return resize(frame, cover_size(frame.shape[:2], size, multiple=1))


def center_crop(frame: Float32[np.ndarray, "H W 3"], size: Size) -> Float32[np.ndarray, "h w 3"]:
    """Crop the center of a frame to (height, width), which must be no larger."""
    top, left = ((a - b) // 2 for a, b in zip(frame.shape[:2], size, strict=True))
    return frame[top : top + size[0], left : left + size[1]]


@dataclass(frozen=True)
class ResizeConfig:
    """How frames are resized for the network, and results for writing; InputError for a side less than 1.

    Frames "cover" the size (scaled to cover it, each side then rounded up to a multiple of 64, nothing cropped: as
    released), are "contain"ed (scaled to fit inside, padded to multiples of 64 by repeating the edge, results cropped
    again: keeps the aspect to the pixel) or "stretch"ed (scaled to the size, whatever the aspect).
    """

    mode: str = "cover"
    size: Size | None = None  # None: that of each clip
    output: str = "model"  # results at the network's size, without padding; or "source": resized to the clip's size

    def __post_init__(self):
        if self.size is not None and min(self.size) < 1:
            raise InputError(f"size is {self.size[0]} {self.size[1]}; both sides must be 1 or more")

    def place(self, source: Size) -> "ResizePlan":
        """Return the sizes for a clip whose frames have this (height, width)."""
        source = tuple(source)
        target = self.size or source
        if self.mode == "contain":
            inner = contain_size(source, target)
            outer = cover_size(inner, inner)
        else:
            inner = outer = cover_size(source if self.mode == "cover" else target, target)
            if self.mode == "cover" and math.prod(inner) > MAX_GROWTH * math.prod(cover_size(target, target)):
                problem = f"{extent(source)} pixels become {extent(inner)} to cover {extent(target)}"
                raise InputError(f"{problem}, too many; crop the images to a squarer shape")
        return ResizePlan(inner, outer, source if self.output == "source" else inner)


@dataclass(frozen=True)
class ResizePlan:
    """The sizes of one clip."""

    inner: Size  # that frames are resized to
    outer: Size  # of the network's input: `inner`, padded at the bottom and on the right
    written: Size  # of the written results

    def fit(self, frame: Float[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "H W 3"]:
        """Resize and pad a frame to the network's size."""
        padding = [(0, outer - inner) for outer, inner in zip(self.outer, self.inner, strict=True)]
        return np.pad(resize(frame, self.inner), (*padding, (0, 0)), mode="edge")

    def restore(self, image: Float32[np.ndarray, "H W 3"], label: str) -> Float32[np.ndarray, "h w 3"]:
        """Crop the padding of a result and resize it to the written size."""
        image = image[: self.inner[0], : self.inner[1]]
        if self.written == self.inner:
            return image
        resized = resize(image, self.written)
        return renormalize_normals(resized) if label == "normal" else resized
