"""How much arithmetic a function is: the floating-point operations of its matrix products and convolutions.

They are counted on the function's jaxpr, so that nothing is computed and full-size networks need no memory. A product
and a sum are two operations. What is elementwise is left out, as it is in published counts.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def count(fn: Callable, *arguments: Any) -> float:
    """Floating-point operations of `fn(*arguments)`.

    Loops count as often as they run; one whose length is only known while it runs (`while_loop`) counts as one turn. Of
    the branches of a condition, or of those for different devices, the largest counts. What `jax.checkpoint` computes
    again in a backward pass counts again.

    Args:
      fn: any function that jax can trace.
      arguments: its arguments; shapes (`jax.ShapeDtypeStruct`) will do for arrays.
    """
    return _total(jax.make_jaxpr(fn)(*arguments).jaxpr)


def _total(jaxpr: core.Jaxpr) -> float:
    return sum(map(_operations, jaxpr.eqns), start=0.0)


def _operations(eqn: core.JaxprEqn) -> float:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2.0 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
    if name == "conv_general_dilated":
        return _convolution(eqn)
    inner = [_total(jaxpr) for jaxpr in core.jaxprs_in_params(params)]
    if name == "cond":
        return max(inner, default=0.0)
    return sum(inner) * params.get("length", 1) if name == "scan" else sum(inner, start=0.0)


def _convolution(eqn: core.JaxprEqn) -> float:
    """Every output against every tap of its kernel, padding included, as is usual; taps between the rows of a dilated
    input, which the gradient of a strided convolution has, are no work.
    """
    dimensions = eqn.params["dimension_numbers"]
    _, inputs, *window = (eqn.invars[1].aval.shape[i] for i in dimensions.rhs_spec)
    return 2.0 * eqn.outvars[0].aval.size * inputs * math.prod(window) / math.prod(eqn.params["lhs_dilation"])
