"""Schedule, preconditioning, guidance and samplers, against hand-computed numbers and diffusers."""

from typing import get_args, get_type_hints

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.oracles import diffusers, torch
from hypothesis import given
from hypothesis import strategies as st

from drender import diffusion
from drender.config import Sampling

SIGMA_MIN, SIGMA_MAX = 0.002, 700.0
all_sigmas = st.floats(SIGMA_MIN, SIGMA_MAX)


def scheduler(spacing: str):
    """SVD's scheduler, as the released checkpoints configure it."""
    return diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        sigma_min=SIGMA_MIN,
        sigma_max=SIGMA_MAX,
        steps_offset=1,
        timestep_spacing=spacing,
        timestep_type="continuous",
        use_karras_sigmas=True,
    )


@pytest.mark.oracle
@pytest.mark.parametrize("num_steps", [2, 20, 50])
def test_sigmas_match_diffusers(num_steps):
    oracle = scheduler("leading")
    oracle.set_timesteps(num_steps)
    np.testing.assert_allclose(diffusion.karras_sigmas(num_steps, SIGMA_MIN, SIGMA_MAX), oracle.sigmas, rtol=1e-5)


def test_twenty_steps_match_published_sigmas():
    np.testing.assert_allclose(diffusion.karras_sigmas(20, SIGMA_MIN, SIGMA_MAX)[:3], [700, 510.36, 366.57], rtol=1e-5)


def test_one_step_starts_at_sigma_max():
    np.testing.assert_array_equal(diffusion.karras_sigmas(1, SIGMA_MIN, SIGMA_MAX), np.float32([SIGMA_MAX, 0]))


@pytest.mark.oracle
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_initial_scale_matches_diffusers(spacing):
    oracle = scheduler(spacing)
    oracle.set_timesteps(20)
    assert diffusion.initial_scale(SIGMA_MAX, spacing) == pytest.approx(float(oracle.init_noise_sigma), rel=1e-6)


@given(sigma=all_sigmas)
def test_x0_from_v_inverts_the_v_target(sigma):
    """From x₀ + σε and v = (ε − σ·x₀)/√(1+σ²) comes x₀ again."""
    x0, noise = np.random.default_rng(0).standard_normal((2, 8))
    noisy = x0 + sigma * noise
    v = (noise - sigma * x0) / np.sqrt(1 + sigma**2)
    sigma = jnp.float32(sigma)
    x0_again = diffusion.x0_from_v(jnp.float32(noisy), jnp.float32(v), sigma)
    # The cancellation of σε costs float32 as many digits as σ has.
    np.testing.assert_allclose(x0_again, x0, atol=2e-6 * (1 + float(sigma)))


@given(sigma=all_sigmas, ratio=st.floats(0, 1))
def test_euler_step_is_exact_for_a_single_data_point(sigma, ratio):
    """If all data is one point, the ODE's solution is a straight line to it."""
    x0, noise = np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)
    following = np.float32(sigma * ratio)
    stepped = diffusion.euler_step(x0 + np.float32(sigma) * noise, x0, np.float32(sigma), following)
    np.testing.assert_allclose(stepped, x0 + following * noise, rtol=1e-4, atol=1e-4)


@pytest.mark.oracle
def test_euler_matches_diffusers():
    """With a made-up network, twenty steps give diffusers' result."""
    network = lambda scaled: 0.3 * scaled + 0.1
    noise = np.random.default_rng(2).standard_normal((1, 2, 4, 4, 4)).astype(np.float32)
    oracle = scheduler("leading")
    oracle.set_timesteps(20)
    x = torch.from_numpy(noise) * oracle.init_noise_sigma
    for t in oracle.timesteps:
        x = oracle.step(network(oracle.scale_model_input(x, t)), t, x).prev_sample

    sigmas = diffusion.karras_sigmas(20, SIGMA_MIN, SIGMA_MAX)

    def denoise(x, i):
        return diffusion.x0_from_v(x, network(diffusion.scale_model_input(x, sigmas[i])), sigmas[i])

    ours = diffusion.euler(denoise, jnp.asarray(noise) * diffusion.initial_scale(SIGMA_MAX, "leading"), sigmas)
    np.testing.assert_allclose(ours, x.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.oracle
def test_dpm_solver_matches_diffusers():
    oracle = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", prediction_type="sample",
        final_sigmas_type="zero", lower_order_final=False, euler_at_final=True,
    )  # fmt: skip
    oracle.set_timesteps(8)
    oracle.sigmas = torch.from_numpy(diffusion.karras_sigmas(8, SIGMA_MIN, SIGMA_MAX))
    # Its σ is of variance-exploding noise, its x divided by √(σ²+1), and so is its x̂₀ = network(x) unscaled.
    network = lambda x: 0.7 * np.tanh(x) + 0.1
    x = np.random.default_rng(2).standard_normal((1, 8)).astype(np.float32) * SIGMA_MAX
    sigmas = oracle.sigmas.numpy()
    theirs = torch.from_numpy(x / np.sqrt(sigmas[0] ** 2 + 1))
    for i, t in enumerate(oracle.timesteps):
        x0 = network(theirs.numpy() * np.sqrt(sigmas[i] ** 2 + 1))
        theirs = oracle.step(torch.from_numpy(x0.astype(np.float32)), t, theirs).prev_sample
    x = diffusion.dpm_solver(lambda x, i: network(x), x, sigmas[:-1])
    np.testing.assert_allclose(network(x), theirs.numpy(), rtol=1e-4, atol=1e-4)


ORDERS = {"euler": 1, "heun": 2, "dpm++": 2}


@pytest.mark.parametrize("name", diffusion.SAMPLERS)
def test_samplers_converge_at_their_order(name):
    """Data that is Gaussian, of standard deviation ½, has a known x̂₀, and the ODE a known solution."""
    spread = 0.5

    def error(num_steps: int) -> float:
        sigmas = diffusion.karras_sigmas(num_steps, 0.01, 10.0)[:-1].astype(np.float64)
        denoise = lambda x, i: x * spread**2 / (spread**2 + sigmas[i] ** 2)
        exact = np.sqrt((spread**2 + sigmas[-1] ** 2) / (spread**2 + sigmas[0] ** 2))
        return abs(diffusion.SAMPLERS[name](denoise, 1.0, sigmas) - exact)

    measured = np.log2(error(64) / error(128))
    assert measured == pytest.approx(ORDERS[name], abs=0.25)


def test_every_sampler_can_be_chosen():
    assert get_args(get_type_hints(Sampling)["sampler"]) == tuple(diffusion.SAMPLERS)


@pytest.mark.parametrize("name", diffusion.SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_network_calls_counts_denoiser_calls(name, num_steps):
    calls = []
    denoise = lambda x, i: calls.append(i) or x
    sigmas = diffusion.karras_sigmas(num_steps, SIGMA_MIN, SIGMA_MAX)
    diffusion.SAMPLERS[name](denoise, np.float32(1), sigmas[:-1])
    assert len(calls) + 1 == diffusion.network_calls(name, num_steps)


@given(scale=st.floats(0, 20))
def test_cfg_of_equal_predictions_changes_nothing(scale):
    prediction = np.float32([0.5, -2.0])
    np.testing.assert_array_equal(diffusion.apply_cfg(prediction, prediction, np.float32(scale)), prediction)


def test_guidance_is_linear_over_frames():
    scales = lambda guidance, frames: diffusion.guidance_schedule(guidance, 1, frames, dynamic=False)[0]
    np.testing.assert_allclose(scales((1.0, 3.0), 5), [1, 1.5, 2, 2.5, 3])
    np.testing.assert_array_equal(scales((1.2, 1.2), 1), np.float32([1.2]))


def test_guidance_schedule_has_a_row_per_step():
    assert diffusion.guidance_schedule((1.0, 1.0), 4, 3, dynamic=True) is None
    constant = diffusion.guidance_schedule((1.0, 3.0), 4, 3, dynamic=False)
    np.testing.assert_allclose(constant, [[1, 2, 3]] * 4)
    growing = diffusion.guidance_schedule((1.0, 3.0), 4, 3, dynamic=True)
    np.testing.assert_allclose(growing[2], [1, 2, 3], rtol=1e-6)
    np.testing.assert_allclose(growing[:, 2], [1, 1 + 2 * (1 - np.sqrt(0.5)), 3, 1 + 2 * (1 + np.sqrt(0.5))], rtol=1e-6)


def test_c_noise_is_a_quarter_of_the_logarithm():
    assert float(diffusion.c_noise(jnp.float32(700.0))) == pytest.approx(np.log(700) / 4, rel=1e-6)
