"""Runs that are killed, stopped and resumed, by other processes or on another mesh, end as if nothing had been."""

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
from jax.experimental.compilation_cache import compilation_cache
from orbax.checkpoint import v1 as ocp

from drender import InputError, sharding
from drender.media.gbuffers import frame_path
from drender.sharding import MeshConfig
from drender.training import loop, run_dir, weights
from drender.training.run_dir import RunFolder
from drender.training.step import abstract_state, make_optimizer

ROOT = Path(__file__).parents[2]
STEPS = 12
# Few parameters, for each that learns is compiled; the others are drawn anew whenever the run goes on.
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


# --- stopped ---------------------------------------------------------------------------------------------------------


def test_what_a_run_leaves(whole):
    assert checkpoints(whole) == ["12", "9"]  # the last two
    measured = metrics(whole)
    assert list(measured["loss"]) == list(range(1, STEPS + 1))
    assert {"gradient_norm", "learning_rate", "step_seconds", "rows_per_second", "tflops_per_second"} < set(measured)
    assert list(measured["evaluation/rgb/psnr"]) == [STEPS]
    assert (whole / "pictures" / f"{STEPS:08d}.png").is_file() and any((whole / "tensorboard").iterdir())
    record = json.loads((whole / "run.json").read_text())
    assert record["train"]["optimizer"]["betas"] == [0.9, 0.999]  # complete, with what nobody gave
    assert record["model"]["vae"]["block_out_channels"] == [8, 8]


def test_a_run_that_is_killed_and_stopped_ends_as_if_it_had_not_been(whole, settings, train, monkeypatch, tmp_path):
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


def test_an_evaluation_needs_no_pillow(whole, settings, tmp_path):
    """A plain `pip install -e .` brings none; so a process trains and evaluates whose imports of it fail."""
    file = tmp_path / "run.yaml"
    run, values = settings(tmp_path / "run")
    smallest.write_config(file, *run, **values | {"optimizer.steps": 1})
    code = "import sys; sys.modules['PIL'] = None\nfrom drender import cli; import train; cli.run(train.main)"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-c", code, "--config", str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    picture = (tmp_path / "run" / "pictures" / "00000001.png").read_bytes()
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert picture in events.read_bytes()


def test_a_picture_that_cannot_be_written_is_a_warning(begun):
    folder, _ = begun
    (folder.path / "pictures").touch()
    with pytest.warns(UserWarning, match=r"pictures/00000001\.png: not written \(.*\); training continues"):
        folder.draw(1, np.zeros((4, 4, 3), np.float32))


def test_a_gradient_of_zero_is_a_warning(begun):
    folder, _ = begun
    meter = loop.MetricLogger(folder.config, folder, 0.0)
    metrics = {name: jax.numpy.float32(value) for name, value in {"loss": 1, "gradient_norm": 0, "stop": 0}.items()}
    with pytest.warns(UserWarning, match="step 1: the gradient is exactly 0, so nothing learns"):
        meter.read(1, metrics)
    meter.read(2, metrics)  # warned once


def test_a_finished_run_says_so_at_once(whole, train, monkeypatch, capsys):
    monkeypatch.setattr(loop, "compile_step", None)
    before = (whole / "metrics.jsonl").read_text()
    assert train(whole) == 0
    assert capsys.readouterr().out.startswith(f"finished before: 12 steps; python convert_weights.py {whole}")
    assert (whole / "metrics.jsonl").read_text() == before


def test_a_second_ctrl_c_interrupts_at_once(capsys):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), loop.PreemptionGuard() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is handler
    assert capsys.readouterr().out == "stopping after this step; it is being saved\n"


def test_numbers_that_are_none_stop_the_run(whole, train, clips, tmp_path):
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


# --- by others -------------------------------------------------------------------------------------------------------


def test_another_mesh_takes_up_what_is_saved(whole, settings):
    run, values = settings(whole)
    config = smallest.config(*run, **values)
    renderer = weights.renderer_config(config)
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=1), 4, 1)
    optimizer = make_optimizer(config.optimizer)
    expected = saved(whole)
    assert r"null, \"fsdp\"]" in (whole / "checkpoints" / "12" / "params" / "_sharding").read_text()
    with RunFolder(config, renderer) as folder:
        learn, _ = weights.weights(config, renderer, needs_vae=True, resumed=True)
        state = folder.restore(abstract_state(learn, optimizer, mesh))
    assert {x.sharding for x in jax.tree.leaves(state)} == {sharding.replicated(mesh)}
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(state.items()), jax.tree.leaves(expected))


def test_two_processes_are_killed_and_go_on_as_two_or_as_one(whole, settings, train, tmp_path):
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


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"vae": smallest.VAE | {"layers_per_block": 2}}}, "holds a run with vae.layers_per_block 1, not 2"),
        ({"trainable": ["vae.decoder"]}, r"holds a run with trainable \('vae.*, not \('vae.decoder',\)"),
        ({"objective": "inverse"}, "holds a run with objective 'vae', not 'inverse'"),
    ],
)
def test_a_run_of_something_else_is_not_resumed(whole, train, change, message):
    with pytest.raises(InputError, match=f"{message}; give another output, or start from that run"):
        train(whole, **change)


def test_a_folder_of_something_else(train, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds something that is no training run; give another folder"):
        train(tmp_path)


@pytest.mark.parametrize("removed", ["ema/manifest.ocdbt", "ema/_METADATA", "params"])
def test_a_damaged_checkpoint(whole, train, tmp_path, removed):
    run = shutil.copytree(whole, tmp_path / "run")
    gone = run / "checkpoints" / "12" / removed
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(InputError, match=r"run/checkpoints/12: damaged .*; remove this folder to go on from") as error:
        train(run, **{"optimizer.steps": 20})
    assert "\n" not in str(error.value)


@pytest.fixture
def begun(settings, tmp_path):
    """A run folder that has begun, and a state to save."""
    run, values = settings(tmp_path / "run")
    config = smallest.config(*run, **values)
    params = {"vae.x": jax.numpy.ones(1000)}
    with RunFolder(config, weights.renderer_config(config)) as folder:
        folder.begin()
        yield folder, run_dir.TrainState(params, params, params)


def test_a_full_disk_before_a_checkpoint_is_written(begun, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=7999))
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\); free space and run the same"):
        begun[0].save(1, begun[1])
    assert begun[0].last is None


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("RESOURCE_EXHAUSTED: Error writing\nwith more lines")]
)
def test_a_disk_that_fills_while_a_checkpoint_is_written(begun, monkeypatch, error):
    folder, state = begun
    folder.save(1, state)

    def fail():
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(folder._checkpointer, "wait", fail)
        with pytest.raises(InputError, match=r"cannot be written \((No space|RESOURCE_EXHAUSTED)") as told:
            folder.save(2, state)
    assert "\n" not in str(told.value)


def test_a_line_that_was_cut_short_goes(begun, settings):
    folder = begun[0]
    for step in (1, 2):
        folder.log(step, {"loss": 0.5})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    folder.last = 1
    folder.begin()
    assert (folder.path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n'


def test_a_run_without_a_checkpoint_has_no_weights(begun):
    with pytest.raises(InputError, match="run: the run has no checkpoint yet"):
        run_dir.last_step(begun[0].path)
