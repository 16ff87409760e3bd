"""Low-rank adaptation (Hu et al. 2021): a small correction B·A beside some kernels of a parameter tree.

The factors form a nested dict of their own. At the path of an adapted module it has `lora_A` and `lora_B`, or
`lora: {down, up}` as older files spell them, and sometimes `alpha`. They are laid out as kernels are here:

    linear       A [in, rank]           B [rank, out]
    convolution  A [kh, kw, in, rank]   B [1, 1, rank, out]
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .errors import InputError


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
    if "lora" in lora or "lora_A" in lora or "lora_B" in lora:
        return params | {"kernel": _corrected(params, lora, scale, path)}
    merged = dict(params)
    for key, branch in lora.items():
        if not isinstance(branch, Mapping) or not isinstance(params.get(key), Mapping):
            raise InputError(f"LoRA: the network has no module {_dotted((*path, key))!r}; was it made for another one?")
        merged[key] = _merge(params[key], branch, scale, (*path, key))
    return merged


def _corrected(params: dict, lora: Mapping, scale: float, path: tuple) -> Float[Array, "..."]:
    """The module's kernel with the correction."""
    pair = lora.get("lora", {})
    a, b = lora.get("lora_A", pair.get("down")), lora.get("lora_B", pair.get("up"))
    if a is None or b is None:
        raise InputError(f"LoRA: {_dotted(path)!r} has only one of its two factors; the file is incomplete")
    kernel = params.get("kernel")
    if kernel is None:
        raise InputError(f"LoRA: {_dotted(path)!r} has no kernel to correct; was it made for another network?")
    rank = a.shape[-1]
    if (a.shape[:-1], b.shape[-2:]) != (kernel.shape[:-1], (rank, kernel.shape[-1])):
        raise InputError(
            f"LoRA: {_dotted(path)!r} has factors of shape {a.shape} and {b.shape}, which do not multiply to its "
            f"kernel's {kernel.shape}; was it made for another network?"
        )
    alpha = jnp.asarray(lora.get("alpha", rank), jnp.float32).reshape(())
    return _add_product(kernel, a, b, scale * alpha / rank)


@jax.jit
def _add_product(kernel: Array, a: Array, b: Array, factor: Array) -> Array:
    # Every position of a convolution's A has the same rank-to-output matrix B.
    b = b.reshape(b.shape[-2:]).astype(jnp.float32)
    product = jnp.matmul(a.astype(jnp.float32), b, precision="highest")
    return (kernel.astype(jnp.float32) + factor * product).astype(kernel.dtype)


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))
