"""Measure the memory, arithmetic and speed of a training step.

    python benchmarks/train_cost.py memory [--on cpu] [--vae VAE.yaml] configs/inverse.yaml [key=value …]
    python benchmarks/train_cost.py latents --clips FOLDER --vae VAE.yaml configs/small/inverse.yaml [key=value …]

`memory` compiles the step of a configuration ahead of time, from shapes, and prints what each device holds and
computes. The devices are H100s that need not be present, or the CPU's simulated devices. `latents` encodes a folder of
clips, and times the same step fed from pixels and from cached latents, alternating in one process.

H100s need the package jax-cuda12-plugin with its CUDA libraries, JAX_PLATFORMS=cpu, and no GPU. Simulated devices need
JAX_NUM_CPU_DEVICES=8; XLA_FLAGS=--xla_backend_optimization_level=0 saves minutes.
"""

import dataclasses
import math
import statistics
import tempfile
import time

import jax
import numpy as np
from jax.experimental import topologies
from jax.extend import core

from drender import cli, sharding
from drender.checkpoints import orbax
from drender.config import RendererConfig
from drender.data.config import Source
from drender.data.encode import EncodeOptions, encode_clips
from drender.data.loader import TrainingData, environment_labels
from drender.models import attention
from drender.models.params import unflatten
from drender.training import config as training_config
from drender.training import flops, loop
from drender.training.config import TrainConfig
from drender.training.losses import OBJECTIVES, LossSetup
from drender.training.step import abstract_state, compile_step, init_state, make_optimizer, make_step
from drender.training.trace import trace_gradient
from drender.training.weights import Weights, resolve_weights

# Target description for compiling without the GPU: an H100 SXM of 80 GB, of which 79.1 GiB are usable.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  l2_cache_size: 52428800 memory_bandwidth: 3352320000000 device_memory_size: 84942979072
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
GIB = 2**30


# --- memory and arithmetic, compiled ahead ---------------------------------------------------------------------------


def memory(config: TrainConfig, kind: str, pixels: bool, compiles: bool) -> None:
    """Print what a step of the configuration needs per device."""
    config, model, trained, frozen, batch = abstract_inputs(config, kind, pixels)
    count = model.mesh.size
    print(f"{config.objective}, {count} × {kind}: data {config.mesh.data} × fsdp {config.mesh.fsdp or 1} × frames "
          f"{config.mesh.frames}; batch {config.data.batch} × {config.data.frames} frames {config.data.size}, "
          f"{'pixels' if pixels else 'cached latents'}, {config.dtype}, remat {config.remat}")  # fmt: skip

    def size(weights: dict) -> float:
        return sum(x.size for x in weights.values()) / 1e9

    print(f"  trainable {size(trained):.4f} · 10⁹ parameters, frozen {size(frozen):.4f} · 10⁹")

    limits = attention.MAX_LOGITS, attention.MAX_LOGITS_CPU
    limit_logits(2**62)  # no chunks, because chunks recompute their logits in the backward pass
    flops_once, flops_remat = (
        arithmetic(model, config, trained, frozen, batch, remat) / count / 1e12 for remat in (False, True)
    )
    print(f"  per device {flops_once:.1f} TFLOP" + (f", with recomputation {flops_remat:.1f}" if config.remat else ""))
    limit_logits(0)  # chunk everything, so that attention keeps what a fused kernel keeps
    print(f"  per device residuals {residual_bytes(model, config, trained, frozen, batch) / GIB:.2f} GiB")
    attention.MAX_LOGITS, attention.MAX_LOGITS_CPU = limits
    if not compiles:
        return

    state = abstract_state(trained, make_optimizer(config.optimizer), model.mesh)
    held = {"parameters": state.params, "EMA": state.ema, "optimizer": state.optimizer}
    held["frozen"] = place(frozen, model.mesh)
    print("  per device " + ", ".join(f"{name} {held_bytes(tree) / GIB:.2f}" for name, tree in held.items()) + " GiB")
    began = time.monotonic()
    compiled = compile_abstract(config, model, trained, frozen, batch)
    plan = compiled.memory_analysis()
    arguments, temporary = plan.argument_size_in_bytes, plan.temp_size_in_bytes
    total = arguments + temporary + plan.output_size_in_bytes - plan.alias_size_in_bytes
    print(f"  per device compiled: state and batch {arguments / GIB:.2f}, working memory {temporary / GIB:.2f}, total "
          f"{total / GIB:.2f} GiB; compiled in {time.monotonic() - began:.0f} s", flush=True)  # fmt: skip


def abstract_inputs(config: TrainConfig, kind: str, pixels: bool) -> tuple[TrainConfig, LossSetup, dict, dict, dict]:
    """Return a run without weights, its context on devices of a kind, and the shapes of its weights and batch."""
    # Shapes need no weights. Without init_from the networks have the sizes of Stable Video Diffusion.
    config = dataclasses.replace(config, init_from=None)
    count = config.mesh.data * (config.mesh.fsdp or 1) * config.mesh.frames
    devices = find_devices(kind, count)
    mesh = sharding.make_mesh(config.mesh, config.data.batch, config.optimizer.grad_accum_steps, devices)
    weights = resolve_weights(config)
    model = loop.make_setup(config, weights, not pixels, mesh)
    return config, model, *abstract_weights(weights, pixels), abstract_batch(config, weights.model, pixels)


def compile_ahead(config: TrainConfig, kind: str) -> jax.stages.Compiled:
    """Compile the step of a run on cached latents for devices that need not be present."""
    return compile_abstract(*abstract_inputs(config, kind, False))


def compile_abstract(config: TrainConfig, model: LossSetup, trained, frozen, batch) -> jax.stages.Compiled:
    """Compile the step for shapes."""
    optimizer = make_optimizer(config.optimizer)
    state = abstract_state(trained, optimizer, model.mesh)
    return compile_step(make_step(model, config, optimizer), state, place(frozen, model.mesh), batch, model.mesh)


def place(tree: dict, mesh: jax.sharding.Mesh) -> dict:
    """Return the shapes of parameters with their shardings."""
    of = lambda x, placement: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement)
    return jax.tree.map(of, tree, sharding.param_sharding(tree, mesh))


def find_devices(kind: str, count: int) -> list[jax.Device]:
    """Return devices of a kind: "h100" (not present), "cpu", or "here" for the default backend's."""
    if kind != "h100":
        return jax.devices(None if kind == "here" else kind)[:count]
    # The check for fused attention queries the GPUs.
    attention.has_fused_attention = lambda: True
    return topologies.get_topology_desc(platform="cuda", topology=f"1x1x{count}", target_config=H100).devices


def abstract_weights(weights: Weights, needs_vae: bool) -> tuple[dict, dict]:
    """Return the shapes of what `Weights.split` returns: trained and frozen parameters."""
    names = [name for name in weights.components if needs_vae or name != "vae"]
    leaves = {key: x for name in names for key, x in weights.shapes(name).items()}
    of = lambda x, dtype: jax.ShapeDtypeStruct(x.shape, dtype)
    trained = {key: of(x, "float32") for key, x in leaves.items() if weights.trains(key)}
    return trained, {key: of(x, weights.config.dtype) for key, x in leaves.items() if key not in trained}


def abstract_batch(config: TrainConfig, renderer: RendererConfig, pixels: bool) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a batch of the loader."""
    b, f = config.data.batch, config.data.frames
    scale, channels = (1, 3) if pixels else (renderer.vae.downscale, renderer.vae.latent_channels)

    def images(size: tuple[int, int], *lead: int) -> jax.ShapeDtypeStruct:
        shape = (b, *lead, f, size[0] // scale, size[1] // scale, channels)
        return jax.ShapeDtypeStruct(shape, "float32" if pixels else "float16")

    def scalars(dtype: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((b,), dtype)

    rows = {"rgb": images(config.data.size)}
    rows |= {"image_only": scalars("bool"), "real": scalars("bool"), "stop": scalars("float32")}
    if config.objective == "inverse":
        return rows | {"buffer": images(config.data.size), "domain": scalars("int32")}
    light = images(renderer.environment_size, len(environment_labels(renderer)))
    return rows | {"conditions": images(config.data.size, len(renderer.conditions)), "environment": light}


def arithmetic(model: LossSetup, config: TrainConfig, trained, frozen, batch, remat: bool) -> float:
    """Return the FLOPs of a step over all devices, recomputation included."""
    return flops.total(trace_gradient(model, config, trained, frozen, batch, remat))


def residual_bytes(model: LossSetup, config: TrainConfig, trained, frozen, batch) -> float:
    """Return the bytes per device that the forward pass keeps for the backward pass, without weights and batch.

    They are counted on the jaxpr, independent of the backend. The mesh's `frames` axis is assumed to divide all.
    """
    parts = config.optimizer.grad_accum_steps * model.mesh.shape["data"] * model.mesh.shape["fsdp"]
    rows = {name: jax.ShapeDtypeStruct((len(x) // parts, *x.shape[1:]), x.dtype) for name, x in batch.items()}
    computed = {name: jax.ShapeDtypeStruct(x.shape, config.dtype) for name, x in trained.items()}
    loss, alone = OBJECTIVES[config.objective].loss, dataclasses.replace(model, mesh=None)

    def residuals(params, frozen, rows):
        value = lambda params: loss(alone, unflatten(params | frozen), rows, jax.random.key(0))
        return jax.tree.leaves(jax.vjp(value, params, has_aux=True)[1])

    jaxpr = jax.make_jaxpr(residuals)(computed, frozen, rows).jaxpr
    kept = {x for x in jaxpr.outvars if not isinstance(x, core.Literal)} - set(jaxpr.invars)
    return sum(x.aval.size * x.aval.dtype.itemsize for x in kept) / model.mesh.shape["frames"]


def limit_logits(max_logits: int) -> None:
    attention.MAX_LOGITS = attention.MAX_LOGITS_CPU = max_logits


def held_bytes(tree) -> int:
    """Return the bytes per device of a tree of placed shapes."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


# --- pixels or cached latents ----------------------------------------------------------------------------------------


class Feed:
    """A training step fed from one source."""

    def __init__(self, name: str, config: TrainConfig, source: Source):
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=(source,)))
        self.name, self.rows = name, config.data.batch
        mesh = sharding.make_mesh(config.mesh, config.data.batch, config.optimizer.grad_accum_steps)
        weights = resolve_weights(config)
        data = TrainingData(config.data, config.objective, weights.model, self.rows, config.seed)
        model = loop.make_setup(config, weights, data.latent, mesh)
        optimizer = make_optimizer(config.optimizer)
        trained, frozen = weights.split(not data.latent, resumed=False)
        self.state = init_state(trained, optimizer, mesh)
        self.frozen = sharding.device_put_global(frozen, sharding.param_sharding(frozen, mesh))
        batch = data.abstract_batch() | {"stop": jax.ShapeDtypeStruct((self.rows,), "float32")}
        self.flops = flops.total(trace_gradient(model, config, trained, self.frozen, batch))
        step = make_step(model, config, optimizer)
        self.step, self.mesh = compile_step(step, self.state, self.frozen, batch, mesh), mesh
        self.batches, self.done = data.batches(), 0
        self.batch = self.read()

    def read(self) -> dict[str, jax.Array]:
        return sharding.make_global_batch(next(self.batches) | {"stop": np.zeros(self.rows, np.float32)}, self.mesh)

    def run(self, steps: int, reads: bool) -> float:
        """Return the seconds per step. Without `reads` every step gets the same batch."""
        began = time.perf_counter()
        for _ in range(steps):
            batch = self.read() if reads else self.batch
            self.state, metrics = self.step(self.state, self.frozen, batch, np.uint32(self.done))
            self.done += 1
        jax.block_until_ready(metrics)
        return (time.perf_counter() - began) / steps


def latents(config: TrainConfig, clips: str, steps: int, rounds: int) -> None:
    """Print the samples per second of a step fed from pixels and from cached latents, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        config = with_random_start(config, f"{folder}/start")
        renderer = resolve_weights(config).model
        labels = ("rgb", *(renderer.conditions if config.objective == "forward" else config.data.passes))
        size = {"size": config.data.size, "environment_size": renderer.environment_size, "frames": config.data.frames}
        paths = {"source": clips, "destination": f"{folder}/set", "checkpoint": f"{folder}/start"}
        options = EncodeOptions(**paths, labels=labels, environment=config.objective == "forward", **size)
        encode_clips(options, jax.local_devices())
        feeds = [Feed("pixels", config, Source(clips)), Feed("latents", config, Source(f"{folder}/set"))]
        print(f"{config.objective}, batch {config.data.batch} × {config.data.frames} frames {config.data.size}, "
              f"{config.dtype}, {jax.device_count()} × {jax.devices()[0].device_kind}, median of {rounds} turns of "
              f"{steps} steps")  # fmt: skip
        gflop = [feed.flops / 1e9 for feed in feeds]
        print(
            f"counted: {gflop[0]:.1f} GFLOP from pixels, {gflop[1]:.1f} from latents: ratio {gflop[0] / gflop[1]:.2f}"
        )
        for name, reads in (("steps alone", False), ("with reading", True)):
            seconds = {feed.name: [] for feed in feeds}
            for _ in range(rounds + 1):  # the first turn warms up
                for feed in feeds:
                    seconds[feed.name].append(feed.run(steps, reads))
            slow, fast = (np.array(seconds[feed.name][1:]) for feed in feeds)
            speeds = [config.data.batch / statistics.median(times) for times in (slow, fast)]
            print(
                f"{name}: {speeds[0]:.2f} samples/s from pixels, {speeds[1]:.2f} from latents: ratio "
                f"{statistics.median(slow / fast):.2f} ({min(slow / fast):.2f} to {max(slow / fast):.2f})",
                flush=True,
            )


def with_random_start(config: TrainConfig, path: str) -> TrainConfig:
    """Return the run with random frozen networks saved at `path`: the VAE and the encoder."""
    weights = resolve_weights(dataclasses.replace(config, init_from=None))
    frozen = {name: weights.component(name) for name in OBJECTIVES[config.objective].frozen}
    orbax.save(path, weights.model, frozen)
    return dataclasses.replace(config, init_from=dict.fromkeys(frozen, path))


# --- the command line ------------------------------------------------------------------------------------------------


def main() -> None:
    args = parser().parse_args()
    config = training_config.read_config(args.config, args.overrides)
    if args.vae:
        model = config.model | {"vae": training_config.read_config(args.vae).model["vae"] | config.model.get("vae", {})}
        config = dataclasses.replace(config, model=model)
    size = config.data.size or tuple(config.model.get("size", RendererConfig("svd").size))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, size=size))
    if args.command == "memory":
        memory(config, args.on, args.pixels, args.compile)
    else:
        latents(config, args.clips, args.steps, args.rounds)


def parser() -> cli.Parser:
    top = cli.Parser(prog="benchmarks/train_cost.py", description="Memory, arithmetic and speed of a training step.")
    add = top.add_commands()
    ahead = add("memory", help="memory and arithmetic per device, compiled ahead (inverse and forward)")
    ahead.add_argument("--on", choices=("h100", "cpu"), default="h100", help="kind of device")
    ahead.add_argument(
        "--pixels", action="store_true", help="encode pixels in the step instead of reading cached latents"
    )
    ahead.add_argument("--no-compile", dest="compile", action="store_false", help="count only")
    timed = add("latents", help="samples per second from pixels and from cached latents")
    timed.add_argument("--clips", required=True, metavar="FOLDER", help="folder of clips in the training layout")
    timed.add_argument("--steps", type=int, default=10, metavar="N", help="steps per turn")
    timed.add_argument("--rounds", type=int, default=7, metavar="N", help="number of turns")
    for command in (ahead, timed):
        command.add_argument("config", metavar="YAML", help="configuration of the run")
        sizes = "run whose auto-encoder has the sizes that init_from would give (those of Stable Video Diffusion)"
        command.add_argument("--vae", metavar="YAML", help=sizes)
        command.add_argument("overrides", nargs="*", metavar="key=value", help="overrides")
    return top


if __name__ == "__main__":
    cli.run(main)
