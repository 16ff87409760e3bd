"""One training step: gradient, AdamW and EMA, jitted over the mesh with the state donated."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from drender import sharding
from drender.models.params import unflatten
from drender.training.config import OptimizerConfig, TrainConfig
from drender.training.losses import OBJECTIVES, Batch, LossSetup
from drender.training.run_dir import TrainState

# By dotted name. Shapes suffice where nothing is computed.
Arrays = Mapping[str, Array | np.ndarray | jax.ShapeDtypeStruct]
Metrics = Mapping[str, Array]


def learning_rate(config: OptimizerConfig) -> optax.Schedule:
    """Return the schedule: linear warm-up, then constant, or linear or cosine decay to 0 at the last step."""
    decay_steps = max(1, config.steps - config.warmup)
    schedules = {
        "constant": optax.constant_schedule(config.learning_rate),
        "linear": optax.linear_schedule(config.learning_rate, 0, decay_steps),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, decay_steps),
    }
    first = config.learning_rate / max(1, config.warmup)
    warmup = optax.linear_schedule(first, config.learning_rate, config.warmup - 1)
    return optax.join_schedules([warmup, schedules[config.lr_schedule]], [config.warmup])


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Return AdamW on clipped gradients, with weight decay on kernels and LoRA factors only."""

    def is_kernel(params: Arrays) -> dict[str, bool]:
        return {name: name.endswith((".kernel", ".lora_A", ".lora_B")) for name in params}

    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(learning_rate(config), *config.betas, weight_decay=config.weight_decay, mask=is_kernel),
    )


def gradient(
    setup: LossSetup, config: TrainConfig, params: Arrays, frozen: Arrays, batch: Batch, key: Array
) -> tuple[Arrays, Metrics]:
    """Return the gradient of the loss by the trained parameters, and the loss's metrics."""

    def loss(params: Arrays) -> tuple[Array, Metrics]:
        # Constrain the rounded copy to the parameters' sharding, so that it, not float32, is all-gathered.
        rounded = {name: x.astype(jnp.dtype(config.dtype)) for name, x in params.items()}
        rounded = sharding.constrain_params(rounded, setup.mesh)
        with sharding.use_mesh(setup.mesh):
            return OBJECTIVES[config.objective].loss(setup, unflatten(rounded | dict(frozen)), batch, key)

    (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return sharding.constrain_params(gradients, setup.mesh), metrics


def make_step(setup: LossSetup, config: TrainConfig, optimizer: optax.GradientTransformation) -> Callable:
    """Return the training step (state, frozen, batch, step number from 0) -> (state, metrics), to be jitted.

    The batch holds rows, and under `stop` the signal that each device's process received, or 0: the metrics report the
    largest, so that all processes stop at the same step. Random numbers are a function of the seed, the step and the
    microbatch.
    """
    schedule, num_microbatches = learning_rate(config.optimizer), config.optimizer.grad_accum_steps
    row_gradient = functools.partial(gradient, setup, config)

    def mean_gradient(params: Arrays, frozen: Arrays, batch: Batch, key: Array) -> tuple[Arrays, Metrics]:
        """Average gradient and metrics over the microbatches."""
        if num_microbatches == 1:
            return row_gradient(params, frozen, batch, key)

        def add_microbatch(total, microbatch):
            rows, i = microbatch
            return jax.tree.map(jnp.add, total, row_gradient(params, frozen, rows, jax.random.fold_in(key, i))), None

        # Every device keeps its rows: microbatch i takes every num_microbatches-th row of each.
        rows = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, num_microbatches, *x.shape[1:]), 0, 1), batch)
        shapes = jax.eval_shape(row_gradient, params, frozen, jax.tree.map(lambda x: x[0], rows), key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(add_microbatch, zeros, (rows, jnp.arange(num_microbatches, dtype=jnp.uint32)))
        return jax.tree.map(lambda x: x / num_microbatches, total)

    def step(state: TrainState, frozen: Arrays, batch: Batch, number: Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        rows = {name: x for name, x in batch.items() if name != "stop"}
        gradients, metrics = mean_gradient(state.params, frozen, rows, key)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        # The EMA begins as a copy. The cap on its decay keeps its memory within the length of the run so far.
        decay = jnp.minimum(config.optimizer.ema_decay, (1 + number) / (10 + number))
        ema = jax.tree.map(lambda mean, new: decay * mean + (1 - decay) * new, state.ema, params)
        metrics |= {"gradient_norm": optax.tree.norm(gradients), "learning_rate": schedule(number)}
        return TrainState(params, ema, optimizer_state), metrics | {"stop": batch["stop"].max()}

    return step


# --- on the mesh -----------------------------------------------------------------------------------------------------


def init_state(params: Arrays, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Return the state before the first step, sharded: the EMA is a copy, the optimizer's moments are zero."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(params, optimizer, mesh))
    init = jax.jit(lambda x: TrainState(x, jax.tree.map(jnp.copy, x), optimizer.init(x)), out_shardings=shardings)
    return init(sharding.device_put_global(dict(params), shardings.params))


def abstract_state(params: Arrays, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Return the shapes and shardings of that state."""
    shapes = jax.eval_shape(lambda params: TrainState(params, params, optimizer.init(params)), params)
    return jax.tree.map(lambda x, place: x.update(sharding=place), shapes, sharding.param_sharding(shapes, mesh))


def compile_step(step: Callable, state: TrainState, frozen: Arrays, batch: Arrays, mesh: Mesh) -> jax.stages.Compiled:
    """Compile the step, which donates the state, for arrays or shapes; batch arrays without a sharding are rows."""
    platform = mesh.devices.flat[0].platform
    options = sharding.compiler_options(platform)
    if platform == "cpu":
        # XLA's CSE would otherwise undo rematerialization on CPU.
        options["xla_disable_hlo_passes"] = "cse_barrier_expander"

    def with_sharding(x: Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        placement = getattr(x, "sharding", None) or sharding.batch_sharding(mesh)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement)

    batch, number = jax.tree.map(with_sharding, dict(batch)), jax.ShapeDtypeStruct((), jnp.uint32)
    out_shardings = (jax.tree.map(lambda leaf: leaf.sharding, state), sharding.replicated(mesh))
    jitted = jax.jit(step, donate_argnums=0, out_shardings=out_shardings)
    return jitted.lower(state, frozen, batch, number).compile(options or None)
