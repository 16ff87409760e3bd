"""The losses: against hand computation, and against what the samplers do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small
from tqdm import tqdm

from drender import InverseRenderer
from drender.models import lora
from drender.models.params import abstract_module
from drender.models.registry import network_of
from drender.training import losses
from drender.training.config import LossConfig
from drender.training.losses import OBJECTIVES, LossSetup

EXACT = LossConfig(one_step=True, condition_dropout=0.0, all_dropout=0.0)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def random():
    return np.random.default_rng(0)


def params_of(config, *names) -> dict:
    return {name: jax.tree.map(jnp.asarray, small.random_params(*network_of(config, name))) for name in names}


@pytest.fixture(scope="module")
def inverse():
    return LossSetup(small.inverse_config(), EXACT), params_of(small.inverse_config(), "unet", "vae")


@pytest.fixture(scope="module")
def forward():
    return LossSetup(small.forward_config(), EXACT), params_of(small.forward_config(), "unet", "vae", "env_encoder")


def inverse_batch(random, b=2, f=2, side=16):
    images = lambda: jnp.asarray(random.random((b, f, side, side, 3)), jnp.float32)
    flags = jnp.zeros(b, bool)
    return {"rgb": images(), "buffer": images(), "domain": jnp.arange(b) % 6, "image_only": flags, "real": flags}


def forward_batch(random, b=2, f=2, side=16):
    images = lambda n: jnp.asarray(random.random((b, n, f, side, side, 3)), jnp.float32)
    flags = jnp.zeros(b, bool)
    return {
        "rgb": images(1)[:, 0],
        "conditions": images(5),
        "environment": images(3),
        "image_only": flags,
        "real": flags,
    }


def cached(random, batch):
    """Return the batch with random latents for its images, as a cached set would hold it."""
    draw = lambda x: jnp.asarray(random.standard_normal((*x.shape[:-3], 8, 8, 4)), jnp.float32)
    return {name: draw(x) if x.ndim > 4 else x for name, x in batch.items()}


PROGRAMS = {}  # that tests share


def loss_of(objective, model, params, batch, key=KEY):
    loss = jax.jit(lambda params, batch, key: OBJECTIVES[objective].loss(model, params, batch, key))
    return PROGRAMS.setdefault((objective, model.latent, model.loss, model.config.unet), loss)(params, batch, key)


# --- the arithmetic, with a network of one layer ---------------------------------------------------------------------


@pytest.fixture
def silent(inverse, monkeypatch):
    """A model of cached latents whose UNet is one linear layer that predicts 0, and its parameters."""
    layer = lambda setup, params, name: lambda x, *_: x @ params[name]["kernel"] + params[name]["bias"]
    monkeypatch.setattr(LossSetup, "network", layer)
    params = {"unet": {"kernel": jnp.zeros((8, 4)), "bias": jnp.zeros(4)}}
    return dataclasses.replace(inverse[0], latent=True), params


def test_loss_of_a_zero_network_is_the_energy_of_the_target(silent, random):
    model, params = silent
    batch = cached(random, inverse_batch(random))
    value, _ = losses.inverse_loss(model, params, batch, KEY)
    np.testing.assert_allclose(value, np.mean((batch["buffer"] * 0.18215) ** 2), rtol=1e-6)


def test_masked_pixels_do_not_enter_the_loss(silent, random):
    """The oracle is the energy of the target inside the mask, which is the error of a network that predicts 0."""
    model, params = silent
    model = dataclasses.replace(model, loss=dataclasses.replace(EXACT, temporal_gradient=3.0))
    batch = cached(random, inverse_batch(random))
    valid = random.random((2, 2, 8, 8, 1)) < 0.5
    batch["valid"] = jnp.asarray(valid)
    loss = jax.jit(lambda x: losses.inverse_loss(model, params, batch | {"buffer": x}, KEY)[0])
    target, weight = np.asarray(batch["buffer"]) * 0.18215, valid * np.ones(4)
    both = weight[:, 1:] * weight[:, :-1]
    flicker = np.sum((target[:, 1:] - target[:, :-1]) ** 2 * both) / both.sum()
    expected = np.sum(target**2 * weight) / weight.sum() + 3 * flicker
    np.testing.assert_allclose(loss(batch["buffer"]), expected, rtol=1e-5)
    gradient = np.asarray(jax.grad(loss)(batch["buffer"]))
    assert (gradient[weight == 0] == 0).all() and (gradient[weight > 0] != 0).all()
    batch["valid"] = jnp.zeros_like(batch["valid"])
    assert losses.inverse_loss(model, params, batch, KEY)[0] == 0


def test_pixels_are_valid_by_whole_latents(inverse):
    valid = np.ones((1, 2, 4, 4, 1), bool)
    valid[0, 1, 0, 3] = False
    mask = losses.valid_latents(inverse[0], {"valid": jnp.asarray(valid)})
    np.testing.assert_array_equal(mask[0, ..., 0], [[[1, 1], [1, 1]], [[1, 0], [1, 1]]])


def test_temporal_gradient_penalizes_changes_of_the_error(silent, random):
    model, params = silent
    model = dataclasses.replace(model, loss=dataclasses.replace(EXACT, temporal_gradient=3.0))
    batch = cached(random, inverse_batch(random, f=3))
    target = np.asarray(batch["buffer"]) * 0.18215  # the error is the target
    value, metrics = losses.inverse_loss(model, params, batch, KEY)
    flicker = np.mean((target[:, 1:] - target[:, :-1]) ** 2)
    np.testing.assert_allclose(metrics["flicker"], flicker, rtol=1e-5)
    np.testing.assert_allclose(value, np.mean(target**2) + 3 * flicker, rtol=1e-5)
    # Frames that are unrelated images have nothing to agree on.
    _, metrics = losses.inverse_loss(model, params, batch | {"image_only": jnp.asarray([True, False])}, KEY)
    np.testing.assert_allclose(metrics["flicker"], np.mean((target[1, 1:] - target[1, :-1]) ** 2) / 2, rtol=1e-5)


def test_noise_levels_are_log_normal(silent, random):
    # With x₀ = 0, v is ε/√(σ²+1): its mean square over rows is the mean of 1/(σ²+1).
    model, params = silent
    model = dataclasses.replace(model, loss=LossConfig(log_sigma_mean=-1.0, log_sigma_std=0.5))
    batch = cached(random, inverse_batch(random))
    batch["buffer"] *= 0
    loss = jax.jit(lambda key: losses.inverse_loss(model, params, batch, key)[0])
    values = [loss(jax.random.key(seed)) for seed in range(100)]
    sigma = np.exp(-1 + 0.5 * np.random.default_rng(0).standard_normal(100_000))
    np.testing.assert_allclose(np.mean(values), np.mean(1 / (sigma**2 + 1)), rtol=0.02)


def test_consistency_leads_to_the_estimate_at_less_noise(silent, random):
    # With x₀ = 0 and F = 0, x̂₀ is σε/(σ²+1) and v is ε/√(σ²+1). Towards x̂₀ at level rσ, v is 1 − r(σ²+1)/(r²σ²+1)
    # times as large. So is the gradient, as none flows through that estimate.
    model, params = silent
    batch = cached(random, inverse_batch(random))
    batch |= {"buffer": batch["buffer"] * 0, "sigma": jnp.full(2, 0.5)}

    def value_and_gradient(ratio):
        setup = dataclasses.replace(model, loss=LossConfig(consistency=ratio, condition_dropout=0.0))
        loss = lambda unet: losses.inverse_loss(setup, {"unet": unet}, batch, KEY)[0]
        return jax.jit(jax.value_and_grad(loss))(params["unet"])

    (value, gradient), (plain, plain_gradient) = map(value_and_gradient, (0.8, 0.0))
    factor = 1 - 0.8 * (0.5**2 + 1) / (0.4**2 + 1)
    np.testing.assert_allclose(value, factor**2 * plain, rtol=1e-5)
    for name in ("kernel", "bias"):
        assert np.abs(plain_gradient[name]).max() > 1e-3
        np.testing.assert_allclose(gradient[name], factor * plain_gradient[name], rtol=1e-4, atol=1e-7)


# --- through the networks --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["inverse", "forward"])
def test_cached_latents_give_the_loss_of_their_pixels(objective, request, random):
    model, params = request.getfixturevalue(objective)
    model = dataclasses.replace(model, loss=LossConfig())
    batch = {"inverse": inverse_batch, "forward": forward_batch}[objective](random)
    of_pixels, _ = loss_of(objective, model, params, batch)
    stacked = {name: x.reshape(-1, 1, *x.shape[-3:]) for name, x in batch.items() if x.ndim > 4}
    means = jax.jit(model.network(params, "vae").encode)(jnp.concatenate(list(stacked.values())) * 2 - 1)
    parts = jnp.split(means, np.cumsum([len(x) for x in stacked.values()])[:-1])
    latents = {name: x.reshape(*batch[name].shape[:-3], 8, 8, 4) for name, x in zip(stacked, parts, strict=True)}
    of_latents, _ = loss_of(objective, dataclasses.replace(model, latent=True), params, batch | latents)
    np.testing.assert_allclose(of_latents, of_pixels, rtol=1e-5)


@pytest.mark.slow
def test_one_step_loss_is_that_of_the_one_step_sampler(inverse, random):
    model, params = inverse
    latents = cached(random, inverse_batch(random))
    value, _ = loss_of("inverse", dataclasses.replace(model, latent=True), params, latents)
    renderer = InverseRenderer(model.config, params)
    sampled = []
    for row, domain in enumerate(latents["domain"]):
        options = renderer.sampling({"deterministic": True})
        context = jnp.zeros((1, 1, 1, 24))
        noise = jnp.zeros((1, *latents["rgb"].shape[1:]))
        rows = noise, latents["rgb"][row : row + 1], lambda _, context=context: context, domain[None]
        sampled.append(renderer.sample(*rows, options, tqdm(disable=True)).blended()[0])
    expected = np.mean((np.stack(sampled) - latents["buffer"] * 0.18215) ** 2)
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_condition_dropout_frequencies():
    loss = LossConfig(condition_dropout=0.2, all_dropout=0.1)
    kept, light = losses.condition_keep_mask(loss, KEY, (100_000, 5))
    np.testing.assert_allclose(1 - kept.mean(axis=0), 1 - 0.8 * 0.9, atol=0.01)
    np.testing.assert_allclose(1 - light.mean(), 1 - 0.8 * 0.9, atol=0.01)
    together = (kept.sum(axis=1) == 0) & (light == 0)
    np.testing.assert_allclose(together.mean(), 0.1 + 0.9 * 0.2**6, atol=0.005)


@pytest.mark.slow
def test_dropped_light_equals_the_unconditional_branch(forward, random):
    model, params = forward
    batch = cached(random, forward_batch(random))
    dark = dataclasses.replace(model, latent=True, loss=dataclasses.replace(EXACT, condition_dropout=1.0))
    value, _ = loss_of("forward", dark, params, batch)
    latents = batch["rgb"] * 0.18215
    # The sampler's way: fewer rows of context than of latents, here none but one that is not looked at.
    rows = jnp.concatenate([jnp.zeros_like(latents), jnp.zeros((*latents.shape[:-1], 20))], axis=-1)
    rows = jnp.concatenate([rows[:1], rows])
    context = [jnp.ones((1, 1, 1, e)) for e in (32,)]
    time = jnp.full(3, jnp.log(700.0) / 4)
    micro = jnp.tile(jnp.asarray(losses.MICRO_CONDITIONING), (3, 1))
    predict = jax.jit(lambda *arguments: model.network(params, "unet")(*arguments)[1:])
    prediction = predict(rows, time, context, micro)
    np.testing.assert_allclose(value, jnp.mean((prediction + latents) ** 2), rtol=1e-5)


def test_condition_noise_has_the_returned_deviation():
    images = jnp.full((64, 2, 3, 16, 16, 3), 0.5)
    loss = LossConfig(condition_noise=(-3.0, 0.5))
    noisy, strength = losses.add_condition_noise(loss, images, KEY)
    measured = jnp.std((noisy * 2 - 1).reshape(64, -1), axis=1)
    np.testing.assert_allclose(measured, strength, rtol=0.06)
    np.testing.assert_allclose(jnp.log(strength).mean(), -3, atol=0.2)


@pytest.mark.slow
def test_lora_acts_on_real_rows_only_unless_trained_alone(inverse, random):
    config = small.inverse_config(small.ONE_LEVEL)
    model, params = dataclasses.replace(inverse[0], config=config, latent=True), params_of(config, "unet", "vae")
    batch = cached(random, inverse_batch(random))
    factors = lora.init(abstract_module(*network_of(model.config, "unet"))[1], 2, ("to_q", "to_out"), 0)
    factors = jax.tree.map(lambda x: jnp.asarray(x) + 0.1, factors)

    def loss(factors, real, model=model):
        return losses.inverse_loss(model, params | {"lora": factors}, batch | {"real": real}, KEY)[0]

    without, _ = loss_of("inverse", model, params, batch)
    value_and_gradient = jax.jit(jax.value_and_grad(loss))
    (synthetic, synthetic_gradient), (real, real_gradient) = (
        value_and_gradient(factors, each) for each in (jnp.zeros(2, bool), jnp.ones(2, bool))
    )
    np.testing.assert_allclose(synthetic, without, rtol=1e-6)
    assert abs(real - without) > 1e-4 * without
    norm = lambda tree: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))
    assert norm(synthetic_gradient) == 0 < norm(real_gradient)

    alone = dataclasses.replace(model, lora_on_all_rows=True)
    both = jax.jit(lambda factors: (loss(factors, jnp.ones(2, bool)), loss(factors, jnp.zeros(2, bool), alone)))
    on_real, on_all = both(factors)
    assert on_real == on_all
    np.testing.assert_allclose(on_real, real, rtol=1e-6)


@pytest.mark.slow
def test_the_vae_loss_is_of_reconstruction_and_divergence(random):
    config = small.inverse_config()
    params = params_of(config, "vae")
    images = jnp.asarray(random.random((2, 2, 16, 16, 3)), jnp.float32)
    # A posterior without spread: the log-variance's rows are pushed to the clip.
    quant = params["vae"]["quant_conv"]
    params["vae"]["quant_conv"] = quant | {"bias": quant["bias"].at[4:].set(-1e4)}
    model = LossSetup(config, LossConfig(kl=0.1))
    value, values = loss_of("vae", model, params, {"images": images})
    vae = model.network(params, "vae")
    mean = jax.jit(vae.encode)(images * 2 - 1)
    error = np.asarray(jax.jit(vae.decode)(mean) - (images * 2 - 1))
    divergence = np.mean(np.asarray(mean) ** 2 + np.exp(-30) - 1 + 30) / 2
    np.testing.assert_allclose(value, np.abs(error).mean() + (error**2).mean() + 0.1 * divergence, rtol=1e-4)
    np.testing.assert_allclose(values["latent_std"], np.std(mean), rtol=1e-5)
    np.testing.assert_allclose(values["psnr"], -10 * np.log10(np.mean((error / 2) ** 2)), rtol=1e-4)
