"""TODO."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from drender.diffusion import apply_cfg, c_noise, scale_model_input, x0_from_v
from drender.sharding import constrain, use_mesh


def predict_v(
    graphdef: nnx.GraphDef, params, conditions, context, domain, micro, scales, x, sigma, split=None
) -> Float[Array, "b f h w c"]:
    """The network's F, guided where `scales` (per row and frame) are given.

    Args:
      conditions: conditioning latents [b, f, h, w, d].
      context, domain, micro: as `UNet` takes them.
      x: noisy latents [b, f, h, w, c] at noise level `sigma`.
      split: how a team of devices shares the rows, each half of guidance for itself, and the frames.
    """
    noisy = scale_model_input(x, sigma)
    rows = jnp.concatenate([noisy, conditions], axis=-1)
    if scales is not None:
        # The second half of the rows is the unconditional one. The inverse renderer's keeps its domain token; the
        # forward renderer's has no environment, which the network knows by there being fewer rows of context. Devices
        # that share the rows have zeros instead, which is the same: what one half alone needs they would have to send.
        rows = jnp.concatenate([rows, jnp.concatenate([noisy, jnp.zeros_like(conditions)], axis=-1)])
        micro = jnp.concatenate([micro, micro])
        if domain is not None:
            domain, context = jnp.concatenate([domain, domain]), jnp.concatenate([context, context])
        elif split is not None:
            context = [jnp.concatenate([level, jnp.zeros_like(level)]) for level in context]
    rows = constrain(rows, split)
    time = jnp.broadcast_to(c_noise(sigma), rows.shape[:1])
    with use_mesh(split and split.mesh):
        prediction = nnx.merge(graphdef, params)(rows, time, context, micro, domain)
    if scales is None:
        return prediction
    conditional, unconditional = jnp.split(prediction, 2)
    return apply_cfg(unconditional, conditional, scales[..., None, None, None])


def denoise(
    graphdef: nnx.GraphDef, params, conditions, context, domain, micro, scales, x, sigma, split=None
) -> Float[Array, "b f h w c"]:
    """x̂₀ by one call of the network; arguments as `predict` takes them.

    At sigma_max, from x = 0, it is −F but for a millionth: the one-step mode.
    """
    return x0_from_v(x, predict_v(graphdef, params, conditions, context, domain, micro, scales, x, sigma, split), sigma)
