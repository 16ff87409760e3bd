"""The noise schedule, the preconditioned denoiser and the samplers, as pure functions (Karras et al. 2022, "EDM")."""

import itertools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float

RHO = 7.0


def karras_sigmas(num_steps: int, sigma_min: float, sigma_max: float, rho: float = RHO) -> Float[np.ndarray, " n"]:
    """Noise levels from sigma_max down to sigma_min in `num_steps` steps, then 0 (EDM, eq. 5).

    The larger `rho`, the more of the steps are at little noise.
    """
    ramp = np.linspace(0, 1, num_steps)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return np.append((high + ramp * (low - high)) ** rho, 0.0).astype(np.float32)


def initial_scale(sigma_max: float, timestep_spacing: str) -> float:
    """What unit noise is multiplied with to begin: √(σ²+1) with "leading" spacing, else σ."""
    return (sigma_max**2 + 1) ** 0.5 if timestep_spacing == "leading" else sigma_max


def scale_model_input(x: ArrayLike, sigma: ArrayLike) -> ArrayLike:
    """The network's input x/√(σ²+1), of unit variance."""
    return x / jnp.sqrt(sigma**2 + 1)


def c_noise(sigma: Float[ArrayLike, "*b"]) -> Float[ArrayLike, "*b"]:
    """The noise level as the network is told it: ¼·ln σ."""
    return jnp.log(sigma) / 4


def x0_from_v(x: ArrayLike, prediction: ArrayLike, sigma: Float[ArrayLike, ""]) -> ArrayLike:
    """x̂₀ from the network's v-prediction F: −σ/√(σ²+1)·F + x/(σ²+1)."""
    return -sigma / jnp.sqrt(sigma**2 + 1) * prediction + x / (sigma**2 + 1)


def euler_step(x: ArrayLike, x0: ArrayLike, sigma: Float[ArrayLike, ""], next_sigma: Float[ArrayLike, ""]) -> ArrayLike:
    """One step along the probability-flow ODE: x + (σ' − σ)·(x − x̂₀)/σ."""
    return x + (next_sigma - sigma) * (x - x0) / sigma


def apply_cfg(unconditional: ArrayLike, conditional: ArrayLike, scale: ArrayLike) -> ArrayLike:
    """Classifier-free guidance on F: F_uncond + g·(F_cond − F_uncond) (Ho & Salimans 2022, eq. 6)."""
    return unconditional + scale * (conditional - unconditional)


def guidance_scales(guidance: tuple[float, float], num_frames: int) -> Float[np.ndarray, " f"]:
    """A guidance scale per frame, rising linearly from the first number to the second."""
    return np.linspace(*guidance, num_frames).astype(np.float32)


def cosine_guidance(scales: ArrayLike, step: int, num_steps: int) -> ArrayLike:
    """Guidance that grows over the steps i of n: (1 − cos(π i / n))·(g − 1) + 1."""
    return (1 - np.cos(np.pi * step / num_steps)) * (scales - 1) + 1


# --- the network -----------------------------------------------------------------------------------------------------


# --- samplers --------------------------------------------------------------------------------------------------------

# x̂₀ of x at the i-th noise level: a call of the network.
Clean = Callable[[ArrayLike, int], ArrayLike]


def euler(clean: Clean, x: ArrayLike, sigmas: Float[np.ndarray, " n"]) -> ArrayLike:
    """x at the last of the noise levels, from x at the first; one call of `clean` a step (EDM, algorithm 1, line 6)."""
    for i, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        x = euler_step(x, clean(x, i), sigma, following)
    return x


def heun(clean: Clean, x: ArrayLike, sigmas: Float[np.ndarray, " n"]) -> ArrayLike:
    """Of second order, with two calls of `clean` a step (EDM, algorithm 1). No level may be 0."""
    for i, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        slope = (x - clean(x, i)) / sigma
        there = x + (following - sigma) * slope
        slope = (slope + (there - clean(there, i + 1)) / following) / 2
        x = x + (following - sigma) * slope
    return x


def dpm_solver(clean: Clean, x: ArrayLike, sigmas: Float[np.ndarray, " n"]) -> ArrayLike:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): of second order with one call of `clean` a step.

    An Euler step in λ = −ln σ whose x̂₀ is extrapolated from this level's and the one before. No level may be 0.
    """
    before, last = None, 0.0
    for i, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        x0, step = clean(x, i), np.log(sigma / following)
        ahead = x0 if before is None else x0 + step / (2 * last) * (x0 - before)
        x = euler_step(x, ahead, sigma, following)
        before, last = x0, step
    return x


SAMPLERS = {"euler": euler, "heun": heun, "dpm++": dpm_solver}


def network_calls(sampler: str, num_steps: int) -> int:
    """How often a sampler calls the network in `num_steps` steps, the last of which goes from the last level to x̂₀."""
    return 2 * num_steps - 1 if sampler == "heun" else num_steps


# --- training --------------------------------------------------------------------------------------------------------


def add_noise(x0: ArrayLike, noise: ArrayLike, sigma: ArrayLike) -> ArrayLike:
    """x at noise level σ: x₀ + σε."""
    return x0 + sigma * noise


def v_target(x0: ArrayLike, noise: ArrayLike, sigma: ArrayLike) -> ArrayLike:
    """The F whose `denoised` is x₀: (ε − σx₀)/√(σ²+1).

    The squared error of F is therefore that of x̂₀ with EDM's weight (σ²+1)/σ² for v-prediction.
    """
    return (noise - sigma * x0) / jnp.sqrt(sigma**2 + 1)
