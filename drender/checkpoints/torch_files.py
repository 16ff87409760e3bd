"""Weight files of torch without torch: safetensors, whole or sharded, read and written one tensor at a time.

Legacy pickles (`.bin`) are read too, where torch is installed.
"""

import functools
import itertools
import json
import math
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from drender.errors import InputError, first_line
from drender.files import read_json

# Importing JAX registers bfloat16 with numpy, so that safetensors can return it.
DTYPES = {"F32": np.dtype("float32"), "BF16": np.dtype(jnp.bfloat16), "F16": np.dtype("float16")}
# A folder may hold the same weights in several forms (extension, variant): the first of these is read.
FORMS = tuple(itertools.product(("safetensors", "bin"), ("", "fp16", "bf16")))


@dataclass(frozen=True)
class Tensor:
    """A tensor that is not yet in memory; `read` loads it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


# --- which files -----------------------------------------------------------------------------------------------------


def find_weights(names: Collection[str], stem: str) -> str | None:
    """Return the file that holds the weights `stem` in the best form: one file, or the index of its shards."""
    indices = {_index_form(name, stem): name for name in sorted(names)}
    for extension, variant in FORMS:
        whole = ".".join(filter(None, (stem, variant, extension)))
        if whole in names:
            return whole
        if (extension, variant) in indices:
            return indices[extension, variant]
    return None


def _index_form(name: str, stem: str) -> tuple[str, str] | None:
    """Return (extension, variant) of an index of shards, or None for another file.

    Libraries order the words differently: `.safetensors.index.fp16.json`, `.fp16.safetensors.index.json`, ….
    """
    words = name.removeprefix(f"{stem}.").split(".")
    if not name.startswith(f"{stem}.") or words[-1] != "json" or "index" not in words:
        return None
    variant = ".".join(word for word in words if word not in ("safetensors", "bin", "index", "json"))
    return "bin" if "bin" in words else "safetensors", variant


def weight_files(folder: Path, stem: str) -> list[Path]:
    """Return the files of the weights `stem`, shards in the order of their names; raise InputError if one is absent."""
    names = sorted(path.name for path in folder.iterdir())
    if (name := find_weights(names, stem)) is None:
        shard = next((file for file in names if re.fullmatch(rf"{stem}.*-of-\d+\.(safetensors|bin)", file)), None)
        missing = f"{stem}.safetensors.index.json beside {shard}" if shard else f"{stem}.safetensors"
        raise InputError(f"{folder}: no weights; expected {missing}")
    if not name.endswith(".json"):
        return [folder / name]
    shards = [folder / shard for shard in shard_names(folder / name)]
    for shard in shards:
        if not shard.is_file():
            raise InputError(f"{shard}: missing, although {name} lists it; download it again")
    return shards


def shard_names(index: Path) -> list[str]:
    """Return the file names that an index of shards lists; InputError if it is damaged or they lie elsewhere."""
    try:
        names = sorted(set(read_json(index, "download it again")["weight_map"].values()))
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{index}: not an index of weight files; download it again") from None
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[^/\\]+\.(safetensors|bin)", name):
            raise InputError(f"{index}: expected names of weight files beside it, got {name!r}; download it again")
    return names


# --- reading ---------------------------------------------------------------------------------------------------------


def read(folder: Path, stem: str) -> dict[str, Tensor]:
    """Return all tensors of the weights `stem` in a folder, by name.

    Raises:
      InputError: no such weights, a missing shard, a damaged file, or a tensor whose dtype is not one of `DTYPES`.
    """
    tensors = {}
    for file in weight_files(folder, stem):
        tensors |= _read_pickle(file) if file.suffix == ".bin" else _read_safetensors(file)
    return tensors


def read_metadata(folder: Path, stem: str) -> dict[str, str]:
    """Return the free-form entries in the headers of safetensors files; InputError as in `read`."""
    metadata = {}
    for file in weight_files(folder, stem):
        if file.suffix == ".safetensors":
            metadata |= _open_safetensors(file).metadata() or {}
    return metadata


def _open_safetensors(file: Path) -> safe_open:
    try:
        return safe_open(file, "numpy")  # checks the header and every offset
    except (SafetensorError, OSError) as error:
        if file.stat().st_size < 1000 and b"git-lfs" in file.read_bytes():
            raise InputError(f"{file}: a pointer of Git LFS, not the weights; run `git lfs pull`") from None
        raise InputError(f"{file}: damaged or not a safetensors file ({error}); download it again") from None


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    handle, size, tensors = _open_safetensors(file), file.stat().st_size, {}

    def load(name: str) -> np.ndarray:
        if file.stat().st_size != size:  # reading the mapped file would crash, or give zeros
            raise InputError(f"{file}: damaged (its size has changed); download it again")
        try:
            return handle.get_tensor(name)
        except ValueError as error:  # numpy refuses shapes that the library accepts, such as 0×2⁶³
            raise InputError(f"{file}: damaged ({name}: {error}); download it again") from None

    for name in handle.keys():  # noqa: SIM118 (the handle is not iterable)
        entry = handle.get_slice(name)
        if entry.get_dtype() not in DTYPES:
            raise InputError(f"{file}: {name} is {entry.get_dtype()}; expected {', '.join(DTYPES)}")
        tensors[name] = Tensor(tuple(entry.get_shape()), DTYPES[entry.get_dtype()], functools.partial(load, name))
    return tensors


def _read_pickle(file: Path) -> dict[str, Tensor]:
    """Return all tensors of a state dict that torch saved; raise InputError without torch, or for other objects."""
    try:
        import torch
    except ImportError:
        raise InputError(f"{file}: a pickle, which only torch can read; install torch, or get safetensors") from None
    codes = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
    integers = {2: torch.int16, 4: torch.int32}  # torch does not convert bfloat16 to numpy: pass its bits
    try:
        # weights_only: other pickles may run any program.
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        dtypes = {name: DTYPES[codes[tensor.dtype]] for name, tensor in loaded.items()}
    except Exception as error:
        # torch's own message advises to run the pickle's code: weights_only=False.
        unsafe = isinstance(error, pickle.UnpicklingError)
        reason = "its pickle holds more than tensors" if unsafe else first_line(error)
        raise InputError(f"{file}: damaged or not a state dict of weights ({reason}); get safetensors") from None

    def load(name: str) -> np.ndarray:
        bits = loaded[name].contiguous().view(integers[dtypes[name].itemsize])
        return bits.numpy().view(dtypes[name])

    return {name: Tensor(tuple(t.shape), dtypes[name], functools.partial(load, name)) for name, t in loaded.items()}


# --- writing ---------------------------------------------------------------------------------------------------------


def write(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file with one tensor in memory at a time; the library needs all of them at once.

    The file equals the library's byte for byte: tensors in the order of `DTYPES`, the widest first so that all are
    aligned, then of their names.
    """
    codes = {dtype: code for code, dtype in DTYPES.items()}
    ranks = {dtype: rank for rank, dtype in enumerate(codes)}
    ordered = dict(sorted(tensors.items(), key=lambda item: (ranks[item[1].dtype], item[0])))
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in ordered.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        for tensor in ordered.values():
            handle.write(np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8))
