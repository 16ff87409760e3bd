"""Low-rank adaptation (Hu et al. 2021): a correction A·B of low rank to some kernels of a network.

The factors are a nested dict of their own. At the path of an adapted module it has `lora_A` and `lora_B`, or
`lora: {down, up}` as older files spell them, and sometimes `alpha`. They are laid out as kernels are here:

    linear       A [in, rank]           B [rank, out]
    convolution  A [kh, kw, in, rank]   B [1, 1, rank, out]
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import repeat
from flax import nnx
from jaxtyping import Array, Float

from drender.errors import InputError, unknown_name_error
from drender.models.layers import Linear
from drender.models.params import flatten, unflatten


def init(params: dict, rank: int, targets: Sequence[str], seed: int, alpha: float | None = None) -> dict:
    """Make initial factors for linear layers of a UNet's attention: A random and B zero, so that the product is zero.

    Args:
      params: nested dict of the UNet's parameters, or of their shapes.
      targets: names of the layers, such as "to_q" or "to_out".
      seed: seed of A, which is uniform within ±1/√in.
      alpha: the correction is scaled by alpha/rank; None: by 1, and no alpha is stored.
    Returns:
      Nested dict of float32 numpy arrays.
    Raises:
      InputError: an attention layer with a target's name does not exist.
    """
    kernels = {name.removesuffix(".kernel"): x.shape for name, x in flatten(params).items() if name.endswith(".kernel")}
    layers = {path: shape for path, shape in kernels.items() if re.search(r"\.attn\d\.", path)}
    names = {_layer_name(path) for path in layers}
    for target in targets:
        if target not in names:
            raise unknown_name_error("LoRA target", target, names)
    rng = np.random.default_rng(seed)
    factors = {}
    for path, (inputs, outputs) in layers.items():
        if _layer_name(path) in targets:
            factors[f"{path}.lora_A"] = (rng.uniform(-1, 1, (inputs, rank)) / math.sqrt(inputs)).astype(np.float32)
            factors[f"{path}.lora_B"] = np.zeros((rank, outputs), np.float32)
            if alpha is not None:
                factors[f"{path}.alpha"] = np.full((), alpha, np.float32)
    return unflatten(factors)


def _layer_name(path: str) -> str:
    """Return the last component of a path that is not a number: "to_out" for "….to_out.0"."""
    return next(part for part in reversed(path.split(".")) if not part.isdecimal())


def _by_module(lora: Mapping) -> dict[str, dict[str, Any]]:
    """Return the factors of every adapted module, by its dotted path and by their names."""
    modules: dict[str, dict[str, Any]] = {}
    for name, x in flatten(lora).items():
        name = name.replace(".lora.down", ".lora_A").replace(".lora.up", ".lora_B")
        path, _, factor = name.rpartition(".")
        modules.setdefault(path, {})[factor] = x
    return modules


def _check_factors(factors: Mapping[str, Any], kernel: tuple[int, ...], path: str) -> tuple[Array, Array, Array]:
    """Return A, B and alpha/rank of the module at `path`, checked against the shape of its kernel."""
    if not {"lora_A", "lora_B"} <= factors.keys():
        raise InputError(f"LoRA: {path!r} lacks one of its two factors; the file is incomplete")
    a, b = jnp.asarray(factors["lora_A"]), jnp.asarray(factors["lora_B"])
    rank = a.shape[-1]
    if (a.shape[:-1], b.shape[-2:]) != (kernel[:-1], (rank, kernel[-1])):
        problem = f"has factors of shape {a.shape} and {b.shape}, which do not multiply to its kernel's {kernel}"
        raise InputError(f"LoRA: {path!r} {problem}; was it made for another network?")
    return a, b, jnp.asarray(factors.get("alpha", rank), jnp.float32).reshape(()) / rank


# --- merge: add the corrections to the kernels -----------------------------------------------------------------------


def merge(params: dict, lora: Mapping, scale: float) -> dict:
    """Return parameters with corrected kernels, W + scale · alpha/rank · A·B, in float32 and rounded to W's dtype once.

    Args:
      params: nested dict of a network's parameters. It is not modified, and unchanged arrays are shared.
      lora: nested dict of factors; alpha defaults to the rank.
      scale: strength of the correction; 0 returns `params` itself.
    Raises:
      InputError: a factor lacks its partner or a kernel to correct, or shapes do not match.
    """
    if not scale:
        return params
    merged = flatten(params)
    for path, factors in _by_module(lora).items():
        name = f"{path}.kernel"
        if name not in merged:
            raise InputError(f"LoRA: the network has no kernel {name!r} to correct; was it made for another one?")
        a, b, strength = _check_factors(factors, merged[name].shape, path)
        merged[name] = _add_product(merged[name], a, b, scale * strength)
    return unflatten(merged)


@jax.jit
def _add_product(kernel: Array, a: Array, b: Array, factor: Array) -> Array:
    # All taps of a convolution's A share the rank-to-output matrix B.
    b = b.reshape(b.shape[-2:]).astype(jnp.float32)
    product = jnp.matmul(a.astype(jnp.float32), b, precision="highest")
    return (kernel.astype(jnp.float32) + factor * product).astype(kernel.dtype)


# --- adapt: apply the corrections beside the kernels, by clip --------------------------------------------------------


class AdaptedLinear(nnx.Module):
    """A linear layer with a correction of a strength per clip of the batch."""

    def __init__(self, linear: Linear, a: Array, b: Array, strength: Float[Array, " b"]):
        self.linear = linear
        # Flax takes traced arrays for static constants unless they are marked as data.
        self.a, self.b, self.strength = nnx.data(a), nnx.data(b), nnx.data(strength)

    def __call__(self, x: Float[Array, "rows t c"]) -> Float[Array, "rows t c2"]:
        """Apply the layer to rows in order of their clips, such as (b f)."""
        a, b = self.a.astype(x.dtype), self.b.astype(x.dtype)
        strength = repeat(self.strength, "b -> (b r) 1 1", r=x.shape[0] // self.strength.shape[0])
        return self.linear(x) + strength.astype(x.dtype) * ((x @ a) @ b)


def adapt(network: nnx.Module, lora: Mapping, gate: Float[Array, " b"]) -> nnx.Module:
    """Return the network with corrections beside its kernels: x·W + gate · alpha/rank · x·A·B, with a gate per clip.

    With equal gates this computes the same as `merge` with that scale.

    Args:
      network: a network fresh from `nnx.merge`, which is modified. Its batch must have a context for every clip.
      lora: nested dict of factors of linear layers; alpha is not trained.
      gate: strength of the correction per clip; 0: none.
    Raises:
      InputError: a factor lacks its partner or a linear layer to correct, or shapes do not match.
    """
    modules = {".".join(map(str, path)): module for path, module in nnx.iter_modules(network)}
    for path, factors in _by_module(lora).items():
        linear = modules.get(path)
        if not isinstance(linear, Linear):
            raise InputError(f"LoRA: the network has no linear layer {path!r}; only factors of linear layers train")
        a, b, strength = _check_factors(factors, linear.kernel.shape, path)
        adapted = AdaptedLinear(linear, a, b, gate * jax.lax.stop_gradient(strength))
        parent, _, name = path.rpartition(".")
        if name.isdecimal():
            modules[parent][int(name)] = adapted
        else:
            setattr(modules[parent], name, adapted)
    return network
