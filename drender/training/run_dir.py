"""A training run on disk: its configuration, its checkpoints, its metrics.

    run.json         the configurations of the run and of its renderer, both complete, and a record of every start
    checkpoints/N/   after N steps: `params`, `ema` and `optimizer`, written by Orbax in the background
    metrics.jsonl    one line per log and per evaluation; also as TensorBoard files in tensorboard/
    pictures/        of evaluations

The place in the data needs no file, because rows are a function of the seed and the step.
"""

import contextlib
import datetime
import errno
import json
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from orbax.checkpoint import v1 as ocp
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from drender.config import RendererConfig
from drender.errors import InputError, first_line
from drender.fields import from_dict, naming, to_dict
from drender.files import atomic_write, expand_home, list_dir, read_json, remove_partial
from drender.locks import lock_folder
from drender.media.images import write_png
from drender.settings import differences
from drender.training.config import TrainConfig

RECORD = "run.json"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
# A run with other values of these is another run; other differences are reported when it is resumed.
FIXED = ("objective", "trainable", "lora")


@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes, as a pytree: float32 arrays by dotted parameter name, and optax's state."""

    params: dict[str, Any]
    ema: dict[str, Any]
    optimizer: Any

    def items(self) -> dict[str, Any]:
        """Return the three parts as Orbax's checkpointables."""
        return {"params": self.params, "ema": self.ema, "optimizer": self.optimizer}


jax.tree_util.register_dataclass(TrainState, ["params", "ema", "optimizer"], [])


# --- reading ---------------------------------------------------------------------------------------------------------


def is_run(path: str | Path) -> bool:
    """Whether a folder is a training run."""
    return (expand_home(path) / RECORD).is_file()


def read_run(path: str | Path) -> tuple[TrainConfig, RendererConfig]:
    """Return the configurations of a run and of its renderer; raise InputError if they cannot be read."""
    record, file = _read_record(path), expand_home(path) / RECORD
    with naming(file):
        return from_dict(TrainConfig, record["train"], "train"), from_dict(RendererConfig, record["model"], "model")


def _read_record(path: str | Path) -> dict[str, Any]:
    file = expand_home(path) / RECORD
    record = {"starts": []} | read_json(file, f"is {path} a training run?")
    if not ({"train", "model"} <= record.keys() and isinstance(record["starts"], list)):
        raise InputError(f"{file}: expected the keys train, model and starts; is {path} a training run?")
    return record


def last_step(path: str | Path) -> int:
    """Return the step of a run's last checkpoint; raise InputError if there is none yet."""
    folder = expand_home(path).resolve() / CHECKPOINTS
    if folder.is_dir():
        with ocp.training.Checkpointer(folder) as checkpointer:
            if checkpointer.latest is not None:
                return checkpointer.latest.step
    raise InputError(f"{path}: the run has no checkpoint yet")


def load_ema(path: str | Path, component: str) -> dict[str, jax.Array]:
    """Return the EMA of a component's trained parameters, by dotted name, from the last checkpoint of a run."""
    step = last_step(path)
    folder = expand_home(path).resolve() / CHECKPOINTS
    with _damage_as_input_error(path, step), ocp.training.Checkpointer(folder) as checkpointer:
        stored = checkpointer.checkpointables_metadata(step).metadata["ema"]
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = dict.fromkeys(stored, ...) | {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)
            for name, x in stored.items()
            if name.startswith(f"{component}.")
        }
        loaded = checkpointer.load_checkpointables(step, {"ema": target})["ema"]
        return {name: x for name, x in loaded.items() if x is not ...}


# --- training --------------------------------------------------------------------------------------------------------


class RunFolder:
    """The folder of a run that trains. As a context manager it waits, on exit, for pending writes.

    Args:
      config: the run; its `output` is the folder. Nothing is written there before `begin`.
      model: the renderer that is trained.
    Attributes:
      last: step of the last checkpoint, or None.
      changes: a line per option with another value than before, of a run that is resumed.
    Raises:
      InputError: the folder holds something else, or a run of another objective or model.
    """

    def __init__(self, config: TrainConfig, model: RendererConfig):
        self.path = expand_home(config.output).resolve()
        self.config, self.model = config, model
        self.is_main = jax.process_index() == 0
        self.last: int | None = None
        self.changes: list[str] = []
        if self.path.exists() and not is_run(self.path) and not (self.path.is_dir() and not list_dir(self.path)):
            raise InputError(f"output {config.output}: holds something other than a training run; give another folder")
        with contextlib.ExitStack() as stack:
            if self.is_main:
                stack.enter_context(lock_folder(self.path))
            self._open_checkpoints()
            self._lock = stack.pop_all()

    def _open_checkpoints(self) -> None:
        policy = ocp.training.preservation_policies.LatestN(self.config.keep_checkpoints)
        self._open = lambda: ocp.training.Checkpointer(
            self.path / CHECKPOINTS, preservation_policy=policy, cleanup_tmp_directories=True
        )
        self._checkpointer = self._board = None
        if (self.path / CHECKPOINTS).is_dir():
            self._checkpointer = self._open()
            if self._checkpointer.latest is not None:
                self.last = self._checkpointer.latest.step
                self._compare_with_record()

    def _compare_with_record(self) -> None:
        """Fill `changes`; raise InputError if the folder's run is another one."""
        before, before_model = read_run(self.path)
        old, new = to_dict(before), to_dict(self.config)
        fixed_old, fixed_new = (
            {name: values[name] for name in FIXED} | {"model": to_dict(model)}
            for values, model in ((old, before_model), (new, self.model))
        )
        if changes := differences(fixed_old, fixed_new):
            raise InputError(
                f"output {self.config.output}: holds a run with another {changes[0]}; give another output, or start a "
                "new run with init_from that run"
            )
        self.changes = differences(old, new)

    def begin(self) -> None:
        """Create the folder, or continue it after the last checkpoint: later lines of metrics.jsonl are dropped."""
        step = self.last or 0
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self.is_main:
                remove_partial(self.path)
                starts = _read_record(self.path)["starts"] if is_run(self.path) else []
                starts.append({"step": step, "time": _now(), "commit": _commit(), "changes": self.changes})
                record = {"train": to_dict(self.config), "model": to_dict(self.model), "starts": starts}
                with atomic_write(self.path / RECORD) as temporary:
                    temporary.write_text(json.dumps(record, indent=1) + "\n")
                self._drop_metrics_after(step)
                self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)
            if self._checkpointer is None:
                self._checkpointer = self._open()
        except OSError as error:
            raise InputError(f"output {self.config.output}: cannot be written ({error.strerror})") from error

    def _drop_metrics_after(self, step: int) -> None:
        """Drop lines of steps that will be repeated, left by a run that was killed after its last checkpoint."""
        file = self.path / METRICS
        lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
        kept = [line for line in lines if _is_before(line, step)]
        if len(kept) < len(lines):
            with atomic_write(file) as temporary:
                temporary.write_text("".join(kept))

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        with self._lock:
            self._close(kind)

    def _close(self, kind: type[BaseException] | None) -> None:
        if self._board is not None:
            self._board.close()
        if self._checkpointer is not None:
            # An exception in flight takes precedence over its consequences for the pending checkpoint.
            with self._write_as_input_error() if kind is None else contextlib.suppress(OSError, ValueError):
                self._checkpointer.close()

    def save(self, step: int, state: TrainState) -> None:
        """Write a checkpoint in the background, once the previous one is complete."""
        with self._write_as_input_error():
            self._checkpointer.wait()
            if self.last != step:
                # Orbax reports a full disk too, but in a hundred lines.
                if shutil.disk_usage(self.path).free < sum(x.nbytes for x in jax.tree.leaves(state)):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._checkpointer.save_checkpointables_async(step, state.items(), force=True)
                self.last = step

    def restore(self, abstract: TrainState) -> TrainState:
        """Return the last checkpoint with the abstract state's shardings, whatever mesh wrote it.

        Raises:
          InputError: the checkpoint is damaged, or its shapes differ.
        """
        with _damage_as_input_error(self.config.output, self.last):
            return TrainState(**self._checkpointer.load_checkpointables(self.last, abstract.items()))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append a line to metrics.jsonl and a point to each of TensorBoard's curves."""
        if not self.is_main:
            return
        with self._write_as_input_error(), (self.path / METRICS).open("a") as file:
            file.write(json.dumps({"step": step} | values) + "\n")
        with _failure_as_warning("TensorBoard's curves"):
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()

    def draw(self, step: int, image: Float[np.ndarray, "h w 3"]) -> None:
        """Write an evaluation's picture, in [0, 1], to pictures/ and to TensorBoard."""
        file = self.path / "pictures" / f"{step:08d}.png"
        with _failure_as_warning(f"the picture {file}"):
            write_png(file, image)
            # tensorboardX's `add_image` would need Pillow to encode the PNG, which exists already.
            height, width, channels = image.shape
            encoded = Summary.Image(
                height=height, width=width, colorspace=channels, encoded_image_string=file.read_bytes()
            )
            value = Summary.Value(tag="evaluation", image=encoded)
            self._board.file_writer.add_summary(Summary(value=[value]), step)

    @contextlib.contextmanager
    def _write_as_input_error(self) -> Iterator[None]:
        """Turn errors of the system, Orbax and TensorStore, such as a full disk, into one line."""
        try:
            yield
        except InputError:
            raise
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise InputError(
                f"output {self.config.output}: cannot be written ({reason}); free space and run the same command again"
            ) from error


@contextlib.contextmanager
def _failure_as_warning(thing: str) -> Iterator[None]:
    """Turn any error into a warning, because training does not depend on its illustrations."""
    try:
        yield
    except Exception as error:
        warnings.warn(f"{thing}: not written ({first_line(error)}); training continues", stacklevel=3)


@contextlib.contextmanager
def _damage_as_input_error(path: str | Path, step: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        folder = Path(path) / CHECKPOINTS / str(step)
        raise InputError(
            f"{folder}: damaged ({first_line(error)}); remove this folder to resume from the checkpoint before it"
        ) from error


# --- the record ------------------------------------------------------------------------------------------------------


def _is_before(line: str, step: int) -> bool:
    """Return whether a line of metrics.jsonl is complete, and of this step or an earlier one."""
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= step
    except (ValueError, LookupError, TypeError, RecursionError):
        return False


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _commit() -> str | None:
    """Return the commit of this code, or None outside of a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
