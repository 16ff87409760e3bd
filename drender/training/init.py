"""Initial parameters: random, or from a checkpoint whose configuration differs as a renderer's does from its base.

Everything here is numpy on the host, because compiling the draw of 1.5 billion parameters takes minutes.
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

# Layers that are initialized with zeros. Temporal branches then pass the spatial branch through, so that a model
# trained on images is a model of videos. A UNet's transformers pass their input through, and its output is zero, the
# mean of its target (Karras et al. 2022, section 5; the code of Dhariwal & Nichol 2021).
ZERO = re.compile(
    r"^conv_out\."
    r"|\.attentions\.\d+\.(proj_out|time_pos_embed\.linear_2)\."
    r"|\.temporal_res_block\.conv2\."
    r"|\.temporal_transformer_blocks\.\d+\.(attn\d\.to_out\.0|ff_in\.net\.2|ff\.net\.2)\."
)
DOMAIN_TABLE = "context_embedding.embedding"
# Projections of the context. Their input width may differ from the checkpoint's.
CONTEXT = re.compile(r"\.attn2\.to_[kv]\.kernel$")
# Parameters of a checkpoint that a model may lack: cross-attention over time, and domains.
OPTIONAL = re.compile(r"\.temporal_transformer_blocks\.\d+\.(attn2|norm2)\.|^context_embedding\.")

Shape = tuple[int, ...]


# --- random ----------------------------------------------------------------------------------------------------------


def init_params(network: type[nnx.Module], config: Any, seed: int) -> dict:
    """Draw parameters to train a network from scratch.

    Kernels are normal with variance 1/inputs, biases zero, norms the identity, and `ZERO` lists further zeros. A
    decoder's last convolution, over time, is the identity. A parameter depends on `seed` and its name alone.

    Returns:
      nested dict of float32 numpy arrays.
    """
    shapes = {name: leaf.shape for name, leaf in flatten(abstract_module(network, config)[1]).items()}
    with ThreadPoolExecutor() as pool:
        arrays = pool.map(_draw, shapes.keys(), shapes.values(), itertools.repeat(seed))
    return unflatten(dict(zip(shapes, arrays, strict=True)))


def _draw(name: str, shape: Shape, seed: int) -> np.ndarray:
    leaf = name.rpartition(".")[2]
    if leaf == "mix_factor":
        # SVD's initialization: equal shares in its decoder, a little more of the spatial side in its UNet.
        return np.full(shape, 0 if name.startswith("decoder.") else 0.5, np.float32)
    if leaf in ("scale", "bias") or ZERO.search(name):
        return np.full(shape, leaf == "scale", np.float32)
    if name.endswith("time_conv_out.kernel"):
        kernel = np.zeros(shape, np.float32)
        kernel[shape[0] // 2, 0] = np.eye(*shape[2:])
        return kernel
    x = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, np.float32)
    if leaf == "embedding":  # the lookup would clip longer ones
        x *= np.minimum(1, MAX_DOMAIN_NORM / np.linalg.norm(x, axis=-1, keepdims=True))
    else:
        x /= np.float32(math.sqrt(math.prod(shape[:-1])))
    return x


# --- from a checkpoint -----------------------------------------------------------------------------------------------


def adapt_pretrained(
    network: type[nnx.Module], config: Any, stored: Mapping, seed: int, where: str
) -> tuple[dict, list[str]]:
    """Fit pretrained parameters to a network that differs from theirs as a renderer differs from its base.

    Tensors of the same shape are kept. The first convolution grows by zeros for more input channels, the domain table
    by random rows. Projections of a context of another width, and a missing domain table, are random. Domains and
    cross-attention over time that this network lacks are dropped.

    Args:
      stored: nested dict of the pretrained arrays.
      where: name of the checkpoint in errors and in the report.
    Returns:
      nested dict of numpy arrays, the kept ones in the dtype of `stored` (and its memory, on the host), others float32,
      and a report with a line each about kept, grown, new and dropped tensors.
    Raises:
      InputError: any other difference.
    """
    shapes = {name: leaf.shape for name, leaf in flatten(abstract_module(network, config)[1]).items()}
    old = flatten(stored)
    params, changes = {}, {"kept": [], "grown": [], "new": [], "dropped": []}
    for name, shape in shapes.items():
        x = old.pop(name, None)
        change = _change(name, shape, None if x is None else x.shape)
        if change is None:
            raise _mismatch(where, name, "missing" if x is None else x.shape, shape)
        changes[change].append(name)
        params[name] = _draw(name, shape, seed) if change == "new" else np.asarray(x)
        if change == "grown":
            params[name] = _grow(params[name], name, shape, seed)
    for name, x in old.items():
        if not OPTIONAL.search(name):
            raise _mismatch(where, name, x.shape, "no such parameter")
        changes["dropped"].append(name)
    report = [f"{where}: {_summarize(change, names)}" for change, names in changes.items() if names]
    return unflatten(params), report


def _change(name: str, shape: Shape, stored: Shape | None) -> Literal["kept", "grown", "new"] | None:
    """Return how a parameter is made from a stored one, or None if it cannot be."""
    if stored == shape:
        return "kept"
    if stored is None:
        return "new" if name == DOMAIN_TABLE else None
    if name == "conv_in.kernel" and (*stored[:2], stored[3]) == (*shape[:2], shape[3]) and stored[2] < shape[2]:
        return "grown"
    if name == DOMAIN_TABLE and stored[1] != shape[1]:
        return "new"
    if name == DOMAIN_TABLE and stored[0] < shape[0]:
        return "grown"
    return "new" if CONTEXT.search(name) and stored[1] == shape[1] else None


def _grow(x: np.ndarray, name: str, shape: Shape, seed: int) -> np.ndarray:
    """Return `x` in the corner of a larger array of zeros, or of random rows for the domain table."""
    grown = _draw(name, shape, seed) if name == DOMAIN_TABLE else np.zeros(shape, np.float32)
    grown[tuple(map(slice, x.shape))] = x
    return grown


def _mismatch(where: str, name: str, found: Any, expected: Any) -> InputError:
    problem = f"{name} is {found}, but the model to train needs {expected}"
    return InputError(f"{where}: {problem}; choose another init_from, or give its sizes in `model`")


def _summarize(change: str, names: list[str]) -> str:
    """Return a line such as `dropped 16 × temporal_transformer_blocks.attn2.to_q`, without numbers in names."""
    if change == "kept":
        return f"kept {len(names)} tensors"
    modules = (re.sub(r"\.\d+|\.kernel$|\.embedding$", "", name) for name in names)
    counts = Counter(re.sub(r".*\.(?=\w*transformer_blocks)", "", module) for module in modules)
    return f"{change} " + ", ".join(name if count == 1 else f"{count} × {name}" for name, count in counts.items())


# --- configurations --------------------------------------------------------------------------------------------------


def renderer_config(kind: Literal["inverse", "forward", "svd"], base: RendererConfig) -> RendererConfig:
    """Return the configuration of a renderer that is initialized from a model with the configuration `base`.

    A base of the same kind is unchanged, and Stable Video Diffusion's is changed as the released renderers' is. Raise
    InputError for a renderer of another kind.
    """
    if base.kind == kind:
        return base
    if base.kind != "svd":
        expected = f"a model of kind {kind!r} or 'svd' to train kind {kind!r}"
        raise InputError(f"init_from: expected {expected}, got kind {base.kind!r}")
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
    # The released forward sampler scales its initial noise this way, see `diffusion.initial_scale`.
    scheduler = dataclasses.replace(base.scheduler, timestep_spacing="trailing")
    return dataclasses.replace(
        base, kind=kind, unet=unet, env_encoder=encoder, scheduler=scheduler, scale_cond_latents=True
    )
