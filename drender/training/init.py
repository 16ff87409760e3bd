"""What a training run begins with: parameters drawn at random, or taken from a checkpoint of another configuration.

Everything here is numpy on the host: drawing 1.5 billion parameters under `jit` takes minutes to compile.
"""

import dataclasses
import itertools
import math
import re
import zlib
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from flax import nnx

from drender.config import ENVIRONMENT_LABELS, EnvEncoderConfig, RendererConfig
from drender.errors import InputError
from drender.models.params import abstract_module, flatten, unflatten
from drender.models.unet import MAX_DOMAIN_NORM

# Layers that begin at zero. A temporal branch then hands on what the spatial one gives it, so that a model trained on
# images becomes a model of videos without harm; a UNet's transformers hand on what they get, and its output is zero,
# the mean of what it is to predict (Karras et al. 2022, section 5, and the code of Dhariwal & Nichol 2021).
ZERO = re.compile(
    r"^conv_out\."
    r"|\.attentions\.\d+\.(proj_out|time_pos_embed\.linear_2)\."
    r"|\.temporal_res_block\.conv2\."
    r"|\.temporal_transformer_blocks\.\d+\.(attn\d\.to_out\.0|ff_in\.net\.2|ff\.net\.2)\."
)
DOMAIN_TABLE = "context_embedding.embedding"
# The projections of a context, whose width is the start's.
CONTEXT = re.compile(r"\.attn2\.to_[kv]\.kernel$")
# What a start may have and a model lack: cross-attention over time, and domains.
OPTIONAL = re.compile(r"\.temporal_transformer_blocks\.\d+\.(attn2|norm2)\.|^context_embedding\.")


# --- at random -------------------------------------------------------------------------------------------------------


def init_params(network: type[nnx.Module], config: Any, seed: int) -> dict:
    """Parameters to train a network from scratch with.

    Kernels are normal with variance 1/inputs, biases zero, norms the identity; `ZERO` says what else begins at zero.
    A decoder's last convolution, over time, is the identity. A parameter's numbers depend on `seed` and its name alone.

    Returns:
      nested dict of float32 numpy arrays.
    """
    shapes = {name: leaf.shape for name, leaf in flatten(abstract_module(network, config)[1]).items()}
    with ThreadPoolExecutor() as pool:
        arrays = pool.map(_draw, shapes.keys(), shapes.values(), itertools.repeat(seed))
    return unflatten(dict(zip(shapes, arrays, strict=True)))


def _draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    leaf = name.rpartition(".")[2]
    if leaf == "mix_factor":
        # As SVD begins: its decoder at even shares, its UNet a little on the spatial side.
        return np.full(shape, 0 if name.startswith("decoder.") else 0.5, np.float32)
    if leaf in ("scale", "bias") or ZERO.search(name):
        return np.full(shape, leaf == "scale", np.float32)
    if name.endswith("time_conv_out.kernel"):
        kernel = np.zeros(shape, np.float32)
        kernel[shape[0] // 2, 0] = np.eye(*shape[2:])
        return kernel
    x = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, np.float32)
    if leaf == "embedding":  # no longer than they are looked up
        x *= np.minimum(1, MAX_DOMAIN_NORM / np.linalg.norm(x, axis=-1, keepdims=True))
    else:
        x /= np.float32(math.sqrt(math.prod(shape[:-1])))
    return x


# --- from a checkpoint -----------------------------------------------------------------------------------------------


def adapt_pretrained(
    network: type[nnx.Module], config: Any, stored: Mapping, seed: int, where: str
) -> tuple[dict, list[str]]:
    """The parameters of a network, taken from those of one that differs in what a renderer changes of its start.

    Tensors of the same shape are kept. The first convolution grows by zeros for more input channels, the domain table
    by new rows. The projections of a context of another width are new, and so is a missing domain table. Domains and
    cross-attention over time that this network does not have are dropped.

    Args:
      network, config: what to make.
      stored: nested dict of the start's arrays.
      seed: of what is new, which is as in `initial`.
      where: names the start in errors and in the report.
    Returns:
      nested dict of float32 numpy arrays (those of `stored` where they are float32 on the host), and a report of what
      was kept, grown, new and dropped, a line each.
    Raises:
      InputError: any other difference.
    """
    shapes = {name: leaf.shape for name, leaf in flatten(abstract_module(network, config)[1]).items()}
    old = flatten(stored)
    params, told = {}, {"kept": [], "grown": [], "new": [], "dropped": []}
    for name, shape in shapes.items():
        found = old.pop(name, None)
        how = _difference(name, shape, None if found is None else found.shape)
        if how is None:
            raise _misfit(where, name, "missing" if found is None else found.shape, shape)
        told[how].append(name)
        params[name] = _draw(name, shape, seed) if how == "new" else np.asarray(found, np.float32)
        if how == "grown":
            params[name] = _grown(params[name], name, shape, seed)
    for name, found in old.items():
        if not OPTIONAL.search(name):
            raise _misfit(where, name, found.shape, "no such parameter")
        told["dropped"].append(name)
    report = [f"{where}: {_summary(how, names)}" for how, names in told.items() if names]
    return unflatten(params), report


def _difference(name: str, shape: tuple[int, ...], found: tuple[int, ...] | None) -> str | None:
    """How a parameter of `shape` comes from one of shape `found`; None: it does not."""
    if found == shape:
        return "kept"
    if found is None:
        return "new" if name == DOMAIN_TABLE else None
    if name == "conv_in.kernel" and (*found[:2], found[3]) == (*shape[:2], shape[3]) and found[2] < shape[2]:
        return "grown"
    if name == DOMAIN_TABLE and found[1] != shape[1]:
        return "new"
    if name == DOMAIN_TABLE and found[0] < shape[0]:
        return "grown"
    return "new" if CONTEXT.search(name) and found[1] == shape[1] else None


def _grown(x: np.ndarray, name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """`x` in the corner of an array of zeros, or of fresh rows where it is the domain table."""
    whole = _draw(name, shape, seed) if name == DOMAIN_TABLE else np.zeros(shape, np.float32)
    whole[tuple(map(slice, x.shape))] = x
    return whole


def _misfit(where: str, name: str, found: Any, wanted: Any) -> InputError:
    return InputError(
        f"{where}: {name} is {found}, but the model to train asks for {wanted}; "
        "choose another start, or sizes in `model` that are those of this one"
    )


def _summary(how: str, names: list[str]) -> str:
    """One line, such as `dropped 16 × temporal_transformer_blocks.attn2.to_q`: names that differ in numbers are one."""
    if how == "kept":
        return f"kept {len(names)} tensors"
    modules = (re.sub(r"\.\d+|\.kernel$|\.embedding$", "", name) for name in names)
    counts = Counter(re.sub(r".*\.(?=\w*transformer_blocks)", "", module) for module in modules)
    return f"{how} " + ", ".join(name if count == 1 else f"{count} × {name}" for name, count in counts.items())


# --- configurations --------------------------------------------------------------------------------------------------


def renderer_config(kind: Literal["inverse", "forward", "svd"], base: RendererConfig) -> RendererConfig:
    """The configuration of a model that begins with `base`: that of one of its kind as it is, and that of Stable Video
    Diffusion changed as the released renderers are.

    Raises:
      InputError: the base is a renderer of another kind.
    """
    if base.kind == kind:
        return base
    if base.kind != "svd":
        raise InputError(f"the start is of kind {base.kind!r}; to train kind {kind!r}, start with {kind!r} or 'svd'")
    latents, levels = base.vae.latent_channels, base.unet.block_out_channels
    if kind == "inverse":
        unet = dataclasses.replace(base.unet, in_channels=2 * latents, context_embedding_type="clip")
        return dataclasses.replace(base, kind=kind, unet=unet, scale_cond_latents=False)
    unet = dataclasses.replace(
        base.unet,
        in_channels=latents * (1 + len(base.conditions)),
        cross_attention_dim=levels,
        temporal_cross_attention_dim=None,
        multi_res_encoder_hidden_states=True,
    )
    encoder = EnvEncoderConfig(
        in_channels=latents * len(ENVIRONMENT_LABELS), channels=levels, norm_num_groups=base.unet.norm_num_groups
    )
    # So the released forward sampler scales its first noise; see `diffusion.initial_scale`.
    scheduler = dataclasses.replace(base.scheduler, timestep_spacing="trailing")
    return dataclasses.replace(
        base, kind=kind, unet=unet, env_encoder=encoder, scheduler=scheduler, scale_cond_latents=True
    )
