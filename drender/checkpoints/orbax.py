"""Checkpoints: a folder with `config.json` beside one Orbax directory per component.

On disk a component is a flat dictionary, from the dotted path of a parameter ("down_blocks.0.resnets.1.conv1.kernel")
to its array. Components are saved and loaded one at a time, so the largest one bounds the memory.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from drender import files
from drender.config import RendererConfig, check_parts
from drender.errors import InputError, first_line, naming
from drender.fields import read_config, to_dict
from drender.files import expand_home
from drender.models.params import flatten, unflatten
from drender.models.registry import NETWORKS

COMPONENTS = ("unet", "vae", "env_encoder", "lora")
CONFIG = "config.json"
# Bytes that loading holds in addition to the arrays.
READ_AHEAD = 2**30


def save(
    path: str | Path,
    config: RendererConfig,
    components: Mapping[str, dict | Callable[[], dict]],
    overwrite: bool = False,
) -> None:
    """Write a checkpoint; `path` appears only when it is complete.

    Args:
      components: per name of `COMPONENTS` a nested dict of arrays, or a function that returns it, called in turn.
      overwrite: replace the checkpoint at `path`, once the new one is complete.
    Raises:
      InputError: `path` exists already, or cannot be written.
    """
    with files.atomic_dir(path, overwrite, _is_checkpoint) as folder:
        (folder / CONFIG).write_text(json.dumps(to_dict(config), indent=2) + "\n")
        for name, tree in components.items():
            # Keep no reference to the tree, so that it is freed before the next one is made.
            _save_arrays(path, folder / name, flatten(tree() if callable(tree) else tree))


def _save_arrays(path: str | Path, folder: Path, arrays: dict[str, Any]) -> None:
    num_bytes = sum(array.nbytes for array in arrays.values())
    files.require_space(expand_home(path).absolute(), num_bytes, "free space, or give a folder on another disk")
    context = ocp.Context()
    # Weights hardly compress, and uncompressed arrays are written without a copy.
    context.array.saving.use_compression = False
    context.memory.deepcopy_host_arrays = False
    try:
        with context:
            response = ocp.save_async(folder, arrays)
            try:
                response.result()
            except KeyboardInterrupt:
                response.result()  # its threads would otherwise write into a folder that is being removed
                raise
    except ValueError as error:  # TensorStore raises it for a full disk, among others
        raise OSError(first_line(error)) from error


def load(
    path: str | Path, component: str, abstract: dict | None = None, dtype: Any = None, stored: dict | None = None
) -> dict:
    """Load the parameters of one component as a nested dict of jax arrays.

    Args:
      abstract: nested dict of `jax.ShapeDtypeStruct` that the parameters must match in shape. Leaves with a sharding
        are placed by it, others on the default device. None accepts any parameters.
      dtype: to cast to while loading; None keeps the stored one.
      stored: result of `stored_arrays`, if it was read before.
    Raises:
      InputError: the checkpoint or component is missing or damaged, or parameters have other shapes.
    """
    load_config(path)
    folder = _component(path, component)
    stored = stored or stored_arrays(folder)
    abstract = unflatten(stored) if abstract is None else abstract
    leaves = flatten(abstract)
    _check_shapes(folder, leaves, stored)
    default = jnp.zeros(()).sharding
    target = {
        name: jax.ShapeDtypeStruct(
            leaf.shape, dtype or stored[name].dtype, sharding=getattr(leaf, "sharding", None) or default
        )
        for name, leaf in leaves.items()
    }
    context = ocp.Context()
    context.memory.read_concurrent_bytes = READ_AHEAD
    try:
        with context:
            arrays = ocp.load(folder, target)
    except Exception as error:
        raise _damaged(folder, error) from error
    return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in leaves])


def _component(path: str | Path, name: str) -> Path:
    folder = expand_home(path).resolve() / name
    if not folder.is_dir():
        raise InputError(f"{path}: no component {name!r}; it has {', '.join(components(path))}")
    return folder


def stored_arrays(folder: Path) -> dict[str, Any]:
    """Return the metadata of a component's arrays, with shape and dtype, by dotted path."""
    try:
        stored = ocp.metadata(folder).metadata
    except Exception as error:
        raise _damaged(folder, error) from error
    if not isinstance(stored, dict):
        raise _damaged(folder, ValueError("unreadable metadata"))
    return stored


def _check_shapes(folder: Path, expected: dict[str, Any], stored: dict[str, Any]) -> None:
    """Raise InputError that names the first parameter of another shape, and counts all of them."""
    shape = lambda leaves, name, absent: tuple(leaves[name].shape) if name in leaves else absent
    names = sorted(expected.keys() | stored.keys())
    wrong = [name for name in names if shape(expected, name, None) != shape(stored, name, None)]
    if wrong:
        problem = f"expected {shape(expected, wrong[0], 'no such parameter')}, got {shape(stored, wrong[0], 'none')}"
        count = f"{len(wrong)} of {len(names)} parameters differ"
        raise InputError(f"{folder}: {wrong[0]}: {problem} ({count}); convert the weights again")


def _damaged(folder: Path, error: Exception) -> InputError:
    return InputError(f"{folder}: damaged ({first_line(error)}); convert the weights again")


def load_config(path: str | Path) -> RendererConfig:
    """Return the configuration of a checkpoint; raise InputError for a missing folder, or one that holds none."""
    folder = expand_home(path)
    if not folder.is_dir():
        raise InputError(f"{path}: no such folder; give a checkpoint, released weights, or a Hugging Face name")
    if (folder / "model_index.json").is_file():
        raise InputError(f"{path}: made for torch; convert it first: drender convert {path} DESTINATION")
    file = folder / CONFIG
    if not file.exists():
        raise InputError(f"{path}: not a drender checkpoint (no {CONFIG}); make one with `drender convert`")
    return read_config(RendererConfig, file, "convert the weights again")


def check_config(path: str | Path, config: RendererConfig) -> dict[str, dict[str, Any]]:
    """Check a checkpoint's configuration before its networks are traced, which takes as long as they are deep.

    Returns:
      `stored_arrays` of each network.
    Raises:
      InputError: a network is missing or has more layers than arrays, or the networks do not fit together.
    """
    file = expand_home(path) / CONFIG
    with naming(file):
        check_parts(config)
    networks = {name: part for name in NETWORKS if (part := getattr(config, name)) is not None}
    stored = {name: stored_arrays(_component(path, name)) for name in networks}
    for name, part in networks.items():
        if part.num_layers > len(stored[name]):
            problem = f"{name} has {part.num_layers} layers or more, but {len(stored[name])} arrays are stored"
            raise InputError(f"{file}: {problem}; convert the weights again")
    return stored


def components(path: str | Path) -> list[str]:
    """Return the names of the components in a checkpoint."""
    return [name for name in COMPONENTS if (expand_home(path) / name).is_dir()]


def check_destination(path: str | Path, overwrite: bool) -> None:
    """Raise InputError unless a checkpoint can be written at `path`: it is free, or may be replaced."""
    files.check_destination(path, overwrite, _is_checkpoint)


def _is_checkpoint(folder: Path) -> bool:
    try:
        load_config(folder)
    except InputError:
        return False
    return True
