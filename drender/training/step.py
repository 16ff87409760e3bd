"""TODO."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from drender import sharding
from drender.models.params import unflatten
from drender.sharding import compiler_options
from drender.training.config import OptimizerConfig, TrainConfig
from drender.training.losses import OBJECTIVES, Batch, LossContext
from drender.training.run_dir import TrainState

# By dotted name; shapes will do where nothing is computed.
Arrays = Mapping[str, Array | jax.ShapeDtypeStruct]


def learning_rate(config: OptimizerConfig) -> optax.Schedule:
    """Linear warm-up, then constant or down to 0 at the last step."""
    after = max(1, config.steps - config.warmup)
    decays = {
        "constant": optax.constant_schedule(config.learning_rate),
        "linear": optax.linear_schedule(config.learning_rate, 0, after),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, after),
    }
    rise = optax.linear_schedule(config.learning_rate / max(1, config.warmup), config.learning_rate, config.warmup - 1)
    return optax.join_schedules([rise, decays[config.decay]], [config.warmup])


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """AdamW on clipped gradients; only kernels decay."""
    kernels = lambda params: {name: name.endswith((".kernel", ".lora_A", ".lora_B")) for name in params}
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(learning_rate(config), *config.betas, weight_decay=config.weight_decay, mask=kernels),
    )


def make_step(model: LossContext, config: TrainConfig, optimizer: optax.GradientTransformation) -> Callable:
    """(state, frozen, batch, step) -> (state, metrics), to be jitted with the state donated.

    A batch is rows, and `stop`, of which the greatest is handed on. The gradient is the mean over `accumulate` parts of
    the rows. Randomness is a function of seed, step and part.
    """
    loss, parts, dtype = OBJECTIVES[config.objective].loss, config.optimizer.accumulate, jnp.dtype(config.dtype)

    def gradient(params: Arrays, frozen: Arrays, batch: Batch, key: Array):
        def value(params):
            # Kept where it is, so that what is gathered over the devices is the rounded copy.
            computed = sharding.constrain_params({name: x.astype(dtype) for name, x in params.items()}, model.mesh)
            with sharding.use_mesh(model.mesh):
                return loss(model, unflatten(computed | dict(frozen)), batch, key)

        (_, metrics), gradients = jax.value_and_grad(value, has_aux=True)(params)
        return sharding.constrain_params(gradients, model.mesh), metrics

    def step(state: TrainState, frozen: Arrays, batch: Batch, number: Array):
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        stop, batch = batch["stop"].max(), {name: x for name, x in batch.items() if name != "stop"}
        if parts == 1:
            gradients, metrics = gradient(state.params, frozen, batch, key)
        else:
            # Each device keeps its rows: a part takes every parts-th row of each.
            split = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), batch)
            one = lambda part: gradient(state.params, frozen, part[0], jax.random.fold_in(key, part[1]))
            add = lambda total, part: (jax.tree.map(jnp.add, total, one(part)), None)
            zeros = jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype),
                jax.eval_shape(one, (jax.tree.map(lambda x: x[0], split), jnp.uint32(0))),
            )
            total, _ = jax.lax.scan(add, zeros, (split, jnp.arange(parts, dtype=jnp.uint32)))
            gradients, metrics = jax.tree.map(lambda x: x / parts, total)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        # An average that begins as a copy and looks back no further than the run is long.
        decay = jnp.minimum(config.optimizer.ema, (1 + number) / (10 + number))
        ema = jax.tree.map(lambda mean, new: decay * mean + (1 - decay) * new, state.ema, params)
        metrics |= {"gradient_norm": optax.tree.norm(gradients), "learning_rate": rate(number)}
        return TrainState(params, ema, optimizer_state), metrics | {"stop": stop}

    rate = learning_rate(config.optimizer)
    return step


def first_state(params: Mapping[str, np.ndarray], optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state before the first step, on the mesh: the average is a copy, the optimizer has seen nothing."""
    placed = sharding.device_put_global(params, sharding.param_sharding(params, mesh))
    begin = lambda params: TrainState(params, jax.tree.map(jnp.copy, params), optimizer.init(params))
    return jax.jit(begin, out_shardings=sharding.param_sharding(jax.eval_shape(begin, placed), mesh))(placed)


def abstract_state(params: Arrays, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The shapes of that state, with where they go."""
    shapes = jax.eval_shape(lambda params: TrainState(params, params, optimizer.init(params)), params)
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.tree.map(place, shapes, sharding.param_sharding(shapes, mesh))


def compile_step(step: Callable, state: TrainState, frozen: Arrays, batch: Arrays, mesh: Mesh):
    """The step for this state and batch (arrays or shapes with shardings), on the mesh, its state donated.

    What has no sharding in the batch are rows.
    """
    platform = mesh.devices.flat[0].platform
    options = compiler_options(platform)
    if platform == "cpu":
        # XLA would merge what rematerialisation computes again with what it was to replace.
        options["xla_disable_hlo_passes"] = "cse_barrier_expander"
    place = lambda x: getattr(x, "sharding", None) or sharding.batch_sharding(mesh)
    placed = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)) for name, x in batch.items()}
    results = (jax.tree.map(lambda leaf: leaf.sharding, state), sharding.replicated(mesh))
    jitted = jax.jit(step, donate_argnums=0, out_shardings=results)
    return jitted.lower(state, frozen, placed, jax.ShapeDtypeStruct((), jnp.uint32)).compile(options or None)
