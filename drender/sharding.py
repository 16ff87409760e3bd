"""Where arrays live on several devices and hosts, and how XLA compiles for them.

Training has one mesh with three axes. The rows of a batch are sharded over `data` and `fsdp`. Parameters, their EMA and
the optimizer state are sharded over `fsdp` (fully sharded data parallelism: weights are all-gathered where they are
used). The frames of a row are sharded over `frames`. XLA places everything else and inserts the communication.

Sampling has a `DeviceGroup` per clip: devices that each hold all parameters and share the clip's rows and frames.
"""

import contextlib
import functools
import math
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from drender import files
from drender.errors import InputError, first_line
from drender.fields import bounded

AXES = ("data", "fsdp", "frames")
ROWS = ("data", "fsdp")
# Replicate arrays of at most this many elements: sharding them costs more communication than it saves memory.
MAX_REPLICATED_SIZE = 2**20


# --- processes -------------------------------------------------------------------------------------------------------


def join_hosts(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Join the processes of SLURM, Open MPI, Kubernetes or the given coordinator into one JAX program.

    Do nothing outside such an environment. Call this before any device is touched.

    Raises:
      InputError: only some of the three arguments are given, or the other processes are not found.
    """
    arguments = (coordinator, num_processes, process_id)
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise InputError(f"--coordinator: expected HOST:PORT, got {coordinator}")
    if any(x is not None for x in arguments) and None in arguments:
        raise InputError("--coordinator, --num-processes and --process-id belong together; give all three or none")
    try:
        jax.distributed.initialize(*arguments)
    except ValueError as error:  # no such environment
        if coordinator is not None:
            raise InputError(f"--coordinator {coordinator}: {error}") from error
    except RuntimeError as error:
        raise InputError(f"the other processes were not found ({first_line(error)})") from error


def check_process(process: tuple[int, int]) -> None:
    """Raise InputError unless `process` is (index, count) with 0 <= index < count."""
    index, count = process
    if not 0 <= index < count:
        raise InputError(f"process: expected an index from 0 and a larger count, got {index} {count}")


# --- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeshConfig:
    """Layout of the devices: their number is data × fsdp × frames."""

    data: int = bounded(1, at_least=1)  # number of replicas of all parameters
    fsdp: int | None = bounded(None, at_least=1)  # devices that share parameters and optimizer; None: all that are left
    frames: int = bounded(1, at_least=1)  # devices that share the frames of a row


def make_mesh(config: MeshConfig, batch: int, grad_accum_steps: int, devices: list[jax.Device] | None = None) -> Mesh:
    """Return the training mesh of all devices; raise InputError unless it and the rows of a microbatch fit them."""
    devices = jax.devices() if devices is None else devices
    fsdp = config.fsdp or max(1, len(devices) // (config.data * config.frames))
    shape = (config.data, fsdp, config.frames)
    if (size := math.prod(shape)) != len(devices):
        axes = " × ".join(f"{name} {length}" for name, length in zip(AXES, shape, strict=True))
        raise InputError(f"mesh: {axes} is {size}, but there are {len(devices)} devices")
    divisor = grad_accum_steps * config.data * fsdp
    if batch % divisor:
        steps, parts = f"optimizer.grad_accum_steps {grad_accum_steps}", f"data {config.data} × fsdp {fsdp} devices"
        problem = f"data.batch {batch} does not divide into {steps} microbatches on {parts}"
        raise InputError(f"{problem}; make it a multiple of {divisor}")
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def param_sharding(tree: Any, mesh: Mesh) -> Any:
    """Return a sharding per array (or shape): large arrays have their largest divisible axis on `fsdp`."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _param_spec(leaf.shape, mesh.shape["fsdp"])), tree)


def _param_spec(shape: tuple[int, ...], fsdp: int) -> P:
    divisible = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if fsdp == 1 or math.prod(shape) <= MAX_REPLICATED_SIZE or not divisible:
        return P()
    return P(*[None] * max(divisible, key=lambda axis: shape[axis]), "fsdp")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: rows over `data` and `fsdp`, every other axis whole."""
    return NamedSharding(mesh, P(ROWS))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def constrain(tree: Any, sharding: Any) -> Any:
    """Hold arrays to a sharding (or a tree of them), inside a jitted function or outside; None: leave them alone."""
    return tree if sharding is None else jax.lax.with_sharding_constraint(tree, sharding)


def constrain_params(tree: Any, mesh: Mesh | None) -> Any:
    """Hold parameters to their `param_sharding`; without a mesh, leave them alone."""
    return constrain(tree, mesh and param_sharding(tree, mesh))


def local_shard(mesh: Mesh, batch: int) -> tuple[int, int, int]:
    """Return (rows per process, index of this process's shard, number of shards) of a batch.

    Processes that share the frames of rows hold the same shard.
    """
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch,))
    bounds = [rows.indices(batch) for (rows,) in indices.values()]
    start, stop = min(start for start, _, _ in bounds), max(stop for _, stop, _ in bounds)
    return stop - start, start // (stop - start), batch // (stop - start)


def device_put_global(tree: Any, shardings: Any) -> Any:
    """Shard arrays that every process holds in full."""
    put = lambda x, sharding: jax.make_array_from_callback(np.shape(x), sharding, lambda index: np.asarray(x)[index])
    return jax.tree.map(put, tree, shardings)


def make_global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Assemble one global batch from the rows that each process has read."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, x) for name, x in batch.items()}


def per_process_value(value: int, mesh: Mesh) -> jax.Array:
    """Return a float32 vector with one element per device: the value of the process that owns the device."""
    local = np.full(len(mesh.local_devices), value, np.float32)
    return jax.make_array_from_process_local_data(NamedSharding(mesh, P(AXES)), local)


# --- inside the networks ---------------------------------------------------------------------------------------------


def use_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Let `share_rows` see the mesh while a function is traced; without a mesh it does nothing."""
    if mesh is None or mesh.size == 1:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def share_rows(x: jax.Array) -> jax.Array:
    """Shard the first axis over all mesh axes that divide it, and keep the other axes whole.

    A fused attention kernel needs its operands placed alike; XLA's own choice may differ between them. Attention over
    time has positions as rows, so frames that are sharded are exchanged for positions here, and back afterwards.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(_dividing_axes(mesh.shape, x.shape[0])))


def _dividing_axes(axes: Mapping[str, int], length: int) -> tuple[str, ...]:
    """Return the mesh axes, in order, over which an array axis of this length can be sharded evenly."""
    names = []
    for name, size in axes.items():
        if length % size == 0:
            names.append(name)
            length //= size
    return tuple(names)


# --- sampling --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceGroup:
    """Devices that sample a clip together, each with all parameters; a single device needs no mesh."""

    devices: tuple[jax.Device, ...] = ()

    def __len__(self) -> int:
        return max(1, len(self.devices))

    @functools.cached_property
    def _mesh(self) -> Mesh:
        """Two halves of the devices, where possible: guided sampling doubles the rows."""
        grid = np.array(self.devices).reshape(math.gcd(2, len(self)), -1)
        return Mesh(grid, ("batch", "frames"), axis_types=(AxisType.Auto,) * 2)

    @property
    def replicated(self) -> NamedSharding | None:
        """The sharding of arrays that every device holds whole; None on a single device."""
        return replicated(self._mesh) if len(self) > 1 else None

    def split(self, rows: int, frames: int) -> NamedSharding | None:
        """Return the sharding of an array [rows, frames, ...]; None on a single device.

        Rows are independent, so a mesh axis that divides them goes to rows, else to frames if it divides these.
        Devices along an axis that divides neither duplicate work.
        """
        if len(self) == 1:
            return None
        over_rows = _dividing_axes(self._mesh.shape, rows)
        rest = {name: size for name, size in reversed(self._mesh.shape.items()) if name not in over_rows}
        return NamedSharding(self._mesh, P(over_rows, _dividing_axes(rest, frames)))


SINGLE_DEVICE = DeviceGroup()


# --- compilation -----------------------------------------------------------------------------------------------------


def compiler_options(platform: str) -> dict[str, str]:
    """Return XLA's options for "cpu", "cuda" and so on.

    XLA schedules CPU work for concurrency, and computes early whatever depends on weights alone, such as filtered
    kernels. Each product occupies all cores, so this gains no time and costs memory: 1 GiB instead of 0.1 GiB of
    temporaries in a full-size forward step.
    """
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"} if platform == "cpu" else {}


def cache_compilations() -> None:
    """Cache compiled programs in `xla` of `files.cache_dir()`, unless JAX has a cache; remove damaged entries.

    Without a home directory, warn and cache nothing.
    """
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # JAX's minimum of a second leaves out half of what a small model compiles. Loading takes a tenth as long.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if jax.config.jax_compilation_cache_dir is not None or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = files.cache_dir() / "xla"
    except InputError:
        remedy = "set HOME or JAX_COMPILATION_CACHE_DIR"
        warnings.warn(f"no home directory, so compiled programs are not cached; {remedy}", stacklevel=2)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    show = warnings.showwarning

    def show_and_repair(message: Warning | str, *args: Any) -> None:
        """Remove a damaged entry, as of a process that was killed: JAX warns of it, but never replaces it."""
        if match := re.match(r"Error reading persistent compilation cache entry for '([\w.-]+)'", str(message)):
            for entry in folder.glob(f"{match[1]}-*"):
                entry.unlink(missing_ok=True)
        show(message, *args)

    warnings.showwarning = show_and_repair


def on_cpu() -> contextlib.AbstractContextManager:
    """Run small JAX work on the CPU, because the accelerators are busy with training."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS names accelerators only
        return contextlib.nullcontext()
