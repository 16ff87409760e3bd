"""A training run on disk: its configuration, its checkpoints, its metrics.

    run.json         the configurations of the run and of its renderer, both complete, and a record of every start
    checkpoints/N/   after N steps: `params`, `ema` and `optimizer`, written by Orbax in the background
    metrics.jsonl    one line per log and per evaluation
    tensorboard/     the same as TensorBoard's curves, and pictures
    pictures/        of evaluations

The place in the data needs no file, because rows are a function of the seed and the step.
"""

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float
from orbax.checkpoint import v1 as ocp

from drender.config import RendererConfig
from drender.errors import InputError, first_line
from drender.fields import to_dict
from drender.files import expand_home, list_dir, remove_partial, require_space, write_text
from drender.locks import lock_folder
from drender.media.images import write_png
from drender.settings import differences
from drender.training.config import TrainConfig
from drender.training.loggers import Logger, TensorBoard, WeightsAndBiases
from drender.training.run_record import METRICS, best_step, is_run, read_metrics, read_run, write_record

CHECKPOINTS = "checkpoints"
# A run with other values of these is another run; other differences are reported when it is resumed.
FIXED = ("objective", "trainable", "lora")


@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes, as a pytree: float32 arrays by dotted parameter name, and optax's state."""

    params: dict[str, Any]
    ema: dict[str, Any]
    optimizer: Any


jax.tree_util.register_dataclass(TrainState, ["params", "ema", "optimizer"], [])


# --- reading ---------------------------------------------------------------------------------------------------------


def resolve_step(path: str | Path, step: int | Literal["last", "best"] = "last") -> int:
    """Return the step of a checkpoint: the last, the best by the run's `keep_best`, or the given one.

    Raise InputError if there is none.
    """
    folder, steps = expand_home(path).resolve() / CHECKPOINTS, []
    if folder.is_dir():
        with ocp.training.Checkpointer(folder) as checkpointer:
            steps = [checkpoint.step for checkpoint in checkpointer.checkpoints]
    if not steps:
        raise InputError(f"{path}: the run has no checkpoint yet")
    if step == "last":
        return max(steps)
    if step == "best":
        metric = read_run(path)[0].keep_best
        if metric is None:
            raise InputError(f"{path}: the run kept no best checkpoint; train with keep_best, or give a step")
        step = best_step(read_metrics(expand_home(path) / METRICS), metric, steps)
        if step is None:
            raise InputError(f"{path}: the run has measured no {metric} of its checkpoints yet; give a step")
    if step not in steps:
        raise InputError(f"{path}: has no checkpoint of step {step}; it has {', '.join(map(str, sorted(steps)))}")
    return step


def load_ema(path: str | Path, component: str, step: int | None = None) -> dict[str, jax.Array]:
    """Return the EMA of a component's trained parameters, by dotted name, from a run's checkpoint (None: the last)."""
    step = resolve_step(path) if step is None else step
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
        self._checkpointer: ocp.training.Checkpointer | None = None
        self._loggers: list[Logger] = []
        self._evaluations: list[dict[str, Any]] = []  # lines with the metric of `keep_best`
        if self.path.exists() and not is_run(self.path) and not (self.path.is_dir() and not list_dir(self.path)):
            raise InputError(f"output {config.output}: holds something other than a training run; give another folder")
        with contextlib.ExitStack() as stack:
            if self.is_main:
                stack.enter_context(lock_folder(self.path))
            if (self.path / CHECKPOINTS).is_dir():
                self._checkpointer = self._open()
                if self._checkpointer.latest is not None:
                    self.last = self._checkpointer.latest.step
                    self.changes = self._changed_options()
            self._lock = stack.pop_all()

    def _open(self) -> ocp.training.Checkpointer:
        """Open the checkpoints, of which to keep the last, one every `keep_every` steps, and the best."""
        policies = ocp.training.preservation_policies
        kept: list = [policies.LatestN(self.config.keep_checkpoints)]
        if self.config.keep_every is not None:
            kept.append(policies.EveryNSteps(self.config.keep_every))
        if self.config.keep_best is not None:
            kept.append(_KeepBest(self._evaluations, self.config.keep_best))
        policy, folder = policies.AnyPreservationPolicy(kept), self.path / CHECKPOINTS
        return ocp.training.Checkpointer(folder, preservation_policy=policy, cleanup_tmp_directories=True)

    def _changed_options(self) -> list[str]:
        """Return `changes`; raise InputError if the folder's run is another one."""
        config, model = read_run(self.path)
        old, new = to_dict(config), to_dict(self.config)
        fixed = [{name: values[name] for name in FIXED} for values in (old, new)]
        if changes := differences(*fixed) + differences(to_dict(model), to_dict(self.model), "model"):
            remedy = "give another output, or start a new run with init_from that run"
            raise InputError(f"output {self.config.output}: holds a run with another {changes[0]}; {remedy}")
        return differences(old, new)

    def begin(self) -> None:
        """Create the folder, or continue it after the last checkpoint: later lines of metrics.jsonl are dropped."""
        step, trained = self.last or 0, max((line["step"] for line in read_metrics(self.path / METRICS)), default=0)
        if self.last is None and trained >= 2 * self.config.save_every:
            problem = f"its checkpoints are missing, although it has trained {trained} steps"
            raise InputError(f"output {self.config.output}: {problem}; bring them back, or give another output")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self.is_main:
                remove_partial(self.path)
                record = write_record(self.path, self.config, self.model, step, self.changes)
                self._drop_metrics_after(step)
                self._loggers.append(TensorBoard(self.path / "tensorboard", step))
                if self.config.logger == "wandb":
                    self._loggers.append(WeightsAndBiases(self.path, record["starts"][0]["time"], record["train"]))
            if self._checkpointer is None:
                self._checkpointer = self._open()
        except OSError as error:
            raise InputError(f"output {self.config.output}: cannot be written ({error.strerror})") from error

    def _drop_metrics_after(self, step: int) -> None:
        """Drop lines of steps that will be repeated, left by a run that was killed after its last checkpoint."""
        file = self.path / METRICS
        kept = [line for line in read_metrics(file) if line["step"] <= step]
        self._evaluations += [line for line in kept if self.config.keep_best in line]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        if file.is_file() and file.read_text() != text:
            write_text(file, text)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        # An exception in flight takes precedence over its consequences for the pending checkpoint.
        guard = self._write_as_input_error() if kind is None else contextlib.suppress(OSError, ValueError)
        with self._lock:
            for logger in self._loggers:
                with failure_as_warning(type(logger).__name__):
                    logger.close()
            if self._checkpointer is not None:
                with guard:
                    self._checkpointer.close()

    def save(self, step: int, state: TrainState) -> None:
        """Write a checkpoint in the background, once the previous one is complete."""
        with self._write_as_input_error():
            self._checkpointer.wait()
            if self.last != step:
                num_bytes = sum(x.nbytes for x in jax.tree.leaves(state))
                require_space(self.path, num_bytes, "free space and run the same command again")
                self._checkpointer.save_checkpointables_async(step, vars(state), force=True)
                self.last = step

    def restore(self, abstract: TrainState) -> TrainState:
        """Return the last checkpoint in the shardings of `abstract`; raise InputError if damaged or of other shapes."""
        with _damage_as_input_error(self.config.output, self.last):
            return TrainState(**self._checkpointer.load_checkpointables(self.last, vars(abstract)))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append a line to metrics.jsonl and a point to each curve of the loggers."""
        if not self.is_main:
            return
        line = {"step": step} | values
        if self.config.keep_best in values:
            self._evaluations.append(line)
        with self._write_as_input_error(), (self.path / METRICS).open("a") as file:
            file.write(json.dumps(line) + "\n")
        for logger in self._loggers:
            with failure_as_warning(f"curves of {type(logger).__name__}"):
                logger.log(step, values)

    def draw(self, step: int, image: Float[np.ndarray, "h w 3"]) -> None:
        """Write an evaluation's picture, in [0, 1], to pictures/ and to the loggers."""
        file = self.path / "pictures" / f"{step:08d}.png"
        with failure_as_warning(f"the picture {file}"):
            write_png(file, image)
        for logger in self._loggers if file.is_file() else ():
            with failure_as_warning(f"the picture in {type(logger).__name__}"):
                logger.draw(step, file)

    @contextlib.contextmanager
    def _write_as_input_error(self) -> Iterator[None]:
        """Turn errors of the system, Orbax and TensorStore, such as a full disk, into one line."""
        try:
            yield
        except InputError:
            raise
        except (OSError, ValueError) as error:
            problem = f"cannot be written ({getattr(error, 'strerror', None) or first_line(error)})"
            remedy = "free space and run the same command again"
            raise InputError(f"output {self.config.output}: {problem}; {remedy}") from error


@dataclass(frozen=True)
class _KeepBest:
    """Orbax's policy to keep the checkpoint of the best evaluation, of those that are left."""

    evaluations: Sequence[Mapping[str, Any]]
    metric: str

    def should_preserve(self, checkpoints: Sequence, *, context: Any) -> list[bool]:
        best = best_step(self.evaluations, self.metric, {checkpoint.step for checkpoint in checkpoints})
        return [checkpoint.step == best for checkpoint in checkpoints]


@contextlib.contextmanager
def failure_as_warning(thing: str) -> Iterator[None]:
    """Turn any error into a warning, because training does not depend on its illustrations."""
    try:
        yield
    except Exception as error:
        warnings.warn(f"{thing}: failed ({first_line(error)}); training continues", stacklevel=3)


@contextlib.contextmanager
def _damage_as_input_error(path: str | Path, step: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        folder, remedy = Path(path) / CHECKPOINTS / str(step), "to resume from the checkpoint before it"
        raise InputError(f"{folder}: damaged ({first_line(error)}); remove this folder {remedy}") from error
