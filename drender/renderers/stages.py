"""Compiled stages: the networks' methods that sampling calls, and a recorder of these calls that computes nothing."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from drender.config import RendererConfig
from drender.models.params import abstract_module
from drender.models.registry import NETWORKS
from drender.renderers import denoiser
from drender.sharding import DeviceGroup, compiler_options, constrain, use_mesh


@dataclass(frozen=True)
class Stage:
    """A method of one network, compiled once per shape.

    Attributes:
      name: a key of `STAGES`.
      network: the component whose parameters it takes.
      fn: jitted (params, *arrays, split=None) -> results; `split` shards rows and frames over a device group.
      sharded_input: the first array is sharded before the call, so that each device receives its part only.
    """

    name: str
    network: str
    fn: Callable
    sharded_input: bool = True


def compile_stages(config: RendererConfig, networks: Mapping[str, Any], group: DeviceGroup) -> dict[str, Stage]:
    """Return the stages of these networks by name; each compiles when it is first called."""
    stages = {}
    for name, (network, _) in STAGES.items():
        if network in networks:
            fn = _compiled(name, getattr(config, network), group)
            stages[name] = Stage(name, network, fn, sharded_input=network != "unet")
    return stages


@functools.lru_cache(maxsize=32)
def _compiled(stage: str, config: Any, group: DeviceGroup) -> Callable:
    """Return the jitted function of a stage; renderers with equal networks share its compiled programs."""
    network, function = STAGES[stage]
    fn = functools.partial(function, abstract_module(NETWORKS[network], config)[0])
    platform = group.devices[0].platform if group.devices else jax.default_backend()
    # Outputs are small: replicate them.
    options = compiler_options(platform) or None
    return jax.jit(fn, static_argnames="split", out_shardings=group.replicated, compiler_options=options)


def method(name: str, graphdef: nnx.GraphDef, params, rows, split=None) -> Any:
    """Return the results of one method of a network on rows [b, f, ...]."""
    with use_mesh(split and split.mesh):
        return getattr(nnx.merge(graphdef, params), name)(constrain(rows, split))


# Network of every stage, and its function, whose first argument is the network's graph.
STAGES = {
    "encode": ("vae", functools.partial(method, "encode")),
    "decode": ("vae", functools.partial(method, "decode")),
    "environment": ("env_encoder", functools.partial(method, "__call__")),
    "denoise": ("unet", denoiser.denoise),
}


# A program for CPUs takes some hundred mappings of memory, and Linux ends a process that asks for more than 65,530.
MAX_CPU_PROGRAMS = 16


def run_stage(stage: Stage, params: Mapping, *arrays: Any, split: jax.sharding.NamedSharding | None = None) -> Any:
    """Call a compiled stage. On CPUs, forget its programs first if there are too many."""
    first, *others = arrays
    if jax.default_backend() == "cpu" and stage.fn._cache_size() >= MAX_CPU_PROGRAMS:
        stage.fn.clear_cache()
    return stage.fn(params, constrain(first, split) if stage.sharded_input else first, *others, split=split)


# --- recording -------------------------------------------------------------------------------------------------------


@dataclass
class StageCall:
    """The calls of a stage with arrays of the same shapes.

    Attributes:
      name, fn: of the stage.
      arguments: shapes of all arguments, the network's parameters first.
      split: how a device group shards rows and frames.
      count: number of calls.
    """

    name: str
    fn: Callable
    arguments: tuple
    split: jax.sharding.NamedSharding | None = None
    count: int = 0

    @property
    def frames(self) -> int:
        """Number of frames, over all rows, of one call."""
        return math.prod(self.arguments[1].shape[:2])


class StageRecorder:
    """A substitute for `run_stage` that records shapes and returns zeros: nothing is computed or compiled."""

    def __init__(self):
        self._recorded: dict[tuple, tuple[StageCall, Any]] = {}  # with the shapes of the results

    @property
    def calls(self) -> list[StageCall]:
        """Return one entry per stage and shapes, in the order of first use."""
        return [call for call, _ in self._recorded.values()]

    def __call__(self, stage: Stage, params: Mapping, *arrays: Any, split=None) -> Any:
        shapes = jax.eval_shape(lambda *arguments: arguments, params, *arrays)
        key = stage.name, jax.tree.structure(shapes), tuple((x.shape, x.dtype) for x in jax.tree.leaves(shapes)), split
        if key not in self._recorded:
            call = StageCall(stage.name, stage.fn, shapes, split)
            self._recorded[key] = call, stage.fn.eval_shape(*shapes, split=split)
        call, results = self._recorded[key]
        call.count += 1
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), results)
