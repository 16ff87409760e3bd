"""Torch's weight files without torch: safetensors, one file or shards, read and written one tensor at a time.

Legacy pickles (`.bin`) are read too, where torch is installed.
"""

import functools
import json
import math
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from drender.errors import InputError, first_line

DTYPES = {"F32": np.dtype("float32"), "BF16": np.dtype(jnp.bfloat16), "F16": np.dtype("float16")}
# A folder may hold the same weights in several forms, here with the best first; each may be cut into shards, which an
# index then lists.
FORMS = (("safetensors", ""), ("safetensors", ".fp16"), ("bin", ""), ("bin", ".fp16"))


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file, or one that is to be written; `read` brings it into memory."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read(folder: Path, stem: str) -> dict[str, Tensor]:
    """All tensors of the weights `stem` in a folder.

    Raises:
      InputError: no such weights, a missing shard, a damaged file, or a tensor of another dtype than `DTYPES`.
    """
    found = best([path.name for path in folder.iterdir()], stem)
    if not found:
        raise InputError(f"{folder}: no weights; expected {stem}.safetensors")
    first = folder / found[0]
    tensors = {}
    for file in _shards(first) if first.suffix == ".json" else [first]:
        if not file.is_file():
            raise InputError(f"{file}: missing, though {first.name} lists it; download it again")
        tensors |= read_pickle(file) if file.suffix == ".bin" else _read_safetensors(file)
    return tensors


def best(names: list[str], stem: str) -> list[str]:
    """The files that hold the weights `stem` in the best form that there is: one file, or an index and its shards."""
    for extension, variant in FORMS:
        whole, index = f"{stem}{variant}.{extension}", f"{stem}.{extension}.index{variant}.json"
        if whole in names:
            return [whole]
        if index in names:
            shard = re.compile(rf"{re.escape(stem + variant)}-\d+-of-\d+\.{extension}")
            return [index, *filter(shard.fullmatch, names)]
    return []


def _shards(index: Path) -> list[Path]:
    try:
        return [index.parent / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{index}: not an index of weight files; download it again") from None


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, "numpy"):  # checks the header and every offset
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: damaged or no safetensors file ({error}); download it again") from None
    with open(file, "rb") as handle:
        (size,) = struct.unpack("<Q", handle.read(8))
        header = json.loads(handle.read(size))
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise InputError(f"{file}: {name} is {entry['dtype']}; the weights must be {', '.join(DTYPES)}")
        shape, dtype, offset = tuple(entry["shape"]), DTYPES[entry["dtype"]], 8 + size + entry["data_offsets"][0]
        tensors[name] = Tensor(shape, dtype, functools.partial(_read_array, file, shape, dtype, offset))
    return tensors


def _read_array(file: Path, shape: tuple[int, ...], dtype: np.dtype, offset: int) -> np.ndarray:
    # As bytes, because numpy reads no bfloat16. Not a memory map: its pages would stay in memory beside the copy that
    # every change of layout makes.
    try:
        data = np.fromfile(file, np.uint8, math.prod(shape) * dtype.itemsize, offset=offset)
        return data.view(dtype).reshape(shape)
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from None


def read_pickle(file: Path) -> dict[str, Tensor]:
    """All tensors of a state dict that torch saved.

    Raises:
      InputError: torch is not installed, a damaged file, one that holds anything else, or a tensor of another dtype
        than `DTYPES`.
    """
    try:
        import torch
    except ImportError:
        raise InputError(f"{file}: a pickle, which only torch can read; install torch, or get safetensors") from None
    kinds = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
    bits = {2: torch.int16, 4: torch.int32}  # numpy has no bfloat16 to share with torch, but integers
    try:
        # weights_only: else a pickle may run any program.
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        dtypes = {name: DTYPES[kinds[tensor.dtype]] for name, tensor in loaded.items()}
    except Exception as error:
        raise InputError(f"{file}: damaged or no state dict of weights ({first_line(error)})") from None

    def array(name: str) -> np.ndarray:
        dtype = dtypes[name]
        return loaded[name].contiguous().view(bits[dtype.itemsize]).numpy().view(dtype)

    return {name: Tensor(tuple(t.shape), dtypes[name], functools.partial(array, name)) for name, t in loaded.items()}


def write(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file, with one tensor in memory at a time.

    These files equal those of the safetensors library byte for byte: tensors are in the order of DTYPES, the widest
    first so that all are aligned, then of their names.
    """
    codes = {dtype: code for code, dtype in DTYPES.items()}
    names = sorted(tensors, key=lambda name: (list(codes).index(tensors[name].dtype), name))
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        code = codes[tensors[name].dtype]
        header[name] = {"dtype": code, "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            handle.write(np.ascontiguousarray(tensors[name].read()).reshape(-1).view(np.uint8))
