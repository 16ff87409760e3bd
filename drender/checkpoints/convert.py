"""Weights between the released torch layout and ours, strictly and bit for bit, in both directions.

Modules here bear the released names, so a parameter's torch name and layout follow from its path by one rule:

    ours                                            torch
    ….kernel [in, out]                              ….weight [out, in]
    ….kernel [kh, kw, in, out]                      ….weight [out, in, kh, kw]
    ….kernel [kt, 1, in, out], over time            ….weight [out, in, kt, 1, 1]
    ….scale, ….embedding                            ….weight
    ….bias, ….mix_factor                            the same
    ….lora_A, ….lora_B, ….lora.down, ….lora.up      unet.….lora_A.weight and so on, laid out as kernels are
    ….alpha                                         unet.….alpha

We walk our parameters and look for each in the files: nothing may be missing, left over or of another shape.
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
from drender.checkpoints import diffusers_layout, orbax, torch_files
from drender.checkpoints.diffusers_layout import Log
from drender.checkpoints.torch_files import Tensor
from drender.config import RendererConfig
from drender.errors import InputError
from drender.models import lora
from drender.models.params import abstract_module, flatten, unflatten
from drender.models.registry import NETWORKS

LORA_PREFIX = "unet."
LORA_FACTORS = ("lora_A", "lora_B", "down", "up")
# Modules whose convolutions run over time.
TEMPORAL = ("temporal_res_block", "time_conv_out")
# A report of what does not fit shows as many lines.
MAX_LINES = 20


# --- the rule --------------------------------------------------------------------------------------------------------


def torch_name(name: str) -> str:
    """The torch name of one of our parameters, both as dotted paths; LoRA's without their prefix."""
    module, _, leaf = name.rpartition(".")
    if leaf in LORA_FACTORS:
        return f"{name}.weight"
    return f"{module}.weight" if leaf in ("kernel", "scale", "embedding") else name


def to_torch(name: str, x: np.ndarray) -> np.ndarray:
    """Our parameter `name` in torch's layout; a view."""
    ours, torch = _layouts(name, x.ndim)
    return rearrange(x, f"{ours} -> {torch}")


def from_torch(name: str, x: np.ndarray) -> np.ndarray:
    """Torch's tensor in the layout of our parameter `name`; a view."""
    ours, torch = _layouts(name, x.ndim)
    return rearrange(x, f"{torch} -> {ours}")


def _layouts(name: str, ndim: int) -> tuple[str, str]:
    """The axes of a parameter here and in torch; `ndim` on either side tells a linear layer from a convolution."""
    if not _is_kernel(name) or ndim < 2:
        return "...", "..."
    if ndim == 2:
        return "i o", "o i"
    return "h w i o", "o i h w 1" if _over_time(name) else "o i h w"


def _is_kernel(name: str) -> bool:
    return name.rpartition(".")[2] in ("kernel", *LORA_FACTORS)


def _over_time(name: str) -> bool:
    return any(part in TEMPORAL for part in name.split("."))


def _shape(rule: Callable, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape after `to_torch` or `from_torch`, found on an array that takes no memory."""
    return rule(name, np.broadcast_to(np.int8(0), shape)).shape


# --- torch to ours ---------------------------------------------------------------------------------------------------


def from_released(source: str, destination: str | Path, overwrite: bool = False, log: Log = print) -> None:
    """Converts a released checkpoint to ours, in the dtypes that it has.

    Args:
      source: a folder in the released layout, or a Hugging Face name ("owner/name").
      destination: the folder to make; it appears when it is complete.
      overwrite: replace a checkpoint that is there already.
      log: is told what was found.
    Raises:
      InputError: the source cannot be read or does not fit the networks (then in several lines, one per tensor), or the
        destination exists or cannot be written.
    """
    orbax.check_destination(destination, overwrite)
    folder = diffusers_layout.find(source, log)
    config, tensors = diffusers_layout.read(folder, log)
    rows = f", domain table of {config.unet.context_vocab_size} rows" if config.unet.context_embedding_type else ""
    log(f"{folder}: {'Stable Video Diffusion' if config.kind == 'svd' else f'{config.kind} renderer'}{rows}")
    abstract = {name: abstract_module(NETWORKS[name], getattr(config, name))[1] for name in tensors if name in NETWORKS}
    pulled = {name: match_tensors(tree, tensors[name], f"{folder}/{name}") for name, tree in abstract.items()}
    if "lora" in tensors:
        pulled["lora"] = pull_lora(abstract["unet"], tensors["lora"], f"{folder}/lora")

    def component(name: str) -> dict:
        log(_described(name, pulled[name]))
        return unflatten({path: _read(path, tensor) for path, tensor in pulled[name].items()})

    orbax.save(destination, config, {name: functools.partial(component, name) for name in pulled}, overwrite)
    log(f"wrote {destination}")


def match_tensors(abstract: dict, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensor for each parameter of a network, by our dotted path.

    Args:
      abstract: nested dict of shapes.
      tensors: by torch name.
      where: names the tensors' folder in errors.
    Raises:
      InputError: tensors are missing, left over or misshapen; all are listed, up to MAX_LINES.
    """
    left = dict(tensors)
    pulled, wrong = {}, []
    for name, leaf in flatten(abstract).items():
        foreign, shape = torch_name(name), _shape(to_torch, name, leaf.shape)
        tensor = left.pop(foreign, None)
        if tensor is None:
            wrong.append(f"missing: {foreign} {list(shape)}")
        elif tensor.shape != shape:
            wrong.append(f"misshapen: {foreign} {list(tensor.shape)}, expected {list(shape)}")
        else:
            pulled[name] = tensor
    wrong += [f"left over: {foreign} {list(tensor.shape)}" for foreign, tensor in left.items()]
    if wrong:
        raise _misfit(wrong, where)
    return pulled


def pull_lora(abstract: dict, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of a LoRA by our dotted path, once all are known to fit the UNet's kernels.

    Args are those of `pull`. Raises InputError for a name that is no LoRA's, or factors that fit no kernel.
    """
    pulled, shapes, wrong = {}, {}, []
    for foreign, tensor in tensors.items():
        name = foreign.removeprefix(LORA_PREFIX).removesuffix(".weight")
        if name.rpartition(".")[2] not in (*LORA_FACTORS, "alpha") or LORA_PREFIX + torch_name(name) != foreign:
            wrong.append(f"left over: {foreign} {list(tensor.shape)}")
            continue
        try:
            shapes[name] = jax.ShapeDtypeStruct(_shape(from_torch, name, tensor.shape), tensor.dtype)
            pulled[name] = tensor
        except EinopsError:
            wrong.append(f"misshapen: {foreign} {list(tensor.shape)}")
    if wrong:
        raise _misfit(wrong, where)
    # Merging shapes, which takes no memory, finds what does not fit.
    jax.eval_shape(functools.partial(lora.merge, scale=1.0), abstract, unflatten(shapes))
    return pulled


def _read(name: str, tensor: Tensor) -> np.ndarray:
    return np.asarray(from_torch(name, tensor.read()), order="C")


def _misfit(wrong: list[str], where: str) -> InputError:
    lines = [f"{where}: {len(wrong)} tensors do not fit the network", *wrong[:MAX_LINES]]
    if len(wrong) > MAX_LINES:
        lines.append(f"and {len(wrong) - MAX_LINES} more")
    return InputError(lines[0], lines[1:])


def _described(name: str, tensors: Mapping[str, Tensor]) -> str:
    size = sum(math.prod(tensor.shape) for tensor in tensors.values())
    dtypes = ", ".join(sorted({str(tensor.dtype) for tensor in tensors.values()}))
    ranks = {tensor.shape[0] for path, tensor in tensors.items() if path.endswith((".lora_A", ".down"))}
    rank = f", rank {', '.join(map(str, sorted(ranks)))}" if ranks else ""
    return f"{name}: {size:,} parameters in {len(tensors)} tensors, {dtypes}{rank}"


# --- ours to torch ---------------------------------------------------------------------------------------------------


def to_released(source: str | Path, destination: str | Path, overwrite: bool = False, log: Log = print) -> None:
    """Converts a checkpoint of ours to the released layout, in the dtypes that it has.

    Args are those of `from_released`, with source and destination in each other's place.

    Raises:
      InputError: the source is no checkpoint of ours, or the destination exists or cannot be written.
    """
    config = orbax.load_config(source)
    with files.atomic_dir(destination, overwrite, diffusers_layout.is_released) as folder:
        for name, values in diffusers_layout.json_files(config).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
        for name in orbax.components(source):
            (folder / name).mkdir(exist_ok=True)
            _write(folder / name / f"{diffusers_layout.STEMS[name]}.safetensors", source, config, name, log)
    log(f"wrote {destination}")


def _write(file: Path, source: str | Path, config: RendererConfig, component: str, log: Log) -> None:
    if component == "lora":
        abstract, prefix = None, LORA_PREFIX
    else:
        abstract, prefix = abstract_module(NETWORKS[component], getattr(config, component))[1], ""
    arrays = flatten(orbax.load(source, component, abstract))
    read = lambda name: to_torch(name, np.asarray(arrays[name]))
    tensors = {
        name: Tensor(_shape(to_torch, name, x.shape), np.dtype(x.dtype), functools.partial(read, name))
        for name, x in arrays.items()
    }
    log(_described(component, tensors))
    torch_files.write(file, {prefix + torch_name(name): tensor for name, tensor in tensors.items()})
