"""The denoiser: x̂₀ of noisy latents from one call of the UNet, and of a whole clip from its windows."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, ArrayLike, Float, Int

from drender import diffusion
from drender.renderers.windows import WindowedLatents
from drender.sharding import constrain, use_mesh


def predict_x0(
    graphdef: nnx.GraphDef,
    params: Mapping,
    conditions: Float[Array, "b f h w d"],
    context: Array | list[Array],
    domain: Int[Array, " b"] | None,
    micro: Float[Array, "b 3"],
    scales: Float[Array, "b f"] | None,
    x: Float[Array, "b f h w c"],
    sigma: Float[Array, ""],
    split: NamedSharding | None = None,
) -> Float[Array, "b f h w c"]:
    """Return x̂₀ from the UNet's v-prediction F, with classifier-free guidance if there are `scales`.

    One-step models call it with x = 0 at sigma_max, where x̂₀ is −F to within 10⁻⁶.

    Args:
      conditions: conditioning latents.
      context, domain, micro: as `UNet` takes them.
      scales: guidance scales.
      x: noisy latents at noise level `sigma`.
      split: how a device group shards rows and frames; the halves of guidance are rows.
    """
    scaled = diffusion.scale_model_input(x, sigma)
    rows = jnp.concatenate([scaled, conditions], axis=-1)
    if scales is not None:
        # The second half of the rows is the unconditional branch. The inverse renderer keeps its domain there. The
        # forward renderer has no environment there: to the UNet, rows without context are unconditional. Where rows are
        # sharded, zeros stand for the missing context; this is equal, and saves an exchange between devices.
        rows = jnp.concatenate([rows, jnp.concatenate([scaled, jnp.zeros_like(conditions)], axis=-1)])
        micro = jnp.concatenate([micro, micro])
        if domain is not None:
            domain, context = jnp.concatenate([domain, domain]), jnp.concatenate([context, context])
        elif split is not None:
            context = [jnp.concatenate([level, jnp.zeros_like(level)]) for level in context]
    rows = constrain(rows, split)
    time = jnp.broadcast_to(diffusion.c_noise(sigma), rows.shape[:1])
    with use_mesh(split and split.mesh):
        prediction = nnx.merge(graphdef, params)(rows, time, context, micro, domain)
    if scales is not None:
        conditional, unconditional = jnp.split(prediction, 2)
        prediction = diffusion.apply_cfg(unconditional, conditional, scales[..., None, None, None])
    return diffusion.x0_from_v(x, prediction, sigma)


def denoise_clip(
    denoise: Callable[[ArrayLike, int], WindowedLatents],
    x: Float[ArrayLike, "b f h w c"],
    sigmas: Float[np.ndarray, " n"],
    sampler: str,
) -> WindowedLatents:
    """Sample a clip: at every noise level blend its windows' x̂₀, then step the whole clip.

    This is MultiDiffusion (Bar-Tal et al. 2023) over time.

    Args:
      denoise: (x, i) -> the windows' x̂₀ at noise level i.
      x: the clip's latents at the first noise level.
      sigmas: noise levels; the last is 0.
      sampler: name in `diffusion.SAMPLERS`; it takes all steps but the last.
    """
    x = diffusion.SAMPLERS[sampler](lambda x, i: denoise(x, i).blended(), x, sigmas[:-1])
    return denoise(x, len(sigmas) - 2)  # the step to sigma 0 ends at x̂₀ in every sampler
