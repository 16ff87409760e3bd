"""A training run on disk: what it is, its checkpoints, what it measured.

    run.json         the configuration and the renderer's, both complete
    checkpoints/N/   after N steps: `params`, `ema` and `optimizer`, through Orbax; written in the background
    metrics.jsonl    a line per log and per evaluation; TensorBoard's files beside it, in tensorboard/
    pictures/        of evaluations

The place in the data needs no file: rows are a function of the seed and the step.
"""

import contextlib
import errno
import json
import os
import shutil
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

from drender.config import RendererConfig, from_dict, to_dict
from drender.errors import InputError, first_line
from drender.files import atomic_write, expand_home
from drender.media.images import write_png
from drender.models.params import flatten
from drender.training.config import TrainConfig

RECORD = "run.json"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class TrainState:
    """What a step changes, a pytree. Parameters and averages are flat dicts from dotted name to float32 array."""

    params: dict[str, Any]
    ema: dict[str, Any]
    optimizer: Any

    def items(self) -> dict[str, Any]:
        return {"params": self.params, "ema": self.ema, "optimizer": self.optimizer}


jax.tree_util.register_dataclass(TrainState, ["params", "ema", "optimizer"], [])


def is_run(path: str | Path) -> bool:
    return (expand_home(path) / RECORD).is_file()


def read(path: str | Path) -> tuple[TrainConfig, RendererConfig]:
    """What the run at `path` is; InputError if it cannot be read."""
    file = expand_home(path) / RECORD
    try:
        record = json.loads(file.read_text())
        train, model = record["train"], record["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: unreadable ({error}); is {path} a training run?") from error
    return from_dict(TrainConfig, train, str(file)), from_dict(RendererConfig, model, str(file))


def last_step(path: str | Path) -> int:
    """The step of the last checkpoint of a run; InputError if there is none yet."""
    folder = expand_home(path).resolve() / CHECKPOINTS
    if folder.is_dir():
        with ocp.training.Checkpointer(folder) as checkpointer:
            if checkpointer.latest is not None:
                return checkpointer.latest.step
    raise InputError(f"{path}: the run has no checkpoint yet")


def load_average(path: str | Path, component: str) -> dict[str, jax.Array]:
    """The averaged weights of a component that learnt, by dotted name, from the last checkpoint of a run."""
    step = last_step(path)
    with _readable(path, step), ocp.training.Checkpointer(expand_home(path).resolve() / CHECKPOINTS) as found:
        stored = found.checkpointables_metadata(step).metadata["ema"]
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        take = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)
        target = {name: take(x) if name.startswith(f"{component}.") else ... for name, x in stored.items()}
        loaded = found.load_checkpointables(step, {"ema": target})["ema"]
        return {name: x for name, x in loaded.items() if x is not ...}


class RunFolder:
    """The folder of a run that trains. A context manager: leaving it waits for what is being written.

    Args:
      config: the run; its `output` is the folder. Nothing is written there before `begin`.
      model: the renderer that is trained.
    Attributes:
      last: the step of the last checkpoint, or None.
    Raises:
      InputError: the folder holds something else, or a run of another objective or model.
    """

    def __init__(self, config: TrainConfig, model: RendererConfig):
        self.path = expand_home(config.output).resolve()
        self.config, self.model = config, model
        self.leads = jax.process_index() == 0
        self.last = None
        if self.path.exists() and not is_run(self.path) and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise InputError(f"output {config.output}: holds something that is no training run; give another folder")
        keep = ocp.training.preservation_policies.LatestN(config.keep)
        self._open = lambda: ocp.training.Checkpointer(
            self.path / CHECKPOINTS, preservation_policy=keep, cleanup_tmp_directories=True
        )
        self._checkpointer = self._board = None
        if (self.path / CHECKPOINTS).is_dir():
            self._checkpointer = self._open()
            if self._checkpointer.latest is not None:
                self.last = self._checkpointer.latest.step
                self._check_same(config, model)

    def begin(self) -> None:
        """Makes the folder, or takes it up again after the last checkpoint: later lines of metrics.jsonl go."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self.leads:
                record = {"train": to_dict(self.config), "model": to_dict(self.model)}
                with atomic_write(self.path / RECORD) as temporary:
                    temporary.write_text(json.dumps(record, indent=1) + "\n")
                self._forget_after(self.last or 0)
                self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=(self.last or 0) + 1)
            if self._checkpointer is None:
                self._checkpointer = self._open()
        except OSError as error:
            raise InputError(f"output {self.config.output}: cannot be written ({error.strerror})") from error

    def _check_same(self, config: TrainConfig, model: RendererConfig) -> None:
        before, before_model = read(self.path)
        old, new = ({"objective": c.objective, "trainable": c.trainable, "lora": c.lora} for c in (before, config))
        old |= flatten(to_dict(before_model))
        new |= flatten(to_dict(model))
        for name in old | new:
            if old.get(name) != new.get(name):
                raise InputError(
                    f"output {config.output}: holds a run with {name} {old.get(name)!r}, not {new.get(name)!r}; "
                    "give another output, or start from that run"
                )

    def _forget_after(self, step: int) -> None:
        """Drops lines of steps that will be done again, of a run that was killed after them."""
        file = self.path / METRICS
        lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        if len(kept) < len(lines):
            with atomic_write(file) as temporary:
                temporary.write_text("".join(kept))

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self._board is not None:
            self._board.close()
        if self._checkpointer is not None:
            # An error that is on its way says more than what it did to the checkpoint being written.
            with self._writable() if kind is None else contextlib.suppress(OSError, ValueError):
                self._checkpointer.close()

    def save(self, step: int, state: TrainState) -> None:
        """Writes a checkpoint in the background, once the one before it is written."""
        with self._writable():
            self._checkpointer.wait()
            if self.last != step:
                # Orbax would find out too, but in a hundred lines.
                if shutil.disk_usage(self.path).free < sum(x.nbytes for x in jax.tree.leaves(state)):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._checkpointer.save_checkpointables_async(step, state.items(), force=True)
                self.last = step

    def restore(self, abstract: TrainState) -> TrainState:
        """The last checkpoint, placed as the abstract state's shardings say, whatever mesh it was written on.

        InputError where its shapes are not those asked for.
        """
        with _readable(self.config.output, self.last):
            return TrainState(**self._checkpointer.load_checkpointables(self.last, abstract.items()))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append a line to metrics.jsonl and a point to each of TensorBoard's curves."""
        if not self.leads:
            return
        with self._writable(), (self.path / METRICS).open("a") as file:
            file.write(json.dumps({"step": step} | values) + "\n")
        with _illustrates("TensorBoard's curves"):
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()

    def draw(self, step: int, image: Float[np.ndarray, "h w 3"]) -> None:
        """Write an evaluation's picture, in [0, 1], to pictures/ and to TensorBoard."""
        file = self.path / "pictures" / f"{step:08d}.png"
        with _illustrates(f"the picture {file}"):
            write_png(file, image)
            # tensorboardX's `add_image` needs Pillow to encode the PNG, which is written already.
            height, width, channels = image.shape
            encoded = Summary.Image(
                height=height, width=width, colorspace=channels, encoded_image_string=file.read_bytes()
            )
            value = Summary.Value(tag="evaluation", image=encoded)
            self._board.file_writer.add_summary(Summary(value=[value]), step)

    @contextlib.contextmanager
    def _writable(self) -> Iterator[None]:
        """Turns what the system, Orbax and TensorStore say of a full disk and the like into one line."""
        try:
            yield
        except InputError:
            raise
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or first_line(error)
            raise InputError(
                f"output {self.config.output}: cannot be written ({why}); free space and run the same command again"
            ) from error


@contextlib.contextmanager
def _illustrates(what: str) -> Iterator[None]:
    """Turn any failure into a warning: the run does not depend on its illustrations."""
    try:
        yield
    except Exception as error:
        warnings.warn(f"{what}: not written ({first_line(error)}); training continues", stacklevel=3)


@contextlib.contextmanager
def _readable(path: str | Path, step: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        folder = Path(path) / CHECKPOINTS / str(step)
        raise InputError(
            f"{folder}: damaged ({first_line(error)}); remove this folder to go on from the checkpoint before it"
        ) from error
