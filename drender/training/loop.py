"""Training: state, optimizer, one jitted step, and the loop that feeds, logs, saves and evaluates."""

import contextlib
import dataclasses
import datetime
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from drender import sharding
from drender.data.loader import open_data
from drender.errors import InputError
from drender.training import flops, weights
from drender.training.config import TrainConfig
from drender.training.evaluation import Evaluation
from drender.training.losses import Batch, LossContext
from drender.training.run_dir import RunFolder, TrainState
from drender.training.step import Arrays, abstract_state, compile_step, first_state, make_optimizer, make_step

# --- the step --------------------------------------------------------------------------------------------------------


# --- the loop --------------------------------------------------------------------------------------------------------


def train(config: TrainConfig) -> int:
    """Trains up to `optimizer.steps`, from the run's last checkpoint where there is one.

    Returns:
      the exit code: 0 at the end, 128 + the signal where one asked to stop; the state is saved then.
    Raises:
      InputError: of the configuration, data, checkpoints or disk; or a loss that is no number any more.
    """
    mesh = sharding.make_mesh(config.mesh, config.data.batch, config.optimizer.accumulate)
    renderer = weights.renderer_config(config)
    optimizer = make_optimizer(config.optimizer)
    sample = f"python convert_weights.py {config.output} CHECKPOINT makes a checkpoint to sample"
    with RunFolder(config, renderer) as run:
        if (run.last or 0) >= config.optimizer.steps:
            log(f"finished before: {run.last} steps; {sample}; with more optimizer.steps it would go on")
            return 0
        rows, index, count = sharding.local_shard(mesh, config.data.batch)
        data = open_data(config.data, config.objective, renderer, rows, config.seed, index, count)
        if data.latent:
            weights.check_latents(config, data.fingerprint)
        images_only = config.data.images == 1
        model = LossContext(
            renderer, config.loss, data.latent, images_only, config.remat, mesh, lora_on_all_rows=config.lora_alone
        )
        # The order matters: a run that is there is resumed; else it begins from `start`; what is in neither is random.
        state, frozen = _begin(config, model, optimizer, mesh, run)
        evaluation = Evaluation(config, model, run)
        run.begin()
        # Of all processes together: rows as the data has them, and a number by which each can ask to stop.
        whole = lambda x: jax.ShapeDtypeStruct((config.data.batch, *x.shape[1:]), x.dtype)
        batch = jax.tree.map(whole, data.abstract_batch()) | {"stop": sharding.per_process_value(0, mesh)}
        step = _compiled(make_step(model, config, optimizer), state, frozen, batch, mesh)
        meter = MetricLogger(config, run, flops_of_step(model, config, state.params, frozen, batch))
        with PreemptionGuard() as signals, contextlib.closing(data.batches(run.last or 0)) as batches:
            tell_stop = lambda: {"stop": sharding.per_process_value(signals.received, mesh)}
            placed = (sharding.make_global_batch(batch, mesh) | tell_stop() for batch in batches)
            code = _loop(config, step, state, frozen, placed, run, meter, evaluation, signals)
        if code == 0:
            log(f"finished: {config.optimizer.steps} steps; {sample}")
    return code


def _loop(
    config: TrainConfig, step: Callable, state: TrainState, frozen: Arrays, batches: Iterator[Batch], run: RunFolder,
    meter: "MetricLogger", evaluation: Evaluation, signals: "PreemptionGuard",
) -> int:  # fmt: skip
    """Steps to the end, or until one is asked to stop; the exit code."""
    pending, last = None, config.optimizer.steps
    for number, batch in zip(range(run.last or 0, last), batches, strict=False):
        state, metrics = step(state, frozen, batch, np.uint32(number))
        # The metrics of the step before: reading them does not keep the devices waiting.
        stop = meter.read(*pending) if pending else 0
        if jax.process_count() == 1:  # there is nobody to agree with
            stop = signals.received
        pending, done = (number + 1, metrics), number + 1
        saves, evaluates = done % config.save_every == 0 or done == last, evaluation.due(done)
        if stop or saves or evaluates:
            # Nothing is saved before it is known to be sound.
            stop = max(stop, meter.read(*pending))
            pending = None
            with meter.paused():
                if stop or saves:
                    run.save(done, state)
                if evaluates and not stop:
                    evaluation.run(done, state.ema | frozen)
        if stop:
            log(f"stopped after step {done}, which is saved; the same command goes on from there")
            return 128 + stop
    return 0


def _begin(
    config: TrainConfig, model: LossContext, optimizer: optax.GradientTransformation, mesh: Mesh, run: RunFolder
) -> tuple[TrainState, dict[str, Array]]:
    """The state to go on from, and the frozen weights in the dtype that is computed in."""
    needs_vae = not model.latent or config.evaluation.path is not None
    trained, frozen = weights.weights(config, model.config, needs_vae, run.last is not None, log)
    if run.last is None:
        state = first_state(trained, optimizer, mesh)
    else:
        log(f"resuming {config.output} after step {run.last}")
        state = run.restore(abstract_state(trained, optimizer, mesh))
    return state, sharding.device_put_global(frozen, sharding.param_sharding(frozen, mesh))


def _compiled(step: Callable, state: TrainState, frozen: Arrays, batch: Arrays, mesh: Mesh) -> Callable:
    began = time.monotonic()
    log("compiling the step …")
    compiled = compile_step(step, state, frozen, batch, mesh)
    memory = compiled.memory_analysis()
    held, worked = memory.argument_size_in_bytes / 2**30, memory.temp_size_in_bytes / 2**30
    log(
        f"compiled in {time.monotonic() - began:.0f} s; per device {held:.2f} GiB of state, {worked:.2f} GiB to work in"
    )
    return compiled


def flops_of_step(model: LossContext, config: TrainConfig, params: Arrays, frozen: Arrays, batch: Arrays) -> float:
    """Floating-point operations of one step over all processes, without what rematerialisation repeats."""
    step = make_step(dataclasses.replace(model, remat=False, mesh=None), config, optax.identity())
    abstract = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(tree))
    state = TrainState(abstract(params), abstract(params), optax.identity().init(params))
    return flops.count(step, state, abstract(frozen), abstract(batch), np.uint32(0))


class MetricLogger:
    """Reads the metrics of steps, and now and then logs their mean with the speed."""

    def __init__(self, config: TrainConfig, run: RunFolder, flops_per_step: float):
        self.config, self.run, self.flops = config, run, flops_per_step
        self.seen, self.since, self.warned = [], time.monotonic(), False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no step, and does not count for the speed."""
        began = time.monotonic()
        yield
        self.since += time.monotonic() - began

    def read(self, step: int, metrics: Mapping[str, Array]) -> int:
        """Takes in what step number `step` (from 1) gave; returns the signal that asks to stop, or 0.

        InputError if a number is none any more.
        """
        values = {name: float(value) for name, value in metrics.items()}
        stop = int(values.pop("stop"))
        if not all(map(math.isfinite, values.values())):
            kept = f"keeps the checkpoint after step {self.run.last}" if self.run.last else "has no checkpoint yet"
            raise InputError(
                f"step {step}: {', '.join(f'{name} {value:g}' for name, value in values.items())}; "
                f"{self.config.output} {kept}; lower optimizer.learning_rate, or look at the data"
            )
        if values["gradient_norm"] == 0 and not self.warned:
            self.warned = True
            warnings.warn(
                f"step {step}: the gradient is exactly 0, so nothing learns; no row of the batch reaches the weights "
                f"of `trainable`",
                stacklevel=2,
            )
        self.seen.append(values)
        if step % self.config.log_every == 0 or step == self.config.optimizer.steps:
            self._log(step)
        return stop

    def _log(self, step: int) -> None:
        names = sorted(self.seen[0], key=lambda name: (name != "loss", name))
        means = {name: sum(values[name] for values in self.seen) / len(self.seen) for name in names}
        seconds = (time.monotonic() - self.since) / len(self.seen)
        means |= {
            "step_seconds": seconds,
            "rows_per_second": self.config.data.batch / seconds,
            "tflops_per_second": self.flops / seconds / 1e12,
        }
        left = datetime.timedelta(seconds=round(seconds * (self.config.optimizer.steps - step)))
        shown = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        log(f"step {step}/{self.config.optimizer.steps}  {shown}  left {left}")
        self.run.log(step, means)
        self.seen, self.since = [], time.monotonic()


class PreemptionGuard:
    """Notes SIGTERM and SIGINT instead of dying of them. A second Ctrl-C interrupts at once."""

    received = 0

    def __enter__(self) -> "PreemptionGuard":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number: int, frame) -> None:
        self.received = number
        log("stopping after this step; it is being saved")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def log(line: str) -> None:
    """Tells of progress, once for all processes."""
    if jax.process_index() == 0:
        print(line, flush=True)
