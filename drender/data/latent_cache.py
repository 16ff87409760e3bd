"""Sets of cached latents: clips that the frozen VAE has encoded once, for training to read.

    SET/set.json     the manifest: contents, options, and the fingerprint of the VAE
    SET/{label}/     a zarr3 array `[entry, frame, h, w, channel]` of float16, one chunk per entry

An entry is a window of a clip, as it is or augmented; its latents are VAE means, unscaled. TensorStore renames a chunk
into place once it is on the disk, so an entry is complete when each of its chunks exists. Resuming and sharing the
work between processes need no other record.
"""

import hashlib
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

from drender.config import ENVIRONMENT_LABELS, VAEConfig
from drender.data.augment import AugmentationConfig
from drender.data.clips import VALID
from drender.errors import InputError
from drender.fields import bounded, check_ranges, read_config, to_dict
from drender.files import PART, expand_home
from drender.models.params import flatten
from drender.settings import differences

MANIFEST = "set.json"
MAX_ENTRIES = 2**24


@dataclass(frozen=True)
class LatentCacheManifest:
    """The contents of a set's `set.json`.

    Attributes:
      labels: labels of every entry, environment images included. A `valid` is 1 for latents of valid pixels only.
      frames: per entry.
      size, environment_size: height and width of the encoded pixels.
      variants: per window; the first is unchanged, the others are augmented.
      augmentation, seed: distribution and seed of the augmentation.
      dtype: of the VAE's computation.
      vae, weights: configuration of the VAE, and the `fingerprint` of its parameters.
      clips: the first frames of every clip's windows.
    """

    labels: tuple[str, ...] = bounded(items=64)
    frames: int = bounded(at_least=1, at_most=2**16)
    size: tuple[int, int] = bounded(at_least=1, at_most=2**16)
    environment_size: tuple[int, int] = bounded(at_least=1, at_most=2**16)
    variants: int = bounded(at_least=1, at_most=2**16)
    augmentation: AugmentationConfig
    seed: int = bounded(at_least=0)
    dtype: str = bounded()
    vae: VAEConfig
    weights: str = bounded()
    clips: dict[str, tuple[int, ...]]

    def __post_init__(self):
        check_ranges(self)
        starts = [start for windows in self.clips.values() for start in windows]
        if not 1 <= len(starts) * self.variants <= MAX_ENTRIES or min(starts) < 0:
            raise InputError(f"clips: expected 1 to {MAX_ENTRIES} entries, of frames from 0 on; encode the set again")

    @property
    def entries(self) -> list[tuple[str, int, int]]:
        """Clip, first frame and variant of every entry."""
        windows = ((name, first) for name, starts in self.clips.items() for first in starts)
        return [(*window, variant) for window in windows for variant in range(self.variants)]

    def shape(self, label: str) -> tuple[int, int, int]:
        """Return height, width and channels of a frame's latents."""
        height, width = self.environment_size if label in ENVIRONMENT_LABELS else self.size
        channels = 1 if label == VALID else self.vae.latent_channels
        return height // self.vae.downscale, width // self.vae.downscale, channels


def fingerprint(vae: dict) -> str:
    """Return a hash of the VAE's parameters that encode, cast to float32; the decoder does not change latents."""
    digest = hashlib.sha256()
    for name, value in sorted(flatten(vae).items()):
        if not name.startswith("decoder."):
            digest.update(name.encode())
            digest.update(np.asarray(value, np.float32).tobytes())
    return digest.hexdigest()[:16]


# --- writing ---------------------------------------------------------------------------------------------------------


def begin_cache(folder: Path, manifest: LatentCacheManifest) -> None:
    """Create the folder of a set, or accept that of the same set; raise InputError if it holds anything else."""
    if is_latent_cache(folder):
        if changes := differences(to_dict(read_manifest(folder)), to_dict(manifest)):
            problem = f"{folder} holds latents made with another {changes[0]}"
            raise InputError(f"{problem}; give another folder, or the same options")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(path.name[0] != "." for path in folder.iterdir()):
            raise InputError(f"{folder} holds other files and no {MANIFEST}; give another folder")
        # Several processes may begin at once, and only one manifest may count: a link, unlike a rename, replaces none.
        temporary = folder / f".{os.getpid()}{PART}.json"
        temporary.write_text(json.dumps(to_dict(manifest), indent=1) + "\n")
        try:
            os.link(temporary, folder / MANIFEST)
        finally:
            temporary.unlink()
    except FileExistsError:
        begin_cache(folder, manifest)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); give another folder") from error


def make_array(folder: Path, manifest: LatentCacheManifest, label: str) -> ts.TensorStore:
    """Make the array of one label, or open it, for writing."""
    chunk = (manifest.frames, *manifest.shape(label))
    metadata = {
        "shape": [len(manifest.entries), *chunk],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, *chunk]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},  # files, not nested folders
        "data_type": "float16",
        "fill_value": "NaN",
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "zstd", "configuration": {"level": 3, "checksum": True}},
        ],
    }
    return _open_array(folder, label, metadata=metadata, create=True)


def _open_array(folder: Path, label: str, **options: Any) -> ts.TensorStore:
    store = {"driver": "file", "path": f"{folder.resolve() / label}/"}
    try:
        return ts.open({"driver": "zarr3", "kvstore": store, "open": True, **options}).result()
    except (ValueError, OSError) as error:
        raise InputError(f"{folder / label}: no array of this set ({brief(error)}); encode it again") from error


def brief(error: Exception) -> str:
    """Return TensorStore's message without its trailing details."""
    return str(error).partition(" [")[0]


# --- reading ---------------------------------------------------------------------------------------------------------


def is_latent_cache(path: str | Path) -> bool:
    """Whether a folder is a set of latents, complete or not."""
    return (expand_home(path) / MANIFEST).is_file()


def read_manifest(path: str | Path) -> LatentCacheManifest:
    """Read a set's manifest; raise InputError if it is invalid."""
    return read_config(LatentCacheManifest, expand_home(path) / MANIFEST, "encode the set again")


def missing_entries(path: str | Path, manifest: LatentCacheManifest) -> set[int]:
    """Return the entries of which a label is not encoded yet."""
    complete = set(range(len(manifest.entries)))
    for label in manifest.labels:
        folder = Path(path) / label
        names = os.listdir(folder) if folder.is_dir() else []
        complete &= {int(name.split(".")[1]) for name in names if re.fullmatch(r"c\.\d+(\.0){4}", name)}
    return set(range(len(manifest.entries))) - complete


class LatentDataset:
    """A complete set as a source of training data; raises InputError for a damaged one, or one that lacks a label."""

    def __init__(self, path: str, labels: Sequence[str]):
        self.path, self.manifest, folder = path, read_manifest(path), expand_home(path)
        for label in labels:
            if label not in self.manifest.labels:
                raise InputError(f"{path} has no latents of {label!r}; it has {', '.join(self.manifest.labels)}")
        if absent := missing_entries(folder, self.manifest):
            problem = f"{len(absent)} of {len(self.manifest.entries)} entries are not encoded yet"
            raise InputError(f"{path}: {problem}; run the same encode command again")
        self.arrays = {label: _open_array(folder, label) for label in self.manifest.labels}
        counts = [len(starts) * self.manifest.variants for starts in self.manifest.clips.values()]
        self.bounds = [0, *itertools.accumulate(counts)]  # clip i has entries bounds[i] to bounds[i + 1] − 1

    def __len__(self) -> int:
        return len(self.manifest.clips)

    @property
    def names(self) -> list[str]:
        """The names of the clips."""
        return list(self.manifest.clips)

    def has(self, index: int, label: str) -> bool:
        """Whether a clip has a label; all clips of a set have the same."""
        return label in self.manifest.labels

    def masked(self, labels: Sequence[str]) -> bool:
        """Whether the set has a mask."""
        return VALID in self.manifest.labels

    def require(self, frames: int) -> None:
        """Raise InputError if the entries have fewer than `frames` frames."""
        if self.manifest.frames < frames:
            problem = f"{self.path} has {self.manifest.frames} frames per entry, fewer than {frames}"
            raise InputError(f"{problem}; lower data.frames, or encode longer entries")

    def draw(
        self, index: int, frames: int, labels: Sequence[str], rng: np.random.Generator
    ) -> dict[str, Float16[np.ndarray, "f _h _w c"]]:
        """Draw an entry (window and variant) of one clip, and consecutive frames of it."""
        entry = int(rng.integers(self.bounds[index], self.bounds[index + 1]))
        start = int(rng.integers(self.manifest.frames - frames + 1))
        frame_slice = slice(start, start + frames)
        reads = {label: self.arrays[label][entry, frame_slice].read() for label in labels if self.has(index, label)}
        masks = {VALID: np.ones((frames, *self.manifest.shape(VALID)), np.float16)} if VALID in labels else {}
        try:
            return masks | {label: read.result() for label, read in reads.items()}
        except (ValueError, OSError) as error:
            raise InputError(f"{self.path}: {brief(error)}; remove that file and encode the set again") from error
