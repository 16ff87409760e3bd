"""Training runs: files, logs, and resuming to identical bits after kills and stops."""

import datetime
import functools
import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np
import OpenImageIO as oiio
import pytest
from helpers import smallest
from helpers.training_runs import checkpoints, metrics, outcomes, processes, saved

from drender import InputError, sharding
from drender.sharding import MeshConfig
from drender.training import loop
from drender.training.evaluation import Evaluation
from drender.training.progress import PreemptionGuard
from drender.training.run_dir import RunFolder, TrainState
from drender.training.step import abstract_state, make_optimizer
from drender.training.weights import resolve_weights

STEPS = 12
# One level and few trained parameters, because each adds to the compilation. Frozen ones are drawn again on resuming.
VAE = smallest.VAE | {"block_out_channels": [8]}
LEARNS = ("vae.encoder.conv_in", "vae.decoder.conv_in", "vae.decoder.mid_block.resnets.0")


@pytest.fixture(scope="module", autouse=True)
def small_parameters_sharded():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "MAX_REPLICATED_SIZE", 8)
        yield


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return smallest.write_balls(tmp_path_factory.mktemp("clips"), clips=3, light=False)


@pytest.fixture(scope="module")
def settings(clips) -> Callable:
    """settings(output, …): a run of an auto-encoder, with a checkpoint every third step."""
    values = {"optimizer.steps": STEPS, "save_every": 3, "trainable": list(LEARNS), "model.vae": VAE}
    values |= {"evaluation.path": str(clips), "evaluation.clips": 1}
    return lambda output, **changes: (("vae", clips, output), values | changes)


@pytest.fixture(scope="module")
def train(settings) -> Callable:
    """train(output, …) -> its exit code, in this process."""

    def call(output, dry_run=False, **changes) -> int:
        run, values = settings(output, **changes)
        return loop.train(smallest.config(*run, **values), dry_run)

    return call


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory) -> Path:
    """The run that nothing happens to."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train(folder) == 0
    return folder


def signalled(monkeypatch, number: int, after: int) -> None:
    """Sends this process a signal when the loop reads that step, once."""
    read = loop.MetricLogger.read

    def read_and_signal(meter, step, metrics):
        if step == after:
            os.kill(os.getpid(), number)
        return read(meter, step, metrics)

    monkeypatch.setattr(loop.MetricLogger, "read", read_and_signal)


# --- runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_files_of_a_run(whole):
    assert checkpoints(whole) == ["12", "9"]  # the last two
    measured = metrics(whole)
    assert list(measured["loss"]) == list(range(1, STEPS + 1))
    assert {"gradient_norm", "learning_rate", "step_seconds", "data_seconds", "tflops_per_second"} < set(measured)
    assert list(measured["evaluation/rgb/psnr"]) == list(measured["evaluation/loss/mean"]) == [STEPS]
    assert (whole / "pictures" / f"{STEPS:08d}.png").is_file() and any((whole / "tensorboard").iterdir())
    record = json.loads((whole / "run.json").read_text())
    assert record["train"]["optimizer"]["betas"] == [0.9, 0.999]  # complete, with what nobody gave
    assert record["model"]["vae"]["block_out_channels"] == [8]


@pytest.mark.slow
def test_a_killed_and_stopped_run_ends_with_identical_bits(whole, settings, train, monkeypatch, tmp_path):
    run = tmp_path / "run"
    assert processes(tmp_path / "run.yaml", settings(run), 1, die_after=8) == [-signal.SIGKILL]
    assert set(checkpoints(run)) >= {"3"} and not (run / "checkpoints" / "9").exists()
    for number, after, code in ((signal.SIGTERM, 8, 143), (signal.SIGINT, 10, 130)):
        with monkeypatch.context() as patch:
            signalled(patch, number, after)
            assert train(run) == code
        assert str(after + 1) in checkpoints(run)  # the step that it was at is saved
    assert train(run) == 0
    same, expected = saved(run, STEPS), saved(whole, STEPS)
    assert set(same) == {"params", "ema", "optimizer"}
    jax.tree.map(np.testing.assert_array_equal, same, expected)
    ours, theirs = metrics(run), metrics(whole)
    for name in ("loss", "gradient_norm", "evaluation/rgb/psnr", "evaluation/normal/angular_mean"):
        assert ours[name] == theirs[name]


def test_a_dry_run_describes_the_run_and_leaves_it_alone(train, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(run, dry_run=True) == 0
    shown = capsys.readouterr().out
    assert "  learning_rate: 0.001\n" in shown and "betas: [0.9, 0.999]" in shown  # given, and by default
    assert "vae: 2,153 parameters train, 8,411 are frozen" in shown
    assert "GiB of temporaries" in shown and "TFLOP per step on" in shown
    assert f"first batch: {run}.first-batch.png; nothing was trained" in shown
    assert not run.exists()
    # 4 rows of the middle frames of an image each.
    assert oiio.ImageInput.open(f"{run}.first-batch.png").spec().height == 4 * smallest.SIZE


@pytest.mark.slow
def test_a_resumed_run_reports_and_records_its_changes(whole, train, monkeypatch, tmp_path, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    changes = {"optimizer.steps": 13, "optimizer.learning_rate": 5e-4, "seed": 7}
    assert train(run, **changes) == 0
    shown = capsys.readouterr().out
    assert f"resuming {run} after step 12" in shown
    for line in ("optimizer.learning_rate (0.001, now 0.0005)", "seed (0, now 7)", "optimizer.steps (12, now 13)"):
        assert f"  changed {line}\n" in shown
    assert "changed optimizer.warmup" not in shown
    first, second = json.loads((run / "run.json").read_text())["starts"]
    assert (first["step"], first["changes"]) == (0, [])
    assert second["step"] == 12 and "seed (0, now 7)" in second["changes"]
    assert len(second["commit"]) == 40 and datetime.datetime.fromisoformat(second["time"]).tzinfo is not None


@pytest.mark.slow
def test_a_step_is_timed_alone_where_every_step_is_logged(whole):
    """A step that is saved or evaluated is no quicker than the others, because its metrics are read when it ends."""
    seconds = metrics(whole)["step_seconds"]
    assert min(seconds.values()) > np.median(list(seconds.values())) / 20


def test_a_finished_run_ends_at_once(whole, train, monkeypatch, capsys):
    monkeypatch.setattr(loop, "compile_step", None)
    before = (whole / "metrics.jsonl").read_text()
    assert train(whole) == 0
    assert capsys.readouterr().out.startswith(f"finished before: 12 steps; init_from.vae={whole} gives its result")
    assert (whole / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_a_non_finite_loss_stops_and_keeps_the_checkpoint(whole, train, clips, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    diverging = {"optimizer.learning_rate": 1e30, "optimizer.steps": 20}
    kept = rf"^step 1\d: .*loss (nan|inf).*; {run} keeps the checkpoint after step 12; lower"
    with pytest.raises(InputError, match=kept):
        train(run, **diverging)
    jax.tree.map(np.testing.assert_array_equal, saved(run, STEPS), saved(whole, STEPS))
    with pytest.raises(InputError, match=rf"^step \d: .*; {tmp_path / 'new'} has no checkpoint yet; lower"):
        train(tmp_path / "new", **diverging)


# --- the loop alone ---------------------------------------------------------------------------------------------------


def loop_alone(
    output: Path,
    stop_at: int = 0,
    evaluate: Callable = lambda *_: None,
    batches: Iterable = itertools.repeat({}),
    **changes,
) -> int:
    """Run four steps of a stand-in with the losses 1 to 4, evaluated after the second; return the exit code."""
    guard = PreemptionGuard()

    def step(state, frozen, batch, number):
        guard.received = 15 if number + 1 == stop_at else 0  # SIGTERM
        values = {"loss": number + 1, "gradient_norm": 1, "learning_rate": 1, "stop": 0}
        return state, jax.tree.map(jax.numpy.float32, values)

    class StandIn(Evaluation):
        __init__, due, run = object.__init__, lambda _, step: step == 2, evaluate

    arrays, evaluation = {"vae.x": jax.numpy.ones(4)}, StandIn()
    with smallest.begin_run(output, **{"optimizer.steps": 4, **changes}) as folder:
        logger = loop.MetricLogger(folder.config, folder, 0.0)
        state = TrainState(arrays, arrays, arrays)
        return loop.run_steps(folder, step, state, {}, iter(batches), logger, evaluation, guard)


def test_a_stop_between_two_logs_keeps_the_metrics_and_the_trace(tmp_path):
    assert loop_alone(tmp_path, stop_at=3, log_every=5, **{"profile.steps": [2, 3]}) == 143
    assert metrics(tmp_path)["loss"] == {3: 2.0} and checkpoints(tmp_path) == ["3"]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_an_evaluation_that_fails_is_a_warning(tmp_path):
    def fail(evaluation, step, weights):
        raise InputError("held-out/clip0/0.rgb.png: truncated or damaged")

    with pytest.warns(UserWarning, match=r"evaluation after step 2: failed \(held-out/.*\); training continues"):
        assert loop_alone(tmp_path, evaluate=fail) == 0
    assert checkpoints(tmp_path) == ["4"]


def test_a_file_damaged_during_training_loses_no_step(tmp_path):
    def batches():
        yield from ({}, {}, {})
        raise InputError("clips/clip0/0.rgb.png: truncated or damaged")

    with pytest.raises(InputError, match="truncated or damaged"):
        loop_alone(tmp_path, batches=batches())
    assert checkpoints(tmp_path) == ["3"]


def test_a_refused_run_leaves_no_folder(train, monkeypatch, tmp_path):
    def refuse(*_):
        raise InputError("trainable: no gradient")

    monkeypatch.setattr(loop, "trace_gradient", refuse)
    with pytest.raises(InputError, match="no gradient"):
        train(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_warmup_beyond_the_last_step_is_a_warning(train, tmp_path):
    missing = {"data.sources": [{"path": str(tmp_path / "none")}]}
    unreached = pytest.warns(UserWarning, match=r"optimizer\.warmup: 5 of 5 steps, so learning_rate is not reached")
    with unreached, pytest.raises(InputError, match="none does not exist"):
        train(tmp_path / "run", **missing, **{"optimizer.steps": 5, "optimizer.warmup": 5})


# --- other devices----------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_restored_on_another_mesh(whole, settings):
    run, values = settings(whole)
    config = smallest.config(*run, **values)
    weights = resolve_weights(config)
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=1), 4, 1)
    optimizer = make_optimizer(config.optimizer)
    expected = saved(whole, STEPS)
    assert r"null, \"fsdp\"]" in (whole / "checkpoints" / "12" / "params" / "_sharding").read_text()
    with RunFolder(config, weights.model) as folder:
        learn, _ = weights.split(needs_vae=True, resumed=True)
        state = folder.restore(abstract_state(learn, optimizer, mesh))
    assert {x.sharding for x in jax.tree.leaves(state)} == {sharding.replicated(mesh)}
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(vars(state)), jax.tree.leaves(expected))


@pytest.mark.slow
def test_two_killed_processes_resume_as_two_or_as_one(whole, settings, train, tmp_path):
    run, alone = tmp_path / "two", tmp_path / "one"
    pair = functools.partial(processes, tmp_path / "run.yaml", settings(run), 2)
    assert pair(die_after=8) == [-signal.SIGKILL] * 2
    shutil.copytree(run, alone)
    assert pair() == [0, 0]
    assert train(alone) == 0
    expected = metrics(whole)
    for measured in (metrics(run), metrics(alone)):
        assert measured["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert measured["evaluation/rgb/psnr"] == pytest.approx(expected["evaluation/rgb/psnr"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_loses_another_ends_with_one_line(whole, settings, train, tmp_path, lost):
    """Process 0 holds the coordinator, without which XLA aborts all others."""
    run = tmp_path / "run"
    steps = tuple(8 if i == lost else -1 for i in range(2))
    ends = outcomes(tmp_path / "run.yaml", settings(run), 2, steps)
    errors, code = ends[1 - lost]
    remedy = f"{run} keeps its checkpoints: run the same command again on every host"
    assert (errors, code) == (f"error: another process of this run was lost; {remedy}\n", 2)
    assert ends[lost][1] == -signal.SIGKILL
    assert train(run, **{"evaluation.path": None}) == 0
    assert metrics(run)["loss"] == pytest.approx(metrics(whole)["loss"], rel=1e-5)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model.vae": VAE | {"layers_per_block": 2}},
            r"another model.vae.layers_per_block \(1, now 2\)",
        ),
        ({"trainable": ["vae.decoder"]}, r"another trainable \(\['vae.*, now \['vae.decoder'\]\)"),
        ({"objective": "inverse"}, r"another objective \('vae', now 'inverse'\)"),
    ],
)
def test_a_run_of_another_model_is_not_resumed(whole, train, change, message):
    with pytest.raises(InputError, match=f"{message}; give another output, or start a new run with init_from that run"):
        train(whole, **change)


def test_a_folder_that_is_not_a_run_is_refused(train, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds something other than a training run; give another folder"):
        train(tmp_path)


@pytest.mark.parametrize("removed", ["ema/manifest.ocdbt", "ema/_METADATA", "params"])
def test_a_damaged_checkpoint(whole, train, tmp_path, removed):
    run = shutil.copytree(whole, tmp_path / "run")
    gone = run / "checkpoints" / "12" / removed
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(InputError, match=r"run/checkpoints/12: damaged .*; remove this folder to resume from") as error:
        train(run, **{"optimizer.steps": 20})
    assert "\n" not in str(error.value)
