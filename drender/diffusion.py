"""The noise schedule, the preconditioned denoiser and the sampler, as pure functions (Karras et al. 2022, "EDM")."""

import itertools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

RHO = 7.0


def karras_sigmas(num_steps: int, sigma_min: float, sigma_max: float) -> Float[np.ndarray, " n"]:
    """Noise levels from sigma_max down to sigma_min in `num_steps` steps, then 0 (EDM, eq. 5)."""
    ramp = np.linspace(0, 1, num_steps)
    low, high = sigma_min ** (1 / RHO), sigma_max ** (1 / RHO)
    return np.append((high + ramp * (low - high)) ** RHO, 0.0).astype(np.float32)


def initial_scale(sigma_max: float, timestep_spacing: str) -> float:
    """What unit noise is multiplied with to begin: √(σ²+1) with "leading" spacing, else σ."""
    return (sigma_max**2 + 1) ** 0.5 if timestep_spacing == "leading" else sigma_max


def scaled_input(x: ArrayLike, sigma: ArrayLike) -> ArrayLike:
    """The network's input x/√(σ²+1), of unit variance."""
    return x / jnp.sqrt(sigma**2 + 1)


def network_time(sigma: Float[ArrayLike, "*b"]) -> Float[ArrayLike, "*b"]:
    """The noise level as the network is told it: ¼·ln σ."""
    return jnp.log(sigma) / 4


def denoised(x: ArrayLike, prediction: ArrayLike, sigma: Float[ArrayLike, ""]) -> ArrayLike:
    """x̂₀ from the network's v-prediction F: −σ/√(σ²+1)·F + x/(σ²+1)."""
    return -sigma / jnp.sqrt(sigma**2 + 1) * prediction + x / (sigma**2 + 1)


def euler_step(x: ArrayLike, x0: ArrayLike, sigma: Float[ArrayLike, ""], next_sigma: Float[ArrayLike, ""]) -> ArrayLike:
    """One step along the probability-flow ODE: x + (σ' − σ)·(x − x̂₀)/σ."""
    return x + (next_sigma - sigma) * (x - x0) / sigma


def guide(unconditional: ArrayLike, conditional: ArrayLike, scale: ArrayLike) -> ArrayLike:
    """Classifier-free guidance on F: F_uncond + g·(F_cond − F_uncond) (Ho & Salimans 2022, eq. 6)."""
    return unconditional + scale * (conditional - unconditional)


def guidance_scales(guidance: tuple[float, float], num_frames: int) -> Float[np.ndarray, " f"]:
    """A guidance scale per frame, rising linearly from the first number to the second."""
    return np.linspace(*guidance, num_frames).astype(np.float32)


def dynamic_guidance_scales(scales: ArrayLike, step: int, num_steps: int) -> ArrayLike:
    """Guidance that grows over the steps i of n: (1 − cos(π i / n))·(g − 1) + 1."""
    return (1 - np.cos(np.pi * step / num_steps)) * (scales - 1) + 1


def sample(
    step: Callable[[Array, int, np.float32, np.float32], Array],
    noise: Array,
    sigmas: Float[np.ndarray, " n"],
    scale: float,
) -> ArrayLike:
    """Runs `step(x, i, sigma, next_sigma)` down the schedule from unit noise."""
    x = noise * scale
    for i, (sigma, next_sigma) in enumerate(itertools.pairwise(sigmas)):
        x = step(x, i, sigma, next_sigma)
    return x


def noisy(x0: ArrayLike, noise: ArrayLike, sigma: ArrayLike) -> ArrayLike:
    """x at noise level σ: x₀ + σε."""
    return x0 + sigma * noise


def velocity(x0: ArrayLike, noise: ArrayLike, sigma: ArrayLike) -> ArrayLike:
    """The F whose `denoised` is x₀: (ε − σx₀)/√(σ²+1).

    The squared error of F is therefore that of x̂₀ with EDM's weight (σ²+1)/σ² for v-prediction.
    """
    return (noise - sigma * x0) / jnp.sqrt(sigma**2 + 1)
