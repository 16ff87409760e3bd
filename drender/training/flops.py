"""Count the floating-point operations of a function's matrix products and convolutions.

The count walks the function's jaxpr, so nothing is computed and full-size networks need no memory. A multiply-add
counts as two operations. Elementwise operations are left out, as in published counts.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

# Dense peak of a device in TFLOP/s by a part of its name, from the vendors' data sheets: (bfloat16 with float32
# accumulation, and TF32, JAX's default for float32 on NVIDIA's GPUs). The first match counts.
PEAKS = {
    r"\b(B200|GB200)\b": (2250, 1125),
    r"\b(H100 PCIe)\b": (756, 378),
    r"\b(H100|H200|H800|GH200)\b": (989, 494),
    r"\bA100\b|\bA800\b": (312, 156),
    r"\bA40\b": (150, 75),
    r"\bA10G?\b": (125, 62.5),
    r"\bL40S\b": (362, 183),
    r"\bL4\b": (121, 60),
    r"RTX 4090\b": (165, 82.6),
    r"RTX 3090\b": (71, 35.6),
    r"TPU v6": (918, None),
    r"TPU (v5p|v5)$": (459, None),
    r"TPU (v5e|v5 lite)": (197, None),
    r"TPU v4": (275, None),
}


def peak(device_kind: str, dtype: str) -> float | None:
    """Return the dense peak of a device for "bfloat16" or "float32", in operations per second; None if it is unknown.

    `device_kind` is that of `jax.Device`, such as "NVIDIA H100 80GB HBM3".
    """
    for pattern, peaks in PEAKS.items():
        if re.search(pattern, device_kind):
            tera = peaks[dtype != "bfloat16"]
            return tera and tera * 1e12
    return None


def count(fn: Callable, *arguments: Any) -> float:
    """Return the floating-point operations of `fn(*arguments)`; arrays may be given as `jax.ShapeDtypeStruct`.

    A `scan` counts its length, a `while_loop` one iteration. Of the branches of a condition, or of those for different
    platforms, the largest counts. Rematerialization by `jax.checkpoint` counts again.
    """
    return total(jax.make_jaxpr(fn)(*arguments).jaxpr)


def total(jaxpr: core.Jaxpr) -> float:
    """Return the floating-point operations of a traced function, as `count` does."""
    return sum(map(_operations, jaxpr.eqns), start=0.0)


def _operations(eqn: core.JaxprEqn) -> float:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2.0 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
    if name == "conv_general_dilated":
        return _convolution(eqn)
    inner = [total(jaxpr) for jaxpr in core.jaxprs_in_params(params)]
    if name == "cond":
        return max(inner, default=0.0)
    return sum(inner) * params.get("length", 1) if name == "scan" else sum(inner, start=0.0)


def _convolution(eqn: core.JaxprEqn) -> float:
    """Count every output times every tap of its kernel, padding included.

    Taps on the zeros of a dilated input, as in the gradient of a strided convolution, do not count.
    """
    dimensions = eqn.params["dimension_numbers"]
    _, inputs, *window = (eqn.invars[1].aval.shape[i] for i in dimensions.rhs_spec)
    return 2.0 * eqn.outvars[0].aval.size * inputs * math.prod(window) / math.prod(eqn.params["lhs_dilation"])
