"""The training loop: feed the step, log, save, evaluate, and stop cleanly."""

import contextlib
import dataclasses
import datetime
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from drender import sharding
from drender.data.loader import open_data
from drender.errors import InputError
from drender.training import flops
from drender.training.config import TrainConfig
from drender.training.evaluation import Evaluation
from drender.training.losses import Batch, LossContext
from drender.training.run_dir import RunFolder, TrainState
from drender.training.step import Arrays, abstract_state, compile_step, init_state, make_optimizer, make_step
from drender.training.weights import Weights, resolve_weights


def train(config: TrainConfig) -> int:
    """Train up to `optimizer.steps`, from the run's last checkpoint if there is one.

    Returns:
      the exit code: 0 at the end, or 128 + the signal that asked to stop, after the state is saved.
    Raises:
      InputError: invalid configuration, data or checkpoints, a full disk, or a non-finite loss.
    """
    mesh = sharding.make_mesh(config.mesh, config.data.batch, config.optimizer.grad_accum_steps)
    weights = resolve_weights(config)
    hint = f"drender convert {config.output} CHECKPOINT exports a checkpoint to sample"
    with RunFolder(config, weights.model) as run:
        if (run.last or 0) >= config.optimizer.steps:
            log(f"finished before: {run.last} steps; {hint}; raise optimizer.steps to continue")
            return 0
        rows, index, count = sharding.local_shard(mesh, config.data.batch)
        data = open_data(config.data, config.objective, weights.model, rows, config.seed, index, count)
        if data.latent:
            weights.check_latents(data.fingerprint)
        context = make_context(config, weights, data.latent, mesh)
        optimizer = make_optimizer(config.optimizer)
        state, frozen = _load_state(config, weights, context, optimizer, run)
        evaluation = Evaluation(config, context, run)
        run.begin()
        # Global shapes: the rows of all processes, and a number per device by which each process can request a stop.
        batch = {
            name: jax.ShapeDtypeStruct((config.data.batch, *x.shape[1:]), x.dtype)
            for name, x in data.abstract_batch().items()
        } | {"stop": sharding.per_process_value(0, mesh)}
        step = _compile(make_step(context, config, optimizer), state, frozen, batch, mesh)
        logger = MetricLogger(config, run, flops_of_step(context, config, state.params, frozen, batch))
        with PreemptionGuard() as guard, contextlib.closing(data.batches(run.last or 0)) as local_batches:
            batches = (
                sharding.make_global_batch(batch, mesh) | {"stop": sharding.per_process_value(guard.received, mesh)}
                for batch in local_batches
            )
            code = Loop(config, step, run, logger, evaluation, guard).run(state, frozen, batches)
        if code == 0:
            log(f"finished: {config.optimizer.steps} steps; {hint}")
    return code


def make_context(config: TrainConfig, weights: Weights, latent: bool, mesh: Mesh | None) -> LossContext:
    """Return the static context of a run's loss."""
    return LossContext(
        weights.model,
        config.loss,
        latent=latent,
        images_only=config.data.image_fraction == 1,
        remat=config.remat,
        mesh=mesh,
        lora_on_all_rows=weights.only_lora_trains,
    )


def _load_state(
    config: TrainConfig,
    weights: Weights,
    context: LossContext,
    optimizer: optax.GradientTransformation,
    run: RunFolder,
) -> tuple[TrainState, Arrays]:
    """Return the state to continue from, and the frozen parameters in the compute dtype, both on the mesh."""
    needs_vae = not context.latent or config.evaluation.path is not None
    trained, frozen = weights.split(needs_vae, resumed=run.last is not None, log=log)
    if run.last is None:
        state = init_state(trained, optimizer, context.mesh)
    else:
        log(f"resuming {config.output} after step {run.last}")
        for change in run.changes:
            log(f"  changed {change}")
        state = run.restore(abstract_state(trained, optimizer, context.mesh))
    return state, sharding.device_put_global(frozen, sharding.param_sharding(frozen, context.mesh))


def _compile(step: Callable, state: TrainState, frozen: Arrays, batch: Arrays, mesh: Mesh) -> jax.stages.Compiled:
    """Compile the step, and log how long it took and how much memory it needs."""
    start = time.monotonic()
    log("compiling the step …")
    compiled = compile_step(step, state, frozen, batch, mesh)
    memory = compiled.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes / 2**30, memory.temp_size_in_bytes / 2**30
    seconds = time.monotonic() - start
    log(f"compiled in {seconds:.0f} s; per device {arguments:.2f} GiB of state, {temporaries:.2f} GiB of temporaries")
    return compiled


@dataclass(frozen=True)
class Loop:
    """Steps with their side effects."""

    config: TrainConfig
    step: Callable
    run_folder: RunFolder
    logger: "MetricLogger"
    evaluation: Evaluation
    guard: "PreemptionGuard"

    def run(self, state: TrainState, frozen: Arrays, batches: Iterator[Batch]) -> int:
        """Step to the end or until a signal asks to stop; return the exit code."""
        last, pending = self.config.optimizer.steps, None
        for number, batch in zip(range(self.run_folder.last or 0, last), batches, strict=False):
            state, metrics = self.step(state, frozen, batch, np.uint32(number))
            # Read the metrics of the previous step, so that the devices need not wait for the host.
            stop = self.logger.read(*pending) if pending else 0
            if jax.process_count() == 1:  # other processes need not agree
                stop = self.guard.received
            done, pending = number + 1, (number + 1, metrics)
            saves, evaluates = done % self.config.save_every == 0 or done == last, self.evaluation.due(done)
            if stop or saves or evaluates or done % self.config.log_every == 0:
                # Save nothing before it is known to be finite, and time whole steps.
                stop, pending = max(stop, self.logger.read(*pending)), None
                with self.logger.paused():
                    if stop or saves:
                        self.run_folder.save(done, state)
                    if evaluates and not stop:
                        self.evaluation.run(done, state.ema | frozen)
            if stop:
                self.logger.flush(done)
                log(f"stopped after step {done}, which is saved; rerun the same command to resume")
                return 128 + stop
        return 0


def flops_of_step(context: LossContext, config: TrainConfig, params: Arrays, frozen: Arrays, batch: Arrays) -> float:
    """Return the floating-point operations of a step over all processes, without rematerialization."""
    step = make_step(dataclasses.replace(context, remat=False, mesh=None), config, optax.identity())

    def abstract(arrays: Arrays) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()}

    state = TrainState(abstract(params), abstract(params), optax.identity().init(params))
    return flops.count(step, state, abstract(frozen), abstract(batch), np.uint32(0))


class MetricLogger:
    """Collects the metrics of steps, and logs their mean and the speed every `log_every` steps."""

    def __init__(self, config: TrainConfig, run: RunFolder, flops_per_step: float):
        self.config, self.run, self.flops = config, run, flops_per_step
        self.values: list[dict[str, float]] = []  # since the last log
        self.start = time.monotonic()
        self._warned = False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude a block from the speed."""
        start = time.monotonic()
        yield
        self.start += time.monotonic() - start

    def read(self, step: int, metrics: Mapping[str, Array]) -> int:
        """Wait for the metrics of a step (counted from 1); return the signal that asks to stop, or 0.

        Raises:
          InputError: a metric is non-finite.
        """
        values = {name: float(value) for name, value in metrics.items()}
        stop = int(values.pop("stop"))
        if not all(map(math.isfinite, values.values())):
            last = self.run.last
            kept = f"keeps the checkpoint after step {last}" if last else "has no checkpoint yet"
            raise InputError(
                f"step {step}: non-finite {', '.join(f'{name} {value:g}' for name, value in values.items())}; "
                f"{self.config.output} {kept}; lower optimizer.learning_rate, or check the data"
            )
        if values["gradient_norm"] == 0 and not self._warned:
            self._warned = True
            warnings.warn(
                f"step {step}: the gradient is exactly 0, so nothing trains; no row of the batch reaches the "
                "parameters of `trainable`",
                stacklevel=2,
            )
        self.values.append(values)
        if step % self.config.log_every == 0 or step == self.config.optimizer.steps:
            self.flush(step)
        return stop

    def flush(self, step: int) -> None:
        """Log the mean of the metrics since the last log, and the current learning rate."""
        if not self.values:
            return
        names = sorted(self.values[0], key=lambda name: (name != "loss", name))
        means = {name: sum(values[name] for values in self.values) / len(self.values) for name in names}
        seconds = (time.monotonic() - self.start) / len(self.values)
        means |= {
            "learning_rate": self.values[-1]["learning_rate"],
            "step_seconds": seconds,
            "rows_per_second": self.config.data.batch / seconds,
            "tflops_per_second": self.flops / seconds / 1e12,
        }
        left = datetime.timedelta(seconds=round(seconds * (self.config.optimizer.steps - step)))
        columns = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        log(f"step {step}/{self.config.optimizer.steps}  {columns}  left {left}")
        self.run.log(step, means)
        self.values, self.start = [], time.monotonic()


class PreemptionGuard:
    """Records SIGTERM and SIGINT instead of exiting; a second Ctrl-C interrupts at once."""

    received = 0

    def __enter__(self) -> "PreemptionGuard":
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._record) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _record(self, number: int, frame) -> None:
        self.received = number
        log("stopping after this step, which will be saved")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *exception) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


def log(line: str) -> None:
    """Print a line of progress, from the first process only."""
    if jax.process_index() == 0:
        print(line, flush=True)
