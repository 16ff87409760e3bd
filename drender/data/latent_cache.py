"""Sets of cached latents: clips that the frozen VAE has encoded once, for training to read.

    SET/set.json     what was encoded, how, and with which VAE
    SET/{label}/     a zarr3 array `[entry, frame, h, w, channel]` of float16, one chunk per entry

An entry is a window of a clip, as it is or augmented; its latents are VAE means, unscaled. TensorStore gives a chunk
its name once all of it is on the disk, so an entry is there when each of its chunks is: a run that is stopped, or that
shares the work with others, needs no other record.
"""

import itertools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from jaxtyping import Float16

from drender.config import ENVIRONMENT_LABELS, VAEConfig, from_dict, to_dict
from drender.data.augment import AugmentationConfig
from drender.errors import InputError
from drender.files import first_difference

SET = "set.json"


@dataclass(frozen=True)
class LatentCacheManifest:
    """What a set holds: the contents of its `set.json`.

    Attributes:
      labels: what is encoded of every entry; the environment's images have labels too.
      frames: per entry.
      size, environment_size: height and width of the pixels that were encoded.
      variants: of every window; the first is as it is, the others are augmented.
      augmentation, seed: what those are drawn from.
      dtype: that the VAE computed in.
      vae, weights: its configuration, and the `fingerprint` of its parameters.
      clips: the first frames of every clip's windows.
    """

    labels: tuple[str, ...]
    frames: int
    size: tuple[int, int]
    environment_size: tuple[int, int]
    variants: int
    augmentation: AugmentationConfig
    seed: int
    dtype: str
    vae: VAEConfig
    weights: str
    clips: dict[str, tuple[int, ...]]

    @property
    def entries(self) -> list[tuple[str, int, int]]:
        """Clip, first frame and variant of every entry."""
        windows = ((name, first) for name, starts in self.clips.items() for first in starts)
        return [(*window, variant) for window in windows for variant in range(self.variants)]

    def shape(self, label: str) -> tuple[int, int, int]:
        """Height, width and channels of a frame's latents."""
        height, width = self.environment_size if label in ENVIRONMENT_LABELS else self.size
        return height // self.vae.downscale, width // self.vae.downscale, self.vae.latent_channels


# ---- Writing ----


def begin(folder: Path, recipe: LatentCacheManifest) -> None:
    """Makes the folder this set's; InputError if it holds something else."""
    if is_set(folder):
        before, now = to_dict(read_recipe(folder)), to_dict(recipe)
        if before != now:
            other = "other clips" if before["clips"] != now["clips"] else f"{first_difference(before, now)}"
            raise InputError(f"{folder} holds latents made with {other}; give another folder, or the same options")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(path.name[0] != "." for path in folder.iterdir()):
            raise InputError(f"{folder} holds other files and no {SET}; give another folder")
        # Several processes may begin at once: each has a name of its own, and all write the same.
        own = folder / f".{os.getpid()}.{SET}"
        own.write_text(json.dumps(to_dict(recipe), indent=1) + "\n")
        os.replace(own, folder / SET)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); give another folder") from error


def create(folder: Path, recipe: LatentCacheManifest, label: str) -> ts.TensorStore:
    """The array of one label, to write to."""
    chunk = (recipe.frames, *recipe.shape(label))
    metadata = {
        "shape": [len(recipe.entries), *chunk],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, *chunk]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},  # files, not deep folders
        "data_type": "float16",
        "fill_value": "NaN",
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "zstd", "configuration": {"level": 3, "checksum": True}},
        ],
    }
    return _open(folder, label, metadata=metadata, create=True)


def _open(folder: Path, label: str, **how: Any) -> ts.TensorStore:
    store = {"driver": "file", "path": f"{folder.resolve() / label}/"}
    try:
        return ts.open({"driver": "zarr3", "kvstore": store, "open": True, **how}).result()
    except (ValueError, OSError) as error:
        raise InputError(f"{folder / label}: no array of this set ({said(error)}); encode it anew") from error


def said(error: Exception) -> str:
    return str(error).partition(" [")[0]


# ---- Reading ----


def is_set(path: str | Path) -> bool:
    """Whether a folder is a set of latents, complete or not."""
    return (Path(path) / SET).is_file()


def read_recipe(path: str | Path) -> LatentCacheManifest:
    """What a set holds; InputError where `set.json` makes no sense."""
    file = Path(path) / SET
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: unreadable ({error}); encode the set anew") from None
    return from_dict(LatentCacheManifest, values, str(file))


def missing(path: str | Path, recipe: LatentCacheManifest) -> set[int]:
    """The entries that a set does not have, or not all of."""
    there = []
    for label in recipe.labels:
        folder = Path(path) / label
        names = os.listdir(folder) if folder.is_dir() else []
        there.append({int(name.split(".")[1]) for name in names if re.fullmatch(r"c\.\d+(\.0){4}", name)})
    return set(range(len(recipe.entries))) - set.intersection(*there)


class LatentDataset:
    """A complete set, as a source of training data.

    Args:
      path: its folder.
      labels: that are wanted of it.
    Raises:
      InputError: a set that is damaged, is not complete or lacks a label.
    """

    def __init__(self, path: str, labels: Sequence[str]):
        self.path, self.recipe = path, read_recipe(path)
        for label in labels:
            if label not in self.recipe.labels:
                raise InputError(f"{path} has no latents of {label!r}; it has {', '.join(self.recipe.labels)}")
        if absent := missing(path, self.recipe):
            raise InputError(
                f"{path}: {len(absent)} of {len(self.recipe.entries)} entries are not encoded yet; "
                "run the command that makes it again"
            )
        self.arrays = {label: _open(Path(path), label) for label in labels}
        counts = [len(starts) * self.recipe.variants for starts in self.recipe.clips.values()]
        self.bounds = [0, *itertools.accumulate(counts)]  # clip i has entries bounds[i] to bounds[i + 1] − 1

    def __len__(self) -> int:
        return len(self.recipe.clips)

    def require(self, frames: int) -> None:
        """InputError if the entries have fewer frames."""
        if self.recipe.frames < frames:
            raise InputError(
                f"{self.path} has {self.recipe.frames} frames per entry, fewer than {frames}; "
                "lower data.frames, or encode longer entries"
            )

    def draw(
        self, index: int, frames: int, labels: Sequence[str], rng: np.random.Generator
    ) -> dict[str, Float16[np.ndarray, "f _h _w c"]]:
        """Consecutive frames of one clip: window and variant, and the frames in it, are drawn at random."""
        entry = int(rng.integers(self.bounds[index], self.bounds[index + 1]))
        start = int(rng.integers(self.recipe.frames - frames + 1))
        reading = {label: self.arrays[label][entry, start : start + frames].read() for label in labels}
        try:
            return {label: latents.result() for label, latents in reading.items()}
        except (ValueError, OSError) as error:
            raise InputError(f"{self.path}: {said(error)}; remove that file and encode the set again") from error
