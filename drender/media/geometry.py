"""The size and place of an image's pixels: square pixels, the display window of an EXR, EXIF's orientation."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import OpenImageIO as oiio
from jaxtyping import Float32

from drender.media.color import Pixels
from drender.media.loaded import warn_once

MAX_ASPECT = 8  # of pixels; more is damage
ROUNDED_ASPECT = 0.01  # logarithm of the ratio of two resolutions that are meant to be equal


def square_size(path: str | Path, height: int, width: int, aspect: float | Fraction) -> tuple[int, int]:
    """Return the (height, width) at which pixels of an aspect ratio (width / height) are square; no side shrinks.

    Ratios beyond MAX_ASPECT are ignored with a warning; 0 or less, or a ratio that is not finite, states nothing.
    """
    if not 0 < aspect < float("inf"):
        return height, width
    if not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
        warn_once(path, f"its pixel aspect ratio of {float(aspect):g} is ignored; resize it to square pixels")
        return height, width
    return max(1, round(height / min(aspect, 1))), max(1, round(width * max(aspect, 1)))


def shown_size(path: str | Path, spec: "oiio.ImageSpec") -> tuple[int, int]:
    """Return the (height, width) of an image's display window in square pixels, before it is turned upright.

    Only EXR states the shape of pixels. Elsewhere the ratio is that of two print resolutions, which viewers ignore.
    """
    size = (spec.full_height, spec.full_width) if spec.full_width * spec.full_height else (spec.height, spec.width)
    aspect = spec.get_float_attribute("PixelAspectRatio", 1.0)
    if Path(path).suffix.lower() == ".exr":
        return square_size(path, *size, aspect)
    if aspect > 0 and abs(np.log(aspect)) > ROUNDED_ASPECT:
        warn_once(path, f"its unequal resolutions are ignored, as viewers do; resize it if pixels are {aspect:.3g}:1")
    return size


def resample(image: Pixels, size: tuple[int, int], label: str) -> Float32[np.ndarray, "H W 3"]:
    """Stretch an image of oblong pixels: bilinear, and depth to the nearest, whose background is not to be mixed."""
    if image.shape[:2] == size:
        return image
    region = oiio.ROI(0, size[1], 0, size[0], 0, 1, 0, 3)
    resampled = oiio.ImageBufAlgo.resample(oiio.ImageBuf(image), interpolate=label != "depth", roi=region)
    return resampled.get_pixels(oiio.FLOAT)


def in_display_window(image: Pixels, spec: "oiio.ImageSpec", background: float) -> Float32[np.ndarray, "H W 3"]:
    """Place the data window of an EXR in its display window: `background` outside, overscan cropped."""
    size, top, left = (spec.full_height, spec.full_width), spec.y - spec.full_y, spec.x - spec.full_x
    if 0 in size or (size == image.shape[:2] and (top, left) == (0, 0)):
        return image
    placed = np.full((*size, 3), background, np.float32)
    window = placed[max(top, 0) : max(top + image.shape[0], 0), max(left, 0) : max(left + image.shape[1], 0)]
    window[...] = image[max(-top, 0) :, max(-left, 0) :][: window.shape[0], : window.shape[1]]
    return placed


def upright(image: Pixels, orientation: int) -> Float32[np.ndarray, "H W 3"]:
    """Apply EXIF's orientation, 1 to 8."""
    return turned(image, orientation >= 5, orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7))


def turned(image: Pixels, transposed: bool, bottom_up: bool, right_to_left: bool) -> Float32[np.ndarray, "H W 3"]:
    """Return an image upright that is stored so: with its columns as rows, then from the bottom or from the right."""
    image = image.swapaxes(0, 1) if transposed else image
    return np.ascontiguousarray(image[:: -1 if bottom_up else 1, :: -1 if right_to_left else 1])
