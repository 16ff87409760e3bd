"""The training loop: feed the step, log, save, evaluate, and stop cleanly."""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from drender import sharding
from drender.data.loader import TrainingData
from drender.training import flops, hosts, plan
from drender.training.config import TrainConfig
from drender.training.evaluation import Evaluation
from drender.training.losses import Batch, LossSetup
from drender.training.progress import MetricLogger, PreemptionGuard, log
from drender.training.run_dir import RunFolder, TrainState, failure_as_warning
from drender.training.step import Arrays, abstract_state, compile_step, init_state, make_optimizer, make_step
from drender.training.trace import trace_gradient, unreached
from drender.training.weights import Weights, resolve_weights

# What comes after a finished run.
NEXT = dict.fromkeys(("inverse", "forward"), "drender convert {output} CHECKPOINT exports a checkpoint to sample") | {
    name: f"init_from.{part}={{output}} gives its result to another run"
    for name, part in (("environment", "env_encoder"), ("vae", "vae"))
}


def train(config: TrainConfig, dry_run: bool = False) -> int:
    """Train up to `optimizer.steps`, from the run's last checkpoint if there is one.

    Args:
      dry_run: load everything and compile the step; print what the run needs and trains, draw the first batch beside
        the run's folder, and return without training or touching that folder.
    Returns:
      the exit code: 0 at the end, or 128 + the signal that asked to stop, after the state is saved.
    Raises:
      InputError: invalid configuration, data or checkpoints, a full disk, or a non-finite loss.
    """
    mesh = sharding.make_mesh(config.mesh, config.data.batch, config.optimizer.grad_accum_steps)
    weights = resolve_weights(config)
    hint = NEXT[config.objective].format(output=config.output)
    if config.optimizer.warmup >= config.optimizer.steps:
        problem = f"{config.optimizer.warmup} of {config.optimizer.steps} steps, so learning_rate is not reached"
        warnings.warn(f"optimizer.warmup: {problem}; lower it, or raise optimizer.steps", stacklevel=2)
    with RunFolder(config, weights.model) as run:
        if (run.last or 0) >= config.optimizer.steps:
            log(f"finished before: {run.last} steps; {hint}; raise optimizer.steps to continue")
            return 0
        rows, index, count = sharding.local_shard(mesh, config.data.batch)
        data = TrainingData(config.data, config.objective, weights.model, rows, config.seed, index, count)
        if data.latent:
            weights.check_latents(data.fingerprint)
        setup = make_setup(config, weights, data.latent, mesh)
        optimizer = make_optimizer(config.optimizer)
        log(plan.describe_config(config))
        state, frozen = _load_state(config, weights, setup, optimizer, run)
        log(plan.describe_parameters(state.params, frozen))
        evaluation = Evaluation(config, setup, run)
        # Global shapes: the rows of all processes, and a number per device by which each process can request a stop.
        batch = {
            name: jax.ShapeDtypeStruct((config.data.batch, *x.shape[1:]), x.dtype)
            for name, x in data.abstract_batch().items()
        } | {"stop": sharding.per_process_value(0, mesh)}
        traced = trace_gradient(setup, config, state.params, frozen, batch)
        weights.check_reach(unreached(traced, state.params))
        if not dry_run:
            run.begin()
        flops_per_step = flops.total(traced)
        step = _compile(make_step(setup, config, optimizer), state, frozen, batch, mesh)
        if dry_run:
            log(plan.describe_step(config, flops_per_step))
            log(f"first batch: {plan.write_batch(config, data)}; nothing was trained")
            return 0
        logger = MetricLogger(config, run, flops_per_step)
        with PreemptionGuard() as guard, contextlib.closing(data.batches(run.last or 0)) as local_batches:
            batches = (
                sharding.make_global_batch(batch, mesh) | {"stop": sharding.per_process_value(guard.received, mesh)}
                for batch in local_batches
            )
            with hosts.leave_lost_peers():
                code = run_steps(run, step, state, frozen, batches, logger, evaluation, guard)
        if code == 0:
            log(f"finished: {config.optimizer.steps} steps; {hint}")
    return code


def make_setup(config: TrainConfig, weights: Weights, latent: bool, mesh: Mesh | None) -> LossSetup:
    """Return the static setup of a run's loss."""
    return LossSetup(
        weights.model,
        config.loss,
        latent=latent,
        image_only=config.data.image_fraction == 1,
        remat=config.remat,
        mesh=mesh,
        lora_on_all_rows=weights.only_lora_trains,
    )


def _load_state(
    config: TrainConfig, weights: Weights, setup: LossSetup, optimizer: optax.GradientTransformation, run: RunFolder
) -> tuple[TrainState, Arrays]:
    """Return the state to continue from, and the frozen parameters in the compute dtype, both on the mesh."""
    needs_vae = not setup.latent or config.evaluation.path is not None or config.loss.perceptual > 0
    trained, frozen = weights.split(needs_vae, resumed=run.last is not None, log=log)
    if run.last is None:
        state = init_state(trained, optimizer, setup.mesh)
    else:
        log(f"resuming {config.output} after step {run.last}")
        for change in run.changes:
            log(f"  changed {change}")
        state = run.restore(abstract_state(trained, optimizer, setup.mesh))
    return state, sharding.device_put_global(frozen, sharding.param_sharding(frozen, setup.mesh))


def _compile(step: Callable, state: TrainState, frozen: Arrays, batch: Arrays, mesh: Mesh) -> jax.stages.Compiled:
    """Compile the step, and log how long it took and how much memory it needs."""
    log("compiling the step …")
    start = time.monotonic()
    compiled = compile_step(step, state, frozen, batch, mesh)
    seconds, memory = time.monotonic() - start, compiled.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes / 2**30, memory.temp_size_in_bytes / 2**30
    log(f"compiled in {seconds:.0f} s; per device {arguments:.2f} GiB of state, {temporaries:.2f} GiB of temporaries")
    return compiled


def run_steps(
    run: RunFolder,
    step: Callable,
    state: TrainState,
    frozen: Arrays,
    batches: Iterator[Batch],
    logger: MetricLogger,
    evaluation: Evaluation,
    guard: PreemptionGuard,
) -> int:
    """Step to the end or until a signal asks to stop; log, save and evaluate; return the exit code."""
    config, last, pending = run.config, run.config.optimizer.steps, None
    first_traced, last_traced = config.profile.steps or (0, 0)
    with contextlib.ExitStack() as tracing:
        for done in range((run.last or 0) + 1, last + 1):
            if done == first_traced:
                tracing.enter_context(jax.profiler.trace(run.path / "profile"))
            try:
                with logger.waiting():
                    batch = next(batches)
            except Exception:  # a damaged file, for example: keep the steps before it
                if jax.process_count() == 1 and done - 1 > (run.last or 0):  # other processes would not save theirs
                    if pending:
                        logger.read(*pending)
                    run.save(done - 1, state)
                raise
            state, metrics = step(state, frozen, batch, np.uint32(done - 1))
            if done == last_traced:
                jax.block_until_ready(metrics)
                tracing.close()
            # Read the metrics of the previous step, so that the devices need not wait for the host.
            stop = logger.read(*pending) if pending else 0
            if jax.process_count() == 1:  # other processes need not agree
                stop = guard.received
            pending, evaluates = (done, metrics), evaluation.due(done)
            saves = done % config.save_every == 0 or done == last or (evaluates and config.keep_best)
            if stop or saves or evaluates or done % config.log_every == 0:
                # Save nothing before it is known to be finite, and time whole steps.
                stop, pending = max(stop, logger.read(*pending)), None
                with logger.paused():
                    if stop or saves:
                        run.save(done, state)
                    if evaluates and not stop:
                        with failure_as_warning(f"evaluation after step {done}"):
                            evaluation.run(done, state.ema | frozen)
            if stop:
                logger.flush(done)
                log(f"stopped after step {done}, which is saved; rerun the same command to resume")
                return 128 + stop
    return 0
