"""TODO."""

import numpy as np
from jaxtyping import Float32


def srgb_to_linear(image: Float32[np.ndarray, "*b"]) -> Float32[np.ndarray, "*b"]:
    """sRGB-encoded [0, 1] to linear [0, 1], the piecewise curve of IEC 61966-2-1."""
    return np.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4).astype(np.float32)


def linear_to_srgb(image: Float32[np.ndarray, "*b"]) -> Float32[np.ndarray, "*b"]:
    """Linear [0, 1] to sRGB-encoded [0, 1], the inverse of `srgb_to_linear`; what lies outside is cut off first."""
    image = np.clip(image, 0, 1)
    return np.where(image <= 0.0031308, image * 12.92, 1.055 * image ** (1 / 2.4) - 0.055).astype(np.float32)
