"""The sRGB curve (IEC 61966-2-1), for numpy and for JAX, and luminance: the one place for both."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)  # weights of linear BT.709 red, green and blue


def srgb_to_linear(image: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    """Decode sRGB values in [0, 1] to linear light in [0, 1], in the dtype of the image."""
    return np.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(image: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    """Encode linear light as sRGB in [0, 1], in the dtype of the image. Values outside [0, 1] are clipped first."""
    image = np.clip(image, 0, 1)
    return np.where(image <= 0.0031308, image * 12.92, 1.055 * image ** (1 / 2.4) - 0.055)


def linear_to_srgb_jnp(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Encode linear light in [0, 1] as sRGB: `linear_to_srgb` for JAX arrays, without clipping."""
    return jnp.where(x <= 0.0031308, 12.92 * x, 1.055 * jnp.maximum(x, 0.0031308) ** (1 / 2.4) - 0.055)
