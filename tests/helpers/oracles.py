"""Tiny modules of torch, and ours with the same weights.

Tests that use these carry the marker `oracle`; conftest.py skips them where `torch` and `diffusers` are None.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from drender.checkpoints.convert import from_torch, torch_name
from drender.models.params import abstract_module, flatten

try:
    import diffusers
    import diffusers.models.unets.unet_2d_blocks
    import torch
    import torch.utils.flop_counter
except ModuleNotFoundError:
    diffusers = torch = None


def network(cls, config, params, method="__call__"):
    """One method of a network as a compiled function of arrays."""
    graphdef = abstract_module(cls, config)[0]
    return functools.partial(jax.jit(lambda params, *a: getattr(nnx.merge(graphdef, params), method)(*a)), params)


def params_of(cls, config, module: torch.nn.Module) -> dict:
    """The module's weights as our parameters; every one of them is used."""
    return _pulled(cls, config, {name: tensor.numpy() for name, tensor in module.state_dict().items()})


def gradients_of(cls, config, module: torch.nn.Module) -> dict:
    """The gradients of the module's weights, laid out as our parameters."""
    return _pulled(cls, config, {name: parameter.grad.numpy() for name, parameter in module.named_parameters()})


def _pulled(cls, config, tensors: dict) -> dict:
    tree = abstract_module(cls, config)[1]
    leaves = {name: jnp.asarray(from_torch(name, tensors.pop(torch_name(name)))) for name in flatten(tree)}
    assert not tensors
    assert {name: leaf.shape for name, leaf in leaves.items()} == {n: leaf.shape for n, leaf in flatten(tree).items()}
    return jax.tree.unflatten(jax.tree.structure(tree), leaves.values())


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    """Moves mix factors and norms off their start, where they would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def channels_first(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, -3)))
