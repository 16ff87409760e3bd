"""Convert weights between the released torch layout and Orbax checkpoints: strictly, bit for bit, in both directions.

Attributes of our modules bear the released names, so one rule gives a parameter's torch name and layout:

    here                                            torch
    ….kernel [in, out]                              ….weight [out, in]
    ….kernel [kh, kw, in, out]                      ….weight [out, in, kh, kw]
    ….kernel [kt, 1, in, out], over time            ….weight [out, in, kt, 1, 1]
    ….scale, ….embedding                            ….weight
    ….bias, ….mix_factor                            unchanged
    ….lora_A, ….lora_B, ….lora.down, ….lora.up      unet.….lora_A.weight and so on, in the layout of kernels
    ….alpha                                         unet.….alpha

The conversion walks our parameters and looks each up in the files. It fails if a tensor is missing, left over or has
another shape.
"""

import functools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from einops import EinopsError, rearrange

from drender import files
from drender.checkpoints import diffusers_layout, hub, orbax, torch_files
from drender.checkpoints.diffusers_layout import Log
from drender.checkpoints.torch_files import Tensor
from drender.config import RendererConfig
from drender.errors import InputError
from drender.files import expand_home
from drender.models import lora
from drender.models.params import flatten, unflatten
from drender.models.registry import abstract_params

LORA_PREFIX = "unet."
LORA_FACTORS = ("lora_A", "lora_B", "down", "up")
# Modules whose convolutions run over time.
TEMPORAL = ("temporal_res_block", "time_conv_out")
# Tensors listed in an error before the rest is only counted.
MAX_LINES = 20


# --- the rule --------------------------------------------------------------------------------------------------------


def torch_name(name: str) -> str:
    """Return the torch name of one of our parameters, both as dotted paths; LoRA names lack the prefix `unet.`."""
    module, _, leaf = name.rpartition(".")
    if leaf in LORA_FACTORS:
        return f"{name}.weight"
    return f"{module}.weight" if leaf in ("kernel", "scale", "embedding") else name


def to_torch(name: str, x: np.ndarray) -> np.ndarray:
    """Return our parameter `name` in torch's layout, as a view."""
    here, torch = _layouts(name, x.ndim)
    return rearrange(x, f"{here} -> {torch}")


def from_torch(name: str, x: np.ndarray) -> np.ndarray:
    """Return torch's tensor in the layout of our parameter `name`, as a view."""
    here, torch = _layouts(name, x.ndim)
    return rearrange(x, f"{torch} -> {here}")


def _layouts(name: str, ndim: int) -> tuple[str, str]:
    """Return the axes of a parameter here and in torch; `ndim`, of either array, is 2 for a linear layer."""
    *modules, leaf = name.split(".")
    if leaf not in ("kernel", *LORA_FACTORS) or ndim < 2:
        return "...", "..."
    if ndim == 2:
        return "i o", "o i"
    return "h w i o", "o i h w 1" if any(module in TEMPORAL for module in modules) else "o i h w"


def _shape(rule: Callable, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape after `to_torch` or `from_torch`, computed on an array that takes no memory."""
    return rule(name, np.broadcast_to(np.int8(0), shape)).shape


# --- from torch ------------------------------------------------------------------------------------------------------


def from_released(
    source: str, destination: str | Path, overwrite: bool = False, log: Log = print, base: str | None = None,
    unet: str = "unet",
) -> None:  # fmt: skip
    """Convert a released checkpoint to an Orbax checkpoint, in the dtypes of the source.

    Args:
      source: a folder in the released layout, or a Hugging Face name ("owner/name" or "owner/name@revision").
      destination: the folder to make; it appears when it is complete.
      log: receives progress and whatever is ignored, a line each.
      base: like `source`, the checkpoint of the components that it lacks.
      unet: name of the source's folder with the UNet.
    Raises:
      InputError: the source is unreadable or does not fit the networks (with a line per tensor), or the destination
        exists or cannot be written.
    """
    orbax.check_destination(destination, overwrite)
    folder = hub.find(source, log, unet)
    config, tensors = diffusers_layout.read(folder, log, base and hub.find(base, log), unet)
    rows = f", domain table of {config.unet.context_vocab_size} rows" if config.unet.context_embedding_type else ""
    log(f"{folder}: {'Stable Video Diffusion' if config.kind == 'svd' else f'{config.kind} renderer'}{rows}")
    abstract = abstract_params(config)
    matched = {name: match_tensors(tree, tensors[name], f"{folder}/{name}") for name, tree in abstract.items()}
    if "lora" in tensors:
        matched["lora"] = match_lora(abstract["unet"], tensors["lora"], f"{folder}/lora")
    num_bytes = sum(tensor.nbytes for leaves in matched.values() for tensor in leaves.values())
    files.require_space(expand_home(destination).absolute(), num_bytes, "free space, or give a folder on another disk")

    def load(component: str) -> dict:
        log(_summary(component, matched[component]))
        # Copy to the new layout one tensor at a time, so that only one is in memory twice.
        leaves = matched[component].items()
        return unflatten({name: np.asarray(from_torch(name, tensor.read()), order="C") for name, tensor in leaves})

    orbax.save(destination, config, {name: functools.partial(load, name) for name in matched}, overwrite)
    log(f"wrote {destination}")


def match_tensors(abstract: dict, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return the tensor of each parameter of a network, by our dotted path.

    Args:
      abstract: nested dict of shapes.
      tensors: by torch name.
      where: the tensors' folder, for errors.
    Raises:
      InputError: tensors are missing, left over or misshapen; lists up to MAX_LINES of them.
    """
    remaining = dict(tensors)
    matched, problems = {}, []
    for name, leaf in flatten(abstract).items():
        foreign, shape = torch_name(name), _shape(to_torch, name, leaf.shape)
        tensor = remaining.pop(foreign, None)
        if tensor is None:
            problems.append(f"missing: {foreign} {list(shape)}")
        elif tensor.shape != shape:
            problems.append(f"misshapen: {foreign} {list(tensor.shape)}, expected {list(shape)}")
        else:
            matched[name] = tensor
    problems += [f"left over: {foreign} {list(tensor.shape)}" for foreign, tensor in remaining.items()]
    _raise_if_any(problems, where)
    return matched


def match_lora(abstract: dict, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return a LoRA's tensors by our dotted path; raise InputError unless all fit kernels of the UNet `abstract`."""
    matched, shapes, problems = {}, {}, []
    for foreign, tensor in tensors.items():
        name = foreign.removeprefix(LORA_PREFIX).removesuffix(".weight")
        if name.rpartition(".")[2] not in (*LORA_FACTORS, "alpha") or LORA_PREFIX + torch_name(name) != foreign:
            problems.append(f"left over: {foreign} {list(tensor.shape)}")
            continue
        try:
            shapes[name] = jax.ShapeDtypeStruct(_shape(from_torch, name, tensor.shape), tensor.dtype)
            matched[name] = tensor
        except EinopsError:
            problems.append(f"misshapen: {foreign} {list(tensor.shape)}")
    _raise_if_any(problems, where)
    # Merging shapes alone takes no memory and raises for factors that fit no kernel.
    jax.eval_shape(functools.partial(lora.merge, scale=1.0), abstract, unflatten(shapes))
    return matched


def _raise_if_any(problems: list[str], where: str) -> None:
    if problems:
        more = [f"and {len(problems) - MAX_LINES} more"] if len(problems) > MAX_LINES else []
        raise InputError(f"{where}: {len(problems)} tensors do not fit the network", [*problems[:MAX_LINES], *more])


def _summary(component: str, tensors: Mapping[str, Tensor]) -> str:
    size = sum(math.prod(tensor.shape) for tensor in tensors.values())
    dtypes = ", ".join(sorted({str(tensor.dtype) for tensor in tensors.values()}))
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if ".lora_A" in name or ".lora.down" in name}
    rank = f", rank {', '.join(map(str, sorted(ranks)))}" if ranks else ""
    return f"{component}: {size:,} parameters in {len(tensors)} tensors, {dtypes}{rank}"


# --- to torch --------------------------------------------------------------------------------------------------------


def to_released(
    source: str | Path, destination: str | Path, overwrite: bool = False, dtype: str | None = None, log: Log = print
) -> None:
    """Convert an Orbax checkpoint to the released layout.

    Args:
      destination: the folder to make; it appears when it is complete.
      dtype: to store all weights in; None keeps the stored dtypes.
    Raises:
      InputError: the source is not a checkpoint, a weight is too large for `dtype`, or the destination exists or cannot
        be written.
    """
    config = orbax.load_config(source)
    with files.atomic_dir(destination, overwrite, diffusers_layout.is_released) as folder:
        for name, values in diffusers_layout.json_files(config).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
        for name in orbax.components(source):
            (folder / name).mkdir(exist_ok=True)
            tensors = _torch_tensors(source, config, name, dtype)
            log(_summary(name, tensors))
            torch_files.write(folder / name / f"{diffusers_layout.STEMS[name]}.safetensors", tensors)
    log(f"wrote {destination}")


def _torch_tensors(source: str | Path, config: RendererConfig, component: str, dtype: str | None) -> dict[str, Tensor]:
    """Load a component; return its tensors by torch name, in torch's layout, made one by one."""
    arrays = flatten(orbax.load(source, component, abstract_params(config).get(component), dtype))
    prefix = LORA_PREFIX if component == "lora" else ""

    def read(name: str) -> np.ndarray:
        array = np.asarray(arrays[name])
        if dtype is not None and not np.isfinite(array).all():
            raise InputError(f"{source}: {component}.{name} overflows {dtype}; choose bfloat16 or float32")
        return to_torch(name, array)

    return {
        prefix + torch_name(name): Tensor(_shape(to_torch, name, x.shape), x.dtype, functools.partial(read, name))
        for name, x in arrays.items()
    }
