"""The validation loss, with a loss that reports its arguments instead of networks."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small, smallest

from drender.training import validation
from drender.training.losses import OBJECTIVES, LossSetup
from drender.training.validation import ValidationLoss

LEVELS = (0.5, 2.0)


@pytest.fixture
def make(monkeypatch):
    """make(objective, loss, **changes) -> ValidationLoss with `loss(setup, batch, key)` in place of the real one."""

    def create(objective, loss, **changes):
        def replaced(setup, params, batch, key):
            return None, {"loss": loss(setup, batch, key)}

        monkeypatch.setitem(OBJECTIVES, objective, dataclasses.replace(OBJECTIVES[objective], loss=replaced))
        changes = {"evaluation.sigmas": LEVELS, "data.passes": ["normal", "depth"], **changes}
        config = smallest.config(objective, "clips", "run", **changes)
        model = small.forward_config() if objective == "forward" else small.inverse_config()
        return ValidationLoss(config, LossSetup(model, config.loss))

    return create


def images(*labels, value=0.5):
    return {label: np.full((2, 16, 16, 3), value, np.float32) for label in labels}


def encode(frames):
    return np.ones((len(frames), 8, 8, 4), np.float32) * frames.mean()


def test_every_buffer_is_measured_at_every_level(make):
    loss = make("inverse", lambda setup, batch, key: batch["sigma"][0] + 100 * batch["domain"][0])
    scores = list(loss.scores({}, images("rgb", "normal", "depth"), encode, 0))
    domains = loss.model.domains
    expected = [(label, level, level + 100 * domains[label]) for label in ("normal", "depth") for level in LEVELS]
    assert [value for name, value in scores if name == "loss/mean"] == [value for *_, value in expected]
    for label, level, value in expected:
        assert (f"{label}/loss", value) in scores and (f"loss/sigma_{level:g}", value) in scores
    assert {name for name, _ in scores} == set(loss.names())


def test_a_clip_is_measured_on_the_buffers_and_pixels_that_it_has(make):
    loss = make("inverse", lambda setup, batch, key: batch["valid"].mean())
    mask = np.ones((2, 16, 16, 1), np.float32)
    mask[:, :8] = 0
    scores = dict(loss.scores({}, images("rgb", "depth") | {"valid": mask}, encode, 0))
    assert scores["depth/loss"] == 0.5 and "normal/loss" not in scores


def test_noise_is_fixed_and_differs_between_rows(make):
    loss = make("inverse", lambda setup, batch, key: validation.jax.random.uniform(key))
    pictures = images("rgb", "normal", "depth")
    first = [value for name, value in loss.scores({}, pictures, encode, 0) if name == "loss/mean"]
    again = [value for name, value in loss.scores({}, pictures, encode, 0) if name == "loss/mean"]
    other = [value for name, value in loss.scores({}, pictures, encode, 1) if name == "loss/mean"]
    assert first == again and len({*first, *other}) == 8


def test_dropout_and_condition_noise_are_off(make):
    seen = []
    loss = make("inverse", lambda setup, batch, key: seen.append(setup) or jnp.float32(0))
    list(loss.scores({}, images("rgb", "depth"), encode, 0))
    assert {(x.loss.condition_dropout, x.loss.all_dropout, x.loss.condition_noise) for x in seen} == {(0, 0, None)}
    assert all(x.latent for x in seen)


@pytest.mark.parametrize("objective", ["inverse", "vae"])
def test_no_level_gives_no_loss(make, objective):
    loss = make(objective, lambda setup, batch, key: jnp.float32(0), **{"evaluation.sigmas": []})
    assert not list(loss.scores({}, images("rgb", "depth"), encode, 0)) and not loss.names()


def test_a_one_step_model_has_its_own_level(make):
    loss = make("inverse", lambda setup, batch, key: batch["sigma"][0], **{"loss.one_step": True})
    assert dict(loss.scores({}, images("rgb", "depth"), encode, 0))["loss/mean"] == 700
    assert "loss/sigma_700" in loss.names()


def test_forward_rows_hold_conditions_and_light(make):
    loss = make("forward", lambda setup, batch, key: batch["conditions"].shape[1] + 10 * batch["environment"].shape[1])
    labels = ("rgb", *loss.model.conditions, "env_ldr", "env_log", "env_nrm")
    assert dict(loss.scores({}, images(*labels), encode, 0))["loss/mean"] == 35
