"""Compiled stages: the methods of the networks that sampling calls."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

from drender.config import RendererConfig
from drender.models.params import abstract_module
from drender.models.registry import NETWORKS
from drender.renderers.denoiser import predict_x0
from drender.sharding import DeviceGroup, compiler_options, constrain, use_mesh


@dataclass(frozen=True)
class Stage:
    """A method of one network, compiled once per shape."""

    name: str  # a key of `STAGES`
    network: str  # the component whose parameters it takes
    fn: Callable  # jitted (params, *arrays, split=None) -> results; `split` shards rows and frames over a device group


def make_stages(config: RendererConfig, networks: Mapping[str, Any], group: DeviceGroup) -> dict[str, Stage]:
    """Return the stages of these networks by name; each compiles when it is first called."""
    return {
        name: Stage(name, network, _jitted(name, getattr(config, network), group))
        for name, (network, _) in STAGES.items()
        if network in networks
    }


@functools.lru_cache(maxsize=32)
def _jitted(stage: str, config: Any, group: DeviceGroup) -> Callable:
    """Return the jitted function of a stage; renderers with equal networks share its compiled programs."""
    network, function = STAGES[stage]
    fn = functools.partial(function, abstract_module(NETWORKS[network], config)[0])
    platform = group.devices[0].platform if group.devices else jax.default_backend()
    options = compiler_options(platform) or None
    # Outputs are small: replicate them.
    return jax.jit(fn, static_argnames="split", out_shardings=group.replicated, compiler_options=options)


def call_method(name: str, graphdef: nnx.GraphDef, params, rows, split=None) -> Any:
    """Return the results of one method of a network on rows [b, f, ...]."""
    with use_mesh(split and split.mesh):
        return getattr(nnx.merge(graphdef, params), name)(constrain(rows, split))


# Network of every stage, and its function, whose first argument is the network's graph.
STAGES = {
    "encode": ("vae", functools.partial(call_method, "encode")),
    "decode": ("vae", functools.partial(call_method, "decode")),
    "environment": ("env_encoder", functools.partial(call_method, "__call__")),
    "denoise": ("unet", predict_x0),
}

# A program for CPUs takes some hundred mappings of memory, and Linux ends a process that asks for more than 65,530.
MAX_CPU_PROGRAMS = 16


def run_stage(stage: Stage, params: Mapping, *arrays: Any, split: jax.sharding.NamedSharding | None = None) -> Any:
    """Call a compiled stage. On CPUs, forget its programs first if there are too many."""
    if jax.default_backend() == "cpu" and stage.fn._cache_size() >= MAX_CPU_PROGRAMS:
        stage.fn.clear_cache()
    return stage.fn(params, *_placed(stage, arrays, split), split=split)


def compile_stage(stage: Stage, params: Mapping, *arrays: Any, split: jax.sharding.NamedSharding | None = None) -> Any:
    """Compile a stage for these arrays, for `run_stage` to use later, and return zeros in place of its results."""
    compiled = stage.fn.lower(params, *_placed(stage, arrays, split), split=split).compile()
    return jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), compiled.out_info)


def _placed(stage: Stage, arrays: tuple, split: jax.sharding.NamedSharding | None) -> tuple:
    """Send each device its part of the first array only. The UNet makes its own rows, see `predict_x0`."""
    return arrays if stage.network == "unet" else (constrain(arrays[0], split), *arrays[1:])
