"""A step's gradient as a jaxpr, before anything is compiled: its arithmetic, and the parameters that it reaches."""

import dataclasses
import functools
from collections.abc import Iterable

import jax
from jax.extend import core

from drender.training.config import TrainConfig
from drender.training.losses import LossSetup
from drender.training.step import Arrays, gradient


def trace_gradient(
    setup: LossSetup, config: TrainConfig, params: Arrays, frozen: Arrays, batch: Arrays, remat: bool = False
) -> core.Jaxpr:
    """Return the jaxpr of a step's gradient over all processes, without microbatches."""
    setup = dataclasses.replace(setup, remat=remat, mesh=None)
    rows = {name: x for name, x in batch.items() if name != "stop"}
    abstract = lambda arrays: {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()}
    arguments = *map(abstract, (params, frozen, rows)), jax.eval_shape(jax.random.key, 0)
    return jax.make_jaxpr(functools.partial(gradient, setup, config))(*arguments).jaxpr


def unreached(jaxpr: core.Jaxpr, parameters: Iterable[str]) -> set[str]:
    """Return the trained parameters whose gradient, by `trace_gradient`, is zero whatever the rows are."""
    computed = set(jaxpr.invars)
    for eqn in jaxpr.eqns:
        if not computed.isdisjoint(x for x in eqn.invars if isinstance(x, core.Var)):
            computed.update(eqn.outvars)
    gradients = zip(sorted(parameters), jaxpr.outvars, strict=False)  # metrics follow
    return {name for name, x in gradients if isinstance(x, core.Literal) or x not in computed}
