"""The training step against AdamW by hand; it is independent of devices and of gradient accumulation."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import smallest

from drender import sharding
from drender.config import RendererConfig
from drender.sharding import MeshConfig
from drender.training import losses
from drender.training.config import OptimizerConfig
from drender.training.run_dir import TrainState
from drender.training.step import learning_rate, make_optimizer, make_step

HERE = Path(__file__).parents[1]
# Of every kind of layer some, for each parameter that learns is compiled.
SOME = ("unet.*.attn1", "unet.*.conv1", "unet.conv_in", "unet.*.proj_out", "unet.*.time_mixer")

EIGHT = """
import sys
import jax, numpy
from helpers import smallest
from drender import sharding
from drender.sharding import MeshConfig
sharding.MAX_REPLICATED_SIZE = 8
config = smallest.config("inverse", "", "", **{"data.batch": 8, "trainable": sys.argv[2:]})
for data, fsdp, frames in ((2, 4, 1), (2, 2, 2)):
    results = smallest.steps(config, MeshConfig(data, fsdp, frames), jax.devices())
    numpy.savez(f"{sys.argv[1]}/{data}x{fsdp}x{frames}.npz", **results)
"""


# --- a gradient ------------------------------------------------------------------------------------------------------


@pytest.fixture
def toy(monkeypatch):
    """An objective whose gradient is the mean of the rows: (optimizer, batches) -> the states before and after each."""

    def loss(model, params, batch, key):
        value = params["a"]["kernel"] @ batch["a"].mean(0) + params["b"]["bias"] @ batch["b"].mean(0)
        return value, {"loss": value}

    known = losses.OBJECTIVES
    monkeypatch.setitem(known, "inverse", dataclasses.replace(known["inverse"], loss=loss))
    config = smallest.config("inverse", "", "")
    model = losses.LossSetup(RendererConfig("inverse"), config.loss)

    def run(optimizer: OptimizerConfig, rows: list[dict]) -> list[TrainState]:
        transform = make_optimizer(optimizer)
        params = {"a.kernel": jnp.array([1.0, -2.0]), "b.bias": jnp.array([3.0])}
        states = [TrainState(params, params, transform.init(params))]
        step = jax.jit(make_step(model, dataclasses.replace(config, optimizer=optimizer), transform))
        for number, batch in enumerate(rows):
            state, metrics = step(states[-1], {}, batch | {"stop": jnp.zeros(1)}, np.uint32(number))
            states.append(state)
        run.metrics = metrics
        return states

    return run


def rows_of(steps: int, seed: int = 0) -> list[dict]:
    random = np.random.default_rng(seed)
    return [{"a": random.normal(size=(4, 2)), "b": random.normal(size=(4, 1))} for _ in range(steps)]


def test_step_is_adamw_on_clipped_gradients(toy):
    config = OptimizerConfig(
        steps=9,
        learning_rate=0.1,
        warmup=3,
        betas=(0.8, 0.9),
        weight_decay=0.5,
        max_grad_norm=0.7,
        ema_decay=0.5,
        lr_schedule="linear",
    )
    rows = rows_of(9)
    states = toy(config, rows)
    rates = [0.1 / 3, 0.2 / 3, 0.1, 0.1, 0.1 * 5 / 6, 0.1 * 4 / 6, 0.1 * 3 / 6, 0.1 * 2 / 6, 0.1 / 6]
    x, average = np.array([1.0, -2.0, 3.0]), np.array([1.0, -2.0, 3.0])
    first = second = np.zeros(3)
    for i, (batch, rate) in enumerate(zip(rows, rates, strict=True)):
        gradient = np.concatenate([batch["a"].mean(0), batch["b"].mean(0)])
        norm = np.sqrt(np.sum(gradient**2))
        gradient = gradient * min(1, 0.7 / norm)
        first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
        direction = first / (1 - 0.8 ** (i + 1)) / (np.sqrt(second / (1 - 0.9 ** (i + 1))) + 1e-8)
        x = x - rate * (direction + 0.5 * x * [1, 1, 0])
        decay = min(0.5, (1 + i) / (10 + i))
        average = decay * average + (1 - decay) * x
        after = states[i + 1]
        np.testing.assert_allclose(np.concatenate([after.params["a.kernel"], after.params["b.bias"]]), x, rtol=1e-5)
        np.testing.assert_allclose(np.concatenate([after.ema["a.kernel"], after.ema["b.bias"]]), average, rtol=1e-5)
    np.testing.assert_allclose(toy.metrics["gradient_norm"], norm, rtol=1e-5)  # as it was before clipping
    np.testing.assert_allclose(toy.metrics["learning_rate"], 0.1 / 6, rtol=1e-5)


def test_ema_of_a_short_run_reaches_back_to_its_start_only(toy):
    states = toy(OptimizerConfig(steps=3, warmup=0, ema_decay=0.9999), rows_of(3))
    expected = states[0].params["a.kernel"]
    for decay, state in zip((1 / 10, 2 / 11, 3 / 12), states[1:], strict=True):
        expected = decay * expected + (1 - decay) * state.params["a.kernel"]
    np.testing.assert_allclose(states[-1].ema["a.kernel"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, (1 + np.sqrt(0.5)) / 2, 0.5, (1 - np.sqrt(0.5)) / 2]),
    ],
)
def test_learning_rate_schedules(schedule, rates):
    rate = learning_rate(OptimizerConfig(steps=6, learning_rate=2e-3, warmup=2, lr_schedule=schedule))
    np.testing.assert_allclose([rate(i) for i in range(6)], 2e-3 * np.array(rates), rtol=1e-6)


def test_without_warmup_the_first_step_has_the_full_rate():
    rate = learning_rate(OptimizerConfig(steps=4, learning_rate=1.0, warmup=0, lr_schedule="linear"))
    np.testing.assert_allclose([rate(i) for i in range(4)], [1, 0.75, 0.5, 0.25])


# --- devices ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eight_devices(tmp_path_factory):
    """Where a process with eight devices leaves its results; it works while other tests do."""
    folder = tmp_path_factory.mktemp("eight")
    paths = os.pathsep.join([str(HERE.parent), str(HERE)])
    process = subprocess.Popen(
        [sys.executable, "-c", EIGHT, folder, *SOME],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        yield lambda: (folder, process.communicate()[1])
        process.kill()


@pytest.fixture(scope="module")
def one_device():
    config = smallest.config("inverse", "", "", **{"data.batch": 8, "trainable": SOME})
    return smallest.steps(config, MeshConfig(), jax.devices()[:1])


def assert_same_steps(results: dict, expected: dict) -> None:
    for i in range(2):
        np.testing.assert_allclose(results[f"loss {i}"], expected[f"loss {i}"], rtol=1e-5)
        np.testing.assert_allclose(results[f"gradient_norm {i}"], expected[f"gradient_norm {i}"], rtol=1e-4)
    for kind, tolerance in (("moment", 1e-4), ("parameter", 1e-5), ("average", 1e-5)):
        join = lambda arrays, kind=kind: np.concatenate(
            [arrays[name].ravel() for name in sorted(expected) if kind in name]
        )
        ours, theirs = join(results), join(expected)
        assert np.linalg.norm(ours - theirs) < tolerance * np.linalg.norm(theirs), kind


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "shares"),
    [(MeshConfig(data=2), False), (MeshConfig(fsdp=2), True), (MeshConfig(frames=2), False)],
    ids=["data", "fsdp", "frames"],
)
def test_two_devices_match_one(mesh, shares, one_device, monkeypatch):
    monkeypatch.setattr(sharding, "MAX_REPLICATED_SIZE", 8)
    config = smallest.config("inverse", "", "", **{"data.batch": 8, "trainable": SOME})
    results = smallest.steps(config, mesh, jax.devices())
    assert (results["sharded"] > 0) == shares
    assert_same_steps(results, one_device)


@pytest.mark.slow
def test_eight_devices_match_one(one_device, eight_devices):
    folder, errors = eight_devices()
    for name in ("2x4x1", "2x2x2"):
        assert (folder / f"{name}.npz").exists(), errors
        results = dict(np.load(folder / f"{name}.npz"))
        assert results["sharded"] > 10
        assert_same_steps(results, one_device)


@pytest.mark.slow
def test_microbatches_give_the_gradient_of_the_batch():
    exact = {"data.image_fraction": 1.0, "data.frames": 1, "trainable": SOME, "loss": smallest.EXACT, "data.batch": 8}
    results = {}
    for parts in (1, 2):
        config = smallest.config("inverse", "", "", **exact, **{"optimizer.grad_accum_steps": parts})
        results[parts] = smallest.steps(config, MeshConfig(data=2), jax.devices())
    assert_same_steps(results[2], results[1])
