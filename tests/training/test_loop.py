"""Training runs: files, logs, and resuming to identical bits after kills and stops."""

import dataclasses
import datetime
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import OpenImageIO as oiio
import pytest
from helpers import smallest
from helpers.small import random_params
from jax.experimental.compilation_cache import compilation_cache
from orbax.checkpoint import v1 as ocp

from drender import InputError, sharding
from drender.checkpoints import orbax
from drender.media.gbuffers import frame_path
from drender.models.registry import network_of
from drender.sharding import MeshConfig
from drender.training import loop
from drender.training.config import LoraConfig
from drender.training.run_dir import RunFolder, load_ema
from drender.training.step import abstract_state, make_optimizer
from drender.training.weights import resolve_weights

ROOT = Path(__file__).parents[2]
STEPS = 12
# Few trained parameters, because each adds to the compilation. Frozen ones are drawn again when a run resumes.
LEARNS = ("vae.encoder.conv_in", "vae.decoder.conv_in", "vae.decoder.mid_block.resnets.0")
DYING = """
import os, signal, sys
import train
from drender import cli, sharding
from drender.training.loop import MetricLogger

sharding.MAX_REPLICATED_SIZE = 8
last, read = int(sys.argv.pop(1)), MetricLogger.read

def read_and_die(meter, step, metrics):
    stop = read(meter, step, metrics)
    if step == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return stop

MetricLogger.read = read_and_die
cli.run(train.main)
"""


@pytest.fixture(scope="module", autouse=True)
def shared(tmp_path_factory):
    """What is compiled once serves all runs here, in whatever process; and small parameters are sharded too."""
    with pytest.MonkeyPatch.context() as patch:
        before, folder = jax.config.jax_compilation_cache_dir, str(tmp_path_factory.mktemp("xla"))
        enabled = jax.config.jax_enable_compilation_cache
        patch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
        patch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
        patch.setattr(sharding, "MAX_REPLICATED_SIZE", 8)
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()
        yield
        jax.config.update("jax_compilation_cache_dir", before)
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return smallest.write_balls(tmp_path_factory.mktemp("clips"), clips=3, light=False)


@pytest.fixture(scope="module")
def settings(clips) -> Callable:
    """settings(output, …): a run of an auto-encoder, with a checkpoint every third step."""
    values = {"optimizer.steps": STEPS, "save_every": 3, "trainable": list(LEARNS)}
    values |= {"evaluation.path": str(clips), "evaluation.clips": 1}
    return lambda output, **changes: (("vae", clips, output), values | changes)


@pytest.fixture(scope="module")
def train(settings) -> Callable:
    """train(output, …) -> its exit code, in this process."""

    def call(output, **changes) -> int:
        run, values = settings(output, **changes)
        return loop.train(smallest.config(*run, **values))

    return call


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory) -> Path:
    """The run that nothing happens to."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train(folder) == 0
    return folder


def processes(path: Path, settings: tuple, count: int, die_after: int = -1) -> list[int]:
    """The exit codes of the processes that a run of train.py is made of; each kills itself after reading that step."""
    file = smallest.write_config(path, *settings[0], **settings[1])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(2 // count)}
    command = [sys.executable, "-c", DYING, str(die_after), "--config", str(file)]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        hosts = ["--coordinator", f"localhost:{free.getsockname()[1]}", "--num-processes", str(count)]
    hosts = [[*hosts, "--process-id", str(i)] for i in range(count)] if count > 1 else [[]]
    started = [
        subprocess.Popen([*command, *host], env=environment, stderr=subprocess.PIPE, text=True) for host in hosts
    ]
    ends = [(process.communicate()[1], process.returncode) for process in started]
    assert all(not errors for errors, code in ends if code == 0), ends
    return [code for _, code in ends]


def metrics(run: Path) -> dict[str, dict[int, float]]:
    """The measured values by name and step."""
    measured: dict[str, dict[int, float]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        step = values.pop("step")
        for name, value in values.items():
            assert step not in measured.setdefault(name, {}), f"{name} of step {step} is there twice"
            measured[name][step] = value
    return measured


def saved(run: Path, step: int = STEPS) -> dict:
    """A checkpoint, as it is."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    whole = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)
    with ocp.training.Checkpointer(run / "checkpoints") as checkpointer:
        stored = checkpointer.checkpointables_metadata(step).metadata
        return checkpointer.load_checkpointables(step, jax.tree.map(whole, dict(stored)))


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def signalled(monkeypatch, number: int, after: int) -> None:
    """Sends this process a signal when the loop reads that step, once."""
    read = loop.MetricLogger.read

    def read_and_signal(meter, step, metrics):
        if step == after:
            os.kill(os.getpid(), number)
        return read(meter, step, metrics)

    monkeypatch.setattr(loop.MetricLogger, "read", read_and_signal)


# --- runs ---------------------------------------------------------------------------------------------------------


def test_files_of_a_run(whole):
    assert checkpoints(whole) == ["12", "9"]  # the last two
    measured = metrics(whole)
    assert list(measured["loss"]) == list(range(1, STEPS + 1))
    assert {"gradient_norm", "learning_rate", "step_seconds", "rows_per_second", "tflops_per_second"} < set(measured)
    assert list(measured["evaluation/rgb/psnr"]) == [STEPS]
    assert (whole / "pictures" / f"{STEPS:08d}.png").is_file() and any((whole / "tensorboard").iterdir())
    record = json.loads((whole / "run.json").read_text())
    assert record["train"]["optimizer"]["betas"] == [0.9, 0.999]  # complete, with what nobody gave
    assert record["model"]["vae"]["block_out_channels"] == [8, 8]


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
    same, expected = saved(run), saved(whole)
    assert set(same) == {"params", "ema", "optimizer"}
    jax.tree.map(np.testing.assert_array_equal, same, expected)
    ours, theirs = metrics(run), metrics(whole)
    for name in ("loss", "gradient_norm", "evaluation/rgb/psnr", "evaluation/normal/angular_mean"):
        assert ours[name] == theirs[name]


def test_pictures_reach_tensorboard_without_its_own_encoder(whole, settings, tmp_path):
    """TensorBoard's encoder imports Pillow when it is called, which fails in this process."""
    file = tmp_path / "run.yaml"
    run, values = settings(tmp_path / "run")
    smallest.write_config(file, *run, **values | {"optimizer.steps": 1})
    code = "import sys; from drender import cli; import train; sys.modules['PIL'] = None; cli.run(train.main)"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-c", code, "--config", str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    picture = (tmp_path / "run" / "pictures" / "00000001.png").read_bytes()
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert picture in events.read_bytes()


def test_lora_alone_learns_from_plain_sources(tmp_path):
    clips = smallest.write_balls(tmp_path / "clips", light=False)
    config = smallest.config("inverse", clips, tmp_path / "run", **{"optimizer.steps": 2, "optimizer.warmup": 0})
    renderer = resolve_weights(config).model
    parts = {name: random_params(*network_of(renderer, name)) for name in ("unet", "vae")}
    orbax.save(tmp_path / "start", renderer, parts)
    fine_tuning = {
        "lora": LoraConfig(rank=2),
        "trainable": ("lora",),
        "init_from": str(tmp_path / "start"),
        "model": {},
    }
    assert loop.train(dataclasses.replace(config, **fine_tuning)) == 0
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert all(line["gradient_norm"] > 0 for line in lines)
    factors = load_ema(tmp_path / "run", "lora")
    # Cross-attention to a single token does not depend on its queries and keys.
    trained = [x for name, x in factors.items() if ".attn1." in name and name.endswith("lora_B")]
    assert trained and all(np.abs(x).max() > 0 for x in trained)


def metrics_of(**values: float) -> dict:
    """Return the metrics of a step as the logger reads them."""
    values = {"loss": 1.0, "gradient_norm": 1.0, "learning_rate": 1.0, "stop": 0.0} | values
    return {name: jax.numpy.float32(value) for name, value in values.items()}


@pytest.fixture
def begun(tmp_path):
    """The folder of a run that has begun."""
    with smallest.begin_run(tmp_path / "run") as folder:
        yield folder


def test_a_gradient_of_zero_is_a_warning(begun):
    logger = loop.MetricLogger(begun.config, begun, 0.0)
    with pytest.warns(UserWarning, match="step 1: the gradient is exactly 0, so nothing trains"):
        logger.read(1, metrics_of(gradient_norm=0.0))
    logger.read(2, metrics_of(gradient_norm=0.0))  # warned once


def test_logs_hold_mean_metrics_and_the_current_learning_rate(begun):
    logger = loop.MetricLogger(dataclasses.replace(begun.config, log_every=2), begun, 0.0)
    for step in (1, 2):
        logger.read(step, metrics_of(loss=step, learning_rate=step / 4))
    assert (metrics(begun.path)["loss"], metrics(begun.path)["learning_rate"]) == ({2: 1.5}, {2: 0.5})


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


def test_a_stop_between_two_logs_keeps_the_metrics(whole, train, monkeypatch, tmp_path):
    run = tmp_path / "run"
    signalled(monkeypatch, signal.SIGTERM, 3)
    assert train(run, log_every=5) == 143
    expected, found = metrics(whole)["loss"], metrics(run)["loss"]
    last = max(int(name) for name in checkpoints(run))
    assert list(found) == [last] and last % 5
    assert found[last] == pytest.approx(np.mean([expected[step] for step in range(1, last + 1)]), rel=1e-6)


def test_a_step_is_timed_alone_where_every_step_is_logged(whole):
    """A step that is saved or evaluated is no quicker than the others, because its metrics are read when it ends."""
    seconds = metrics(whole)["step_seconds"]
    assert min(seconds.values()) > np.median(list(seconds.values())) / 20


def test_a_finished_run_ends_at_once(whole, train, monkeypatch, capsys):
    monkeypatch.setattr(loop, "compile_step", None)
    before = (whole / "metrics.jsonl").read_text()
    assert train(whole) == 0
    assert capsys.readouterr().out.startswith(f"finished before: 12 steps; drender convert {whole}")
    assert (whole / "metrics.jsonl").read_text() == before


def test_a_second_ctrl_c_interrupts_at_once(capsys):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), loop.PreemptionGuard() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is handler
    assert capsys.readouterr().out == "stopping after this step, which will be saved\n"


def test_a_non_finite_loss_stops_and_keeps_the_checkpoint(whole, train, clips, tmp_path):
    run, bad = shutil.copytree(whole, tmp_path / "run"), tmp_path / "bad"
    for label in ("rgb", "basecolor", "normal", "depth", "roughness", "metallic"):
        for frame in range(2):
            path = frame_path(bad / "clip", 0, frame, label).with_suffix(".exr")
            path.parent.mkdir(parents=True, exist_ok=True)
            output = oiio.ImageOutput.create(str(path))
            assert output.open(str(path), oiio.ImageSpec(16, 16, 3, "float"))
            assert output.write_image(np.full((16, 16, 3), 3e38, np.float32)) and output.close()
    sources = {"data.sources": [{"path": str(bad)}], "optimizer.steps": 20}
    with pytest.raises(InputError, match=f"^step 13: .*loss nan.*; {run} keeps the checkpoint after step 12; lower"):
        train(run, **sources)
    jax.tree.map(np.testing.assert_array_equal, saved(run), saved(whole))
    with pytest.raises(InputError, match=f"^step 1: .*; {tmp_path / 'new'} has no checkpoint yet; lower"):
        train(tmp_path / "new", **sources)


# --- other devices----------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_restored_on_another_mesh(whole, settings):
    run, values = settings(whole)
    config = smallest.config(*run, **values)
    weights = resolve_weights(config)
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=1), 4, 1)
    optimizer = make_optimizer(config.optimizer)
    expected = saved(whole)
    assert r"null, \"fsdp\"]" in (whole / "checkpoints" / "12" / "params" / "_sharding").read_text()
    with RunFolder(config, weights.model) as folder:
        learn, _ = weights.split(needs_vae=True, resumed=True)
        state = folder.restore(abstract_state(learn, optimizer, mesh))
    assert {x.sharding for x in jax.tree.leaves(state)} == {sharding.replicated(mesh)}
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(state.items()), jax.tree.leaves(expected))


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


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": {"vae": smallest.VAE | {"layers_per_block": 2}}},
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
