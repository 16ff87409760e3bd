"""Where arrays live on many devices and hosts.

Training has one mesh, and one rule. The mesh has three axes. Rows of a batch are spread over `data` and `fsdp`;
parameters, their averages and the optimizer state over `fsdp` (fully sharded data parallelism: weights are gathered
where they are used); frames of a row over `frames`. XLA places everything else and inserts the communication.

Sampling has a `Team` per clip: devices that all have the parameters and share the clip's rows and frames.
"""

import contextlib
import functools
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from drender.errors import InputError, first_line

AXES = ("data", "fsdp", "frames")
ROWS = ("data", "fsdp")
# Arrays of fewer elements are not worth a message.
SMALL = 2**20


def join_hosts(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Makes one JAX program of the processes that SLURM, Open MPI or Kubernetes started, or of those that say so.

    Does nothing where there is no such environment. To be called before any device is touched.

    Raises:
      InputError: only some of the three arguments are given, or the others are not found.
    """
    given = (coordinator, num_processes, process_id)
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise InputError(f"--coordinator {coordinator}: expected HOST:PORT")
    if any(x is not None for x in given) and None in given:
        raise InputError("--coordinator, --num-processes and --process-id belong together; give all three, or none")
    try:
        jax.distributed.initialize(*given)
    except ValueError as error:
        if coordinator is not None:
            raise InputError(f"--coordinator {coordinator}: {error}") from error
    except RuntimeError as error:
        raise InputError(f"the other processes were not found ({first_line(error)})") from error


def check_process(process: tuple[int, int]) -> None:
    """InputError if there is no such process."""
    if not 0 <= process[0] < process[1]:
        raise InputError(f"process is {process[0]} {process[1]}; expected an index from 0 and how many there are")


@dataclass(frozen=True)
class MeshConfig:
    """How the devices are laid out: their number is data × fsdp × frames.

    Attributes:
      data: groups that hold a copy of everything.
      fsdp: devices that share parameters, averages and optimizer state; None: as many as are left.
      frames: devices that share the frames of a row.
    """

    data: int = 1
    fsdp: int | None = None
    frames: int = 1


def make_mesh(config: MeshConfig, batch: int, accumulate: int, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh of all devices.

    Raises:
      InputError: the axes do not multiply to the number of devices, or rows do not divide among them.
    """
    devices = jax.devices() if devices is None else devices
    fixed = config.data * config.frames
    fsdp = config.fsdp or max(1, len(devices) // fixed)
    shape = (config.data, fsdp, config.frames)
    if math.prod(shape) != len(devices):
        raise InputError(
            f"mesh: data {shape[0]} × fsdp {shape[1]} × frames {shape[2]} is {math.prod(shape)}, "
            f"but there are {len(devices)} devices"
        )
    if batch % (accumulate * config.data * fsdp):
        raise InputError(
            f"data.batch {batch} does not divide into optimizer.accumulate {accumulate} parts of rows for "
            f"data {config.data} × fsdp {fsdp} devices; make it a multiple of {accumulate * config.data * fsdp}"
        )
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def placement(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every array (or shape) of a tree: its largest divisible axis over `fsdp`, or nowhere."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(leaf.shape, mesh.shape["fsdp"])), tree)


def _spec(shape: tuple[int, ...], parts: int) -> P:
    divisible = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or math.prod(shape) <= SMALL or not divisible:
        return P()
    axis = max(divisible, key=lambda axis: shape[axis])
    return P(*[None] * axis, "fsdp")


def constrain_params(tree: Any, mesh: Mesh | None) -> Any:
    """Inside a jitted function: the same arrays, held to that placement."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, placement(tree, mesh))


def rows(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis over the devices, and whole along the others."""
    return NamedSharding(mesh, P(ROWS))


def local_shard(mesh: Mesh, batch: int) -> tuple[int, int, int]:
    """How many rows of a batch this process's devices hold, which of the equal shares that is, and of how many.

    Processes that share the frames of rows hold the same ones.
    """
    held = [index.indices(batch) for (index,) in rows(mesh).addressable_devices_indices_map((batch,)).values()]
    first, last = min(start for start, _, _ in held), max(stop for _, stop, _ in held)
    return last - first, first // (last - first), batch // (last - first)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def device_put_global(tree: Any, shardings: Any) -> Any:
    """Puts arrays that every process has in full where they belong; each process gives its devices their part."""
    put = lambda x, sharding: jax.make_array_from_callback(np.shape(x), sharding, lambda index: np.asarray(x)[index])
    return jax.tree.map(put, tree, shardings)


def per_process_value(number: int, mesh: Mesh) -> jax.Array:
    """A number of this process's own on each of its devices; together, float32 of all devices."""
    here = np.full(len(mesh.local_devices), number, np.float32)
    return jax.make_array_from_process_local_data(NamedSharding(mesh, P(AXES)), here)


def make_global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes one batch of the rows that every process has read."""
    sharding = rows(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, x) for name, x in batch.items()}


def sharing(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Inside a jitted function: where `share_rows` knows the mesh; without one nothing is shared."""
    if mesh is None or mesh.size == 1:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def share_rows(x: jax.Array) -> jax.Array:
    """An array with its first axis over as many devices of the mesh at hand as divide it.

    XLA places what is computed by itself; but a fused kernel wants all that it takes to be placed alike, whole along
    every other axis. (So does attention over time, where frames are shared: its rows are positions, which are traded
    for frames, and back.)
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(tuple(_dividing(mesh, list(mesh.shape), x.shape[0]))))


def _dividing(mesh: Mesh | AbstractMesh, names: list[str], number: int) -> list[str]:
    """Takes from the names of axes those over which so many things can be spread evenly."""
    taken = []
    for name in list(names):
        if number % mesh.shape[name] == 0:
            taken.append(name)
            names.remove(name)
            number //= mesh.shape[name]
    return taken


# --- sampling --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceGroup:
    """Devices that share what is sampled, all with all parameters; one works alone, without any mesh."""

    devices: tuple[jax.Device, ...] = ()

    def __len__(self) -> int:
        return max(1, len(self.devices))

    @functools.cached_property
    def _mesh(self) -> Mesh:
        """An axis for every prime factor of the number of devices, so that each can go to rows or to frames."""
        primes = prime_factors(len(self))
        names = tuple(f"devices {i}" for i in range(len(primes)))
        return Mesh(np.array(self.devices).reshape(primes), names, axis_types=(AxisType.Auto,) * len(primes))

    @property
    def everywhere(self) -> NamedSharding | None:
        """Of arrays that all devices have whole."""
        return replicated(self._mesh) if len(self) > 1 else None

    def split(self, rows: int, frames: int) -> NamedSharding | None:
        """Of rows of frames: rows over as many devices as divide them, for they do not depend on each other, frames
        over the others. Devices that divide neither do what others do.
        """
        if len(self) == 1:
            return None
        names = list(self._mesh.shape)
        over_rows, over_frames = (tuple(_dividing(self._mesh, names, number)) for number in (rows, frames))
        return NamedSharding(self._mesh, P(over_rows, over_frames))


SINGLE_DEVICE = DeviceGroup()


def prime_factors(number: int) -> list[int]:
    """Rising, as often as each divides; none of 1."""
    for prime in range(2, number + 1):
        if number % prime == 0:
            return [prime, *prime_factors(number // prime)]
    return []


def constrain(tree: Any, sharding: NamedSharding | None) -> Any:
    """Arrays where a team has them, in a jitted function too; those of a device alone are there."""
    return tree if sharding is None else jax.lax.with_sharding_constraint(tree, sharding)


def compiler_options(platform: str) -> dict[str, str]:
    """What a compilation for "cpu", "cuda" and so on is told.

    XLA orders the work for a CPU such that much of it could go on at once, and computes early what depends on weights
    alone, as filtered kernels do. Where every product takes all cores that gains nothing: a full-size forward step held
    1 GiB to work in instead of 0.1, and took longer.
    """
    option = ("xla_cpu_scheduler_type", "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED")
    return dict([option]) if platform == "cpu" and _knows(*option) else {}


@functools.cache
def _knows(option: str, value: str) -> bool:
    """XLA's options come and go with its versions."""
    try:
        jax.jit(lambda x: x, compiler_options={option: value}).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def cache_compilations() -> None:
    """Keeps compiled stages on disk between runs, unless the program or JAX_COMPILATION_CACHE_DIR says otherwise."""
    if jax.config.jax_compilation_cache_dir is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "drender" / "xla"))


def on_cpu() -> contextlib.AbstractContextManager:
    """For the small work in JAX beside the training: the accelerators are busy."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS names accelerators only
        return contextlib.nullcontext()
