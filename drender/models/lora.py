"""Low-rank adaptation (Hu et al. 2021): a small correction B·A beside some kernels of a network.

The factors form a nested dict of their own. At the path of an adapted module it has `lora_A` and `lora_B`, or
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
from drender.models.params import flatten, unflatten


def init(params: dict, rank: int, targets: Sequence[str], seed: int, alpha: float | None = None) -> dict:
    """Fresh factors beside linear layers of a UNet's attention: A random, B zero, so that nothing changes at first.

    Args:
      params: nested dict of the UNet's parameters, or of their shapes.
      rank: of the correction.
      targets: names of the layers, such as "to_q" or "to_out".
      seed: of A, which is uniform within ±1/√in.
      alpha: the correction is multiplied by alpha/rank; None leaves it out, for a factor of 1.
    Returns:
      nested dict of float32 numpy arrays.
    Raises:
      InputError: a target that no attention has.
    """
    layers = _attention_layers(params)
    names = {_layer_name(path) for path in layers}
    for target in targets:
        if target not in names:
            raise unknown_name_error("LoRA target", target, names)
    random = np.random.default_rng(seed)
    factors = {}
    for path, (inputs, outputs) in layers.items():
        if _layer_name(path) in targets:
            a = random.uniform(-1, 1, (inputs, rank)) / math.sqrt(inputs)
            factors[f"{path}.lora_A"] = a.astype(np.float32)
            factors[f"{path}.lora_B"] = np.zeros((rank, outputs), np.float32)
            if alpha is not None:
                factors[f"{path}.alpha"] = np.full((), alpha, np.float32)
    return unflatten(factors)


def _attention_layers(params: dict) -> dict[str, tuple[int, ...]]:
    """Kernel shapes of the linear layers of attention, by dotted path."""
    shapes = {name: leaf.shape for name, leaf in flatten(params).items() if name.endswith(".kernel")}
    return {name.removesuffix(".kernel"): shape for name, shape in shapes.items() if re.search(r"\.attn\d\.", name)}


def _layer_name(path: str) -> str:
    """The last part that is no number: "to_out" of "….to_out.0"."""
    return next(part for part in reversed(path.split(".")) if not part.isdecimal())


# --- for good: into the kernels ---------------------------------------------------------------------------------------


def merge(params: dict, lora: Mapping, scale: float) -> dict:
    """Adds the correction to the kernels that have one: W + scale · alpha/rank · A·B, in float32, rounded to W's dtype.

    Args:
      params: nested dict of a network's parameters; it is left as it is, and shares what does not change.
      lora: nested dict of factors; alpha is the rank where it is not given.
      scale: 0 gives `params` itself.
    Raises:
      InputError: a factor without the other, without a kernel to correct, or whose shape does not fit.
    """
    return _merge(params, lora, scale, ()) if scale else params


def _merge(params: dict, lora: Mapping, scale: float, path: tuple) -> dict:
    if _is_factors(lora):
        return params | {"kernel": _corrected(params, lora, scale, path)}
    merged = dict(params)
    for key, branch in lora.items():
        if not isinstance(branch, Mapping) or not isinstance(params.get(key), Mapping):
            raise _no_module((*path, key))
        merged[key] = _merge(params[key], branch, scale, (*path, key))
    return merged


def _corrected(params: dict, lora: Mapping, scale: float, path: tuple) -> Float[Array, "..."]:
    """The module's kernel with the correction."""
    kernel = params.get("kernel")
    if kernel is None:
        raise InputError(f"LoRA: {_dotted(path)!r} has no kernel to correct; was it made for another network?")
    a, b, strength = _read(lora, kernel.shape, path)
    return _add_product(kernel, a, b, scale * strength)


def _read(lora: Mapping, kernel: tuple[int, ...], path: tuple) -> tuple[Array, Array, Array]:
    """A, B and alpha/rank of the module at `path`, which fit the shape of its kernel."""
    pair = lora.get("lora", {})
    a, b = lora.get("lora_A", pair.get("down")), lora.get("lora_B", pair.get("up"))
    if a is None or b is None:
        raise InputError(f"LoRA: {_dotted(path)!r} has only one of its two factors; the file is incomplete")
    rank = a.shape[-1]
    if (a.shape[:-1], b.shape[-2:]) != (kernel[:-1], (rank, kernel[-1])):
        raise InputError(
            f"LoRA: {_dotted(path)!r} has factors of shape {a.shape} and {b.shape}, which do not multiply to its "
            f"kernel's {kernel}; was it made for another network?"
        )
    alpha = jnp.asarray(lora.get("alpha", rank), jnp.float32).reshape(())
    return jnp.asarray(a), jnp.asarray(b), alpha / rank


@jax.jit
def _add_product(kernel: Array, a: Array, b: Array, factor: Array) -> Array:
    # Every position of a convolution's A has the same rank-to-output matrix B.
    b = b.reshape(b.shape[-2:]).astype(jnp.float32)
    product = jnp.matmul(a.astype(jnp.float32), b, precision="highest")
    return (kernel.astype(jnp.float32) + factor * product).astype(kernel.dtype)


def _is_factors(lora: Mapping) -> bool:
    return "lora" in lora or "lora_A" in lora or "lora_B" in lora


def _no_module(path: tuple) -> InputError:
    return InputError(f"LoRA: the network has no module {_dotted(path)!r}; was it made for another one?")


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))


# --- for each clip of a batch: beside the kernels ---------------------------------------------------------------------


class AdaptedLinear(nnx.Module):
    """A linear layer with a correction whose strength each clip of the batch has its own of."""

    def __init__(self, linear: nnx.Linear, a: Array, b: Array, strength: Float[Array, " b"]):
        self.linear = linear
        # Without saying so, a traced array is taken for a constant.
        self.a, self.b, self.strength = nnx.data(a), nnx.data(b), nnx.data(strength)

    def __call__(self, x: Float[Array, "rows t c"]) -> Float[Array, "rows t c2"]:
        """rows: the first clip's, then the next one's, as every axis that holds the batch is arranged."""
        a, b = self.a.astype(x.dtype), self.b.astype(x.dtype)
        strength = repeat(self.strength, "b -> (b r) 1 1", r=x.shape[0] // self.strength.shape[0])
        return self.linear(x) + strength.astype(x.dtype) * ((x @ a) @ b)


def adapt(network: nnx.Module, lora: Mapping, gate: Float[Array, " b"]) -> nnx.Module:
    """Puts the correction beside the kernels of a network: W x + gate · alpha/rank · B A x, with a gate per clip.

    With the same gate for all it computes what the parameters of `merge` with that scale do.

    Args:
      network: just made by `nnx.merge`; it is changed. Its batch has a context of its own for every clip.
      lora: nested dict of factors for its linear layers; alpha does not learn.
      gate: per clip of the batch, 0 for the network as it was.
    Returns:
      `network`.
    Raises:
      InputError: a factor without the other, without a linear layer to correct, or whose shape does not fit.
    """
    return _adapt(network, lora, gate, ())


def _adapt(module: Any, lora: Mapping, gate: Float[Array, " b"], path: tuple) -> Any:
    if _is_factors(lora):
        if not isinstance(module, nnx.Linear):
            raise InputError(f"LoRA: {_dotted(path)!r} is no linear layer; other layers cannot be trained so")
        a, b, strength = _read(lora, module.kernel.shape, path)
        return AdaptedLinear(module, a, b, gate * jax.lax.stop_gradient(strength))
    for key, branch in lora.items():
        try:
            child = module[key] if isinstance(key, int) else getattr(module, key)
        except (AttributeError, IndexError, TypeError):
            child = None
        if child is None or not isinstance(branch, Mapping):
            raise _no_module((*path, key))
        child = _adapt(child, branch, gate, (*path, key))
        if isinstance(key, int):
            module[key] = child
        else:
            setattr(module, key, child)
    return module
