"""Our checkpoints: a folder with `config.json` beside one Orbax directory per component.

A component is a flat dictionary on disk, from the dotted path of a parameter ("down_blocks.0.resnets.1.conv1.kernel")
to its array. Components are saved and loaded one at a time, so that memory is bounded by the largest.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from drender import files
from drender.config import RendererConfig, from_dict, to_dict
from drender.errors import InputError, first_line
from drender.files import expand_home
from drender.models.params import flatten, unflatten

COMPONENTS = ("unet", "vae", "env_encoder", "lora")
CONFIG = "config.json"
# Bytes that loading holds beside the arrays themselves.
READ_AHEAD = 2**30


def save(
    path: str | Path,
    config: RendererConfig,
    components: Mapping[str, dict | Callable[[], dict]],
    overwrite: bool = False,
) -> None:
    """Writes a checkpoint; `path` appears only when it is complete.

    Args:
      path: the folder to make.
      config: what the components are.
      components: per name of `COMPONENTS` a nested dict of arrays, or a function that makes it when its turn comes.
      overwrite: replace the checkpoint that is at `path`, once the new one is complete.
    Raises:
      InputError: `path` exists already, or cannot be written.
    """
    with files.atomic_dir(path, overwrite, _is_checkpoint) as folder:
        (folder / CONFIG).write_text(json.dumps(to_dict(config), indent=2) + "\n")
        for name, tree in components.items():
            # No name holds the tree here: it is let go before the next one is made.
            _save_arrays(folder / name, flatten(tree() if callable(tree) else tree))


def _save_arrays(folder: Path, arrays: dict[str, Any]) -> None:
    # Orbax would find out too, but in a hundred lines.
    if shutil.disk_usage(folder.parent).free < sum(array.nbytes for array in arrays.values()):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    context = ocp.Context()
    # Weights hardly compress, and uncompressed arrays are written from where they lie instead of from copies.
    context.array.saving.use_compression = False
    context.memory.deepcopy_host_arrays = False
    try:
        with context:
            writing = ocp.save_async(folder, arrays)
            try:
                writing.result()
            except KeyboardInterrupt:
                writing.result()  # else its threads go on while the folder is removed
                raise
    except ValueError as error:  # TensorStore's word for a full disk and the like
        raise OSError(first_line(error)) from error


def load(path: str | Path, component: str, abstract: dict | None = None, dtype: Any = None) -> dict:
    """The parameters of one component, as jax arrays.

    Args:
      path: a checkpoint.
      component: one of `components(path)`.
      abstract: nested dict of `jax.ShapeDtypeStruct` that the parameters must fit; where its leaves have a sharding,
        that places them, else they go to the default device. None: take what is there, numbers in paths become ints.
      dtype: cast to it while loading; None keeps what is stored.
    Raises:
      InputError: no such checkpoint or component, a damaged one, or parameters that do not fit.
    """
    load_config(path)
    folder = expand_home(path).resolve() / component
    if not folder.is_dir():
        raise InputError(f"{path}: no component {component!r}; it has {', '.join(components(path))}")
    stored = _stored(folder)
    abstract = unflatten(stored) if abstract is None else abstract
    leaves = flatten(abstract)
    shapes = lambda leaves: {name: leaf.shape for name, leaf in leaves.items()}
    _check(folder, shapes(leaves), shapes(stored))
    default = jnp.zeros(()).sharding
    place = lambda leaf: getattr(leaf, "sharding", None) or default
    target = {
        name: jax.ShapeDtypeStruct(leaf.shape, dtype or stored[name].dtype, sharding=place(leaf))
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


def _stored(folder: Path) -> dict[str, Any]:
    """What a component has: things with shape and dtype, by dotted path."""
    try:
        stored = ocp.metadata(folder).metadata
    except Exception as error:
        raise _damaged(folder, error) from error
    if not isinstance(stored, dict):
        raise _damaged(folder, ValueError("its metadata is unreadable"))
    return stored


def load_config(path: str | Path) -> RendererConfig:
    """The configuration of a checkpoint.

    Raises:
      InputError: no such folder, or no checkpoint of ours.
    """
    folder = expand_home(path)
    if not folder.is_dir():
        raise InputError(f"{path}: no such folder; give one that convert_weights.py wrote")
    if (folder / "model_index.json").is_file():
        raise InputError(f"{path}: made for torch; convert it first: python convert_weights.py {path} DESTINATION")
    file = folder / CONFIG
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no drender checkpoint (it has no {CONFIG}); convert_weights.py makes one") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{file}: unreadable ({first_line(error)}); convert the weights again") from None
    return from_dict(RendererConfig, values, str(file))


def components(path: str | Path) -> list[str]:
    """The names of the components that a checkpoint holds."""
    return [name for name in COMPONENTS if (expand_home(path) / name).is_dir()]


def _check(folder: Path, wanted: dict[str, tuple], found: dict[str, tuple]) -> None:
    """InputError naming the first parameter that does not fit, and how many do not."""
    wrong = [name for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name)]
    if wrong:
        name = wrong[0]
        raise InputError(
            f"{folder}: {name} is {found.get(name, 'missing')}, but its configuration asks for "
            f"{wanted.get(name, 'no such parameter')} ({len(wrong)} such); convert the weights again"
        )


def _damaged(folder: Path, error: Exception) -> InputError:
    return InputError(f"{folder}: damaged ({first_line(error)}); convert the weights again")


# --- folders that appear when they are complete ----------------------------------------------------------------------


def check_destination(path: str | Path, overwrite: bool) -> None:
    """Raise InputError unless a checkpoint can be written at `path`: it is free, or may be replaced."""
    files.check_destination(path, overwrite, _is_checkpoint)


def _is_checkpoint(folder: Path) -> bool:
    try:
        load_config(folder)
    except InputError:
        return False
    return True
