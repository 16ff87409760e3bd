"""Training runs on disk: processes that kill themselves, and what a run has left behind."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
from helpers import smallest
from orbax.checkpoint import v1 as ocp

ROOT = Path(__file__).parents[2]
DYING = """
import os, signal, sys
sys.modules["torch"] = None  # TensorBoard's writer would import it, which takes seconds
import train
del sys.modules["torch"]  # SciPy looks there
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


def processes(path: Path, settings: tuple, count: int, die_after: int | tuple[int, ...] = -1) -> list[int]:
    """Return the exit codes of the processes of a run of train.py.

    Args:
      die_after: each process kills itself after reading this step; one step for all, or one per process.
    """
    ends = outcomes(path, settings, count, die_after)
    assert all(not errors for errors, code in ends if code == 0), ends
    return [code for _, code in ends]


def outcomes(path: Path, settings: tuple, count: int, die_after: int | tuple[int, ...]) -> list[tuple[str, int]]:
    """Return what each of those processes printed to stderr, and its exit code."""
    file = smallest.write_config(path, *settings[0], **settings[1])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(2 // count)}
    steps = die_after if isinstance(die_after, tuple) else (die_after,) * count
    with socket.socket() as free:
        free.bind(("localhost", 0))
        hosts = ["--coordinator", f"localhost:{free.getsockname()[1]}", "--num-processes", str(count)]
    started = []
    for i, step in enumerate(steps):
        command = [sys.executable, "-c", DYING, str(step), "--config", str(file)]
        command += [*hosts, "--process-id", str(i)] if count > 1 else []
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    return [(process.communicate()[1], process.returncode) for process in started]


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


def saved(run: Path, step: int) -> dict:
    """A checkpoint, as it is."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    whole = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)
    with ocp.training.Checkpointer(run / "checkpoints") as checkpointer:
        stored = checkpointer.checkpointables_metadata(step).metadata
        return checkpointer.load_checkpointables(step, jax.tree.map(whole, dict(stored)))


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())
