"""Clips on disk for training: frames of every label at one size, the light they were made under, and augmentation.

A clip is a folder of G-buffers and `rgb` as `gbuffers.py` finds them, with a `light.json` where the light is wanted.
The images of the light count as labels too: `env_ldr`, `env_log` and `env_nrm`.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32

from drender.config import ENVIRONMENT_LABELS
from drender.data.augment import Augmentation, AugmentationConfig
from drender.errors import InputError
from drender.lighting.environment import load_environment
from drender.lighting.light_file import Light, read_light
from drender.lighting.projection import project
from drender.media.encodings import renormalize_normals
from drender.media.gbuffers import GBufferClip, find_gbuffer_clips
from drender.media.resize import center_crop, fit_cover
from drender.sharding import on_cpu

# Cube maps, of 19 MB, that are kept: neighbouring rows may come from one clip or one sky.
CUBES = 8


# ---- Light ----


@functools.lru_cache(CUBES)
def _cube(path: Path, rotation: float, flip: bool, strength: float) -> jax.Array:
    return load_environment(path, rotation, flip, strength)


# ---- Clips ----


@dataclass(frozen=True)
class LabeledClip:
    """A clip of `open_clips`. Frames are counted through its chunks, one after the other."""

    buffers: GBufferClip

    @property
    def name(self) -> str:
        return self.buffers.name

    @property
    def folder(self) -> Path:
        return self.buffers.folder

    @property
    def num_frames(self) -> int:
        return sum(self.buffers.chunks.values())

    @property
    def longest(self) -> int:
        """Frames of its longest chunk."""
        return max(self.buffers.chunks.values())

    def windows(self, length: int) -> list[range]:
        """Where `length` consecutive frames may begin: per chunk that is long enough.

        No window spans two chunks: an inverse renderer estimated each on its own, with a depth of its own scale.
        """
        starts, first = [], 0
        for frames in self.buffers.chunks.values():
            if frames >= length:
                starts.append(range(first, first + frames - length + 1))
            first += frames
        return starts

    def read(self, label: str, frames: Sequence[int] | slice, size: tuple[int, int]) -> Float32[np.ndarray, "f h w 3"]:
        """Some frames of one label in [0, 1], scaled to cover `size` and cropped to it around the centre.

        InputError naming a file that cannot be read.
        """
        of_frame = [(chunk, i) for chunk, count in self.buffers.chunks.items() for i in range(count)]
        chosen = of_frame[frames] if isinstance(frames, slice) else [of_frame[i] for i in frames]
        return np.stack([_fitted(label, self.buffers.read(label, chunk, i, i + 1)[0], size) for chunk, i in chosen])

    def light(self) -> Light:
        """Read the clip's `light.json`; InputError as in `read_light`."""
        return read_light(self.folder, self.num_frames)

    def environment(
        self,
        size: tuple[int, int],
        frames: Sequence[int] | slice = slice(None),
        augmentation: Augmentation = Augmentation(),
    ) -> dict[str, Float32[np.ndarray, "f H W 3"]]:
        """The maps `env_ldr`, `env_log` and `env_nrm` of some frames, for (H, W) = `size`."""
        light, n = self.light(), self.num_frames
        frames = np.arange(n)[frames if isinstance(frames, slice) else list(frames)]
        rotations = light.rotations(n)[frames]
        angles = np.zeros(n, np.float32) if light.angles is None else np.array(light.angles, np.float32)
        angles = angles[frames] + np.float32(np.deg2rad(augmentation.turn))
        if (rotations == rotations[:1]).all() and (angles == angles[:1]).all():
            rotations, angles = rotations[:1], angles[:1]  # lit alike: one projection does for all
        with on_cpu():
            strength = light.strength * augmentation.intensity
            cube = _cube(self.folder / light.environment, light.rotation, light.flip, strength)
            maps = {name: np.asarray(images) for name, images in project(cube, size, rotations, angles).items()}
        maps["env_ldr"], maps["env_log"] = (augmentation.image(x, maps[x]) for x in ("env_ldr", "env_log"))
        return {name: np.broadcast_to(images, (len(frames), *size, 3)) for name, images in maps.items()}

    def images(
        self,
        labels: Sequence[str],
        frames: slice,
        size: tuple[int, int],
        environment_size: tuple[int, int],
        augmentation: Augmentation = Augmentation(),
    ) -> dict[str, Float32[np.ndarray, "f _h _w 3"]]:
        """The frames of all `labels`, augmented alike; the environment's images have a size of their own."""
        images = {}
        if any(label in ENVIRONMENT_LABELS for label in labels):
            images = self.environment(environment_size, frames, augmentation)
        for label in labels:
            if label not in images:
                images[label] = augmentation.image(label, self.read(label, frames, size))
        return {label: images[label] for label in labels}


def _fitted(label: str, image: Float32[np.ndarray, "h w 3"], size: tuple[int, int]) -> Float32[np.ndarray, "H W 3"]:
    with on_cpu():
        fitted = fit_cover(image, size, multiple=1)
    if label == "normal" and fitted.shape != image.shape:
        fitted = renormalize_normals(fitted)
    return center_crop(fitted, size)


def open_clips(path: str | Path, labels: Sequence[str]) -> list[LabeledClip]:
    """The clips in a folder, all of whose frames have all `labels`.

    InputError if there is none, and for one that lacks a label, or the light where a label is the environment's.
    """
    stored = [label for label in labels if label not in ENVIRONMENT_LABELS]
    # Where nothing but the light is wanted, `rgb` tells how many frames there are.
    found = find_gbuffer_clips(path, stored or ["rgb"], labels=stored or ["rgb"])
    clips = [LabeledClip(clip) for clip in found]
    if len(stored) < len(labels):
        for clip in clips:
            clip.light()
    return clips


@dataclass(frozen=True)
class ClipDataset:
    """The clips of a folder as a source of training data.

    Attributes:
      path: of the folder.
      clips: from `open_clips`.
      size, environment_size: height and width of the images.
      augmentation: what is drawn from for every row.
    """

    path: str
    clips: list[LabeledClip]
    size: tuple[int, int]
    environment_size: tuple[int, int]
    augmentation: AugmentationConfig = AugmentationConfig()

    def __len__(self) -> int:
        return len(self.clips)

    def require(self, frames: int) -> None:
        """InputError naming the first clip without so many consecutive frames."""
        for clip in self.clips:
            if clip.longest < frames:
                raise InputError(
                    f"{self.path}: clip {clip.name!r} has {clip.longest} frames, fewer than {frames}; "
                    "lower data.frames, or take it away"
                )

    def draw(
        self, index: int, frames: int, labels: Sequence[str], rng: np.random.Generator
    ) -> dict[str, Float32[np.ndarray, "f _h _w 3"]]:
        """Consecutive frames of one clip, augmented: both drawn at random."""
        clip = self.clips[index]
        starts = [start for window in clip.windows(frames) for start in window]
        start = int(rng.choice(starts))
        augmentation = self.augmentation.draw(rng)
        return clip.images(labels, slice(start, start + frames), self.size, self.environment_size, augmentation)
