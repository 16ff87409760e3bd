"""EDM (Karras et al. 2022) as pure functions: noise schedule, preconditioning, guidance and samplers."""

import itertools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float

RHO = 7.0


# --- noise schedule --------------------------------------------------------------------------------------------------


def karras_sigmas(num_steps: int, sigma_min: float, sigma_max: float, rho: float = RHO) -> Float[np.ndarray, " n"]:
    """Return `num_steps` noise levels from sigma_max down to sigma_min, then 0 (EDM, eq. 5).

    A larger `rho` puts more of the steps at low noise.
    """
    ramp = np.linspace(0, 1, num_steps)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return np.append((high + ramp * (low - high)) ** rho, 0.0).astype(np.float32)


def initial_scale(sigma_max: float, timestep_spacing: str) -> float:
    """Return the standard deviation of the initial noise: √(σ²+1) with "leading" spacing, else σ, as in diffusers."""
    return (sigma_max**2 + 1) ** 0.5 if timestep_spacing == "leading" else sigma_max


# --- preconditioning -------------------------------------------------------------------------------------------------


def scale_model_input(x: ArrayLike, sigma: ArrayLike) -> ArrayLike:
    """Return the network's input x/√(σ²+1), of unit variance if the data are (c_in in EDM, table 1, σ_data = 1)."""
    return x / jnp.sqrt(sigma**2 + 1)


def c_noise(sigma: Float[ArrayLike, "*b"]) -> Float[ArrayLike, "*b"]:
    """Return the network's noise conditioning ¼·ln σ (EDM, table 1)."""
    return jnp.log(sigma) / 4


def x0_from_v(x: ArrayLike, prediction: ArrayLike, sigma: ArrayLike) -> ArrayLike:
    """Return x̂₀ from the network's v-prediction F: −σ/√(σ²+1)·F + x/(σ²+1)."""
    return -sigma / jnp.sqrt(sigma**2 + 1) * prediction + x / (sigma**2 + 1)


# --- guidance --------------------------------------------------------------------------------------------------------


def apply_cfg(unconditional: ArrayLike, conditional: ArrayLike, scale: ArrayLike) -> ArrayLike:
    """Apply classifier-free guidance to F: F_uncond + g·(F_cond − F_uncond) (Ho & Salimans 2022, eq. 6, g = 1 + w)."""
    return unconditional + scale * (conditional - unconditional)


def guidance_schedule(
    guidance: tuple[float, float], num_steps: int, num_frames: int, dynamic: bool
) -> Float[np.ndarray, "n f"] | None:
    """Return the guidance scale per step and frame, linear from the first frame to the last; None if none exceeds 1.

    Args:
      dynamic: let a scale g grow over the steps from 1 to almost 2g − 1, as released: 1 + (1 − cos(π i / n))·(g − 1) at
        step i of n.
    """
    if max(guidance) <= 1:
        return None
    scales = np.linspace(*guidance, num_frames, dtype=np.float32)
    if not dynamic:
        return np.tile(scales, (num_steps, 1))
    growth = 1 - np.cos(np.pi * np.arange(num_steps) / num_steps)
    return 1 + growth[:, None] * (scales - 1)


# --- samplers --------------------------------------------------------------------------------------------------------

# A sampler gets every noise level but the final 0. `denoise_clip` in `renderers/denoiser.py` takes the step to 0, which
# ends at x̂₀ in all of them. A sampler evaluates at the given levels only and draws no noise. Latents may be jax or
# numpy arrays, so samplers use only operators on x and x̂₀.

# (x, i) -> x̂₀ of x at the i-th noise level: a call of the network.
Denoise = Callable[[ArrayLike, int], ArrayLike]


def euler_step(x: ArrayLike, x0: ArrayLike, sigma: Float[ArrayLike, ""], next_sigma: Float[ArrayLike, ""]) -> ArrayLike:
    """Take one Euler step of the probability-flow ODE from σ to σ': x + (σ' − σ)·(x − x̂₀)/σ."""
    return x + (next_sigma - sigma) * (x - x0) / sigma


def euler(denoise: Denoise, x: ArrayLike, sigmas: Float[np.ndarray, " n"]) -> ArrayLike:
    """Return x at the last noise level, from x at the first, with one call of `denoise` per step.

    This is EDM's algorithm 1 without its correction.
    """
    for i, (sigma, next_sigma) in enumerate(itertools.pairwise(sigmas)):
        x = euler_step(x, denoise(x, i), sigma, next_sigma)
    return x


def heun(denoise: Denoise, x: ArrayLike, sigmas: Float[np.ndarray, " n"]) -> ArrayLike:
    """Do as `euler`, to second order, with two calls of `denoise` per step (EDM, algorithm 1). No level may be 0."""
    for i, (sigma, next_sigma) in enumerate(itertools.pairwise(sigmas)):
        slope = (x - denoise(x, i)) / sigma
        predicted = x + (next_sigma - sigma) * slope
        slope = (slope + (predicted - denoise(predicted, i + 1)) / next_sigma) / 2
        x = x + (next_sigma - sigma) * slope
    return x


def dpm_solver(denoise: Denoise, x: ArrayLike, sigmas: Float[np.ndarray, " n"]) -> ArrayLike:
    """Do as `euler`, to second order, by DPM-Solver++(2M) (Lu et al. 2022, algorithm 2).

    With one call of `denoise` per step, it takes Euler's steps with an x̂₀ that is extrapolated from this level and the
    one before, linearly in λ = −ln σ to the middle of the step. No level may be 0.
    """
    previous_x0, previous_step = None, 0.0
    for i, (sigma, next_sigma) in enumerate(itertools.pairwise(sigmas)):
        x0, step = denoise(x, i), np.log(sigma / next_sigma)
        extrapolated = x0 if previous_x0 is None else x0 + step / (2 * previous_step) * (x0 - previous_x0)
        x = euler_step(x, extrapolated, sigma, next_sigma)
        previous_x0, previous_step = x0, step
    return x


SAMPLERS = {"euler": euler, "heun": heun, "dpm++": dpm_solver}


def network_calls(sampler: str, num_steps: int) -> int:
    """Return how many network calls a sampler takes for `num_steps`; the last step, to 0, takes one in all of them."""
    return 2 * num_steps - 1 if sampler == "heun" else num_steps


# --- training --------------------------------------------------------------------------------------------------------


def add_noise(x0: ArrayLike, noise: ArrayLike, sigma: ArrayLike) -> ArrayLike:
    """Return x at noise level σ: x₀ + σε."""
    return x0 + sigma * noise


def v_target(x0: ArrayLike, noise: ArrayLike, sigma: ArrayLike) -> ArrayLike:
    """Return the v that the network should predict, from which `x0_from_v` recovers x₀: (ε − σx₀)/√(σ²+1).

    The squared error of v equals that of x̂₀ times EDM's weight λ(σ) = (σ²+1)/σ² (table 1, with σ_data = 1).
    """
    return (noise - sigma * x0) / jnp.sqrt(sigma**2 + 1)
