"""Clips on disk for training: frames of every label at one size, and the light they were made under.

A clip is a folder of G-buffers and `rgb` in a layout of `drender.media.gbuffers`. Where the light is needed it has a
`light.json` too. The environment images `env_ldr`, `env_log` and `env_nrm` count as labels.
"""

import functools
import warnings
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

Size = tuple[int, int]  # height and width

# Cube maps to keep, of 19 MB each: neighboring rows may share a clip or a sky.
MAX_CACHED_CUBES = 8


@functools.lru_cache(MAX_CACHED_CUBES)
def _load_cube(path: Path, rotation: float, flip: bool, strength: float) -> jax.Array:
    return load_environment(path, rotation, flip, strength)


# --- a clip ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabeledClip:
    """A clip of `open_clips`. Frames are numbered through its chunks, one after the other."""

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
        """The number of frames of the longest chunk."""
        return max(self.buffers.chunks.values())

    def windows(self, length: int) -> list[range]:
        """Return the possible first frames of `length` consecutive frames, one range per chunk that is long enough.

        No window spans two chunks: an inverse renderer estimates each chunk on its own, with its own depth scale.
        """
        starts, first = [], 0
        for num_frames in self.buffers.chunks.values():
            if num_frames >= length:
                starts.append(range(first, first + num_frames - length + 1))
            first += num_frames
        return starts

    def read(self, label: str, frames: Sequence[int] | slice, size: Size) -> Float32[np.ndarray, "f h w 3"]:
        """Read frames of one label, in [0, 1], scaled to cover `size` and center-cropped to it.

        Raises:
          InputError: a file that cannot be read.
        """
        return np.stack([_fit(label, image, size) for image in self._read_stored(label, frames)])

    def _read_stored(self, label: str, frames: Sequence[int] | slice) -> list[Float32[np.ndarray, "h w 3"]]:
        """Read frames of one label at the size on disk."""
        places = [(chunk, i) for chunk, num_frames in self.buffers.chunks.items() for i in range(num_frames)]
        chosen = places[frames] if isinstance(frames, slice) else [places[i] for i in frames]
        return [self.buffers.read(label, chunk, i, i + 1)[0] for chunk, i in chosen]

    def light(self) -> Light:
        """Read the clip's `light.json`; raise InputError as `read_light` does."""
        return read_light(self.folder, self.num_frames)

    def environment(
        self,
        size: Size,
        frames: Sequence[int] | slice = slice(None),
        augmentation: Augmentation = Augmentation(),
    ) -> dict[str, Float32[np.ndarray, "f H W 3"]]:
        """Return the environment images `env_ldr`, `env_log` and `env_nrm` of some frames."""
        light, n = self.light(), self.num_frames
        frames = np.arange(n)[frames if isinstance(frames, slice) else list(frames)]
        rotations = light.rotations(n)[frames]
        angles = np.zeros(n, np.float32) if light.angles is None else np.array(light.angles, np.float32)
        angles = angles[frames] + np.float32(np.deg2rad(augmentation.light_turn))
        if (rotations == rotations[:1]).all() and (angles == angles[:1]).all():
            rotations, angles = rotations[:1], angles[:1]  # the light stands still: project once
        with on_cpu():
            strength = light.strength * augmentation.exposure
            cube = _load_cube(self.folder / light.environment, light.rotation, light.flip, strength)
            maps = {name: np.asarray(images) for name, images in project(cube, size, rotations, angles).items()}
        maps["env_ldr"], maps["env_log"] = (augmentation.image(x, maps[x]) for x in ("env_ldr", "env_log"))
        return {name: np.broadcast_to(images, (len(frames), *size, 3)) for name, images in maps.items()}

    def images(
        self,
        labels: Sequence[str],
        frames: slice,
        size: Size,
        environment_size: Size,
        augmentation: Augmentation = Augmentation(),
    ) -> dict[str, Float32[np.ndarray, "f _h _w 3"]]:
        """Return frames of all `labels`, augmented alike.

        Raises:
          InputError: a file that cannot be read, or labels that are stored in different sizes.
        """
        images, stored_size = {}, None
        if any(label in ENVIRONMENT_LABELS for label in labels):
            images = self.environment(environment_size, frames, augmentation)
        for label in labels:
            if label in images:
                continue
            stored = self._read_stored(label, frames)
            height_width = stored[0].shape[:2]
            if stored_size not in (None, height_width):
                (h, w), (first_h, first_w) = height_width, stored_size
                raise InputError(
                    f"clip {self.name!r}: its {label!r} has {h}x{w} pixels, other labels {first_h}x{first_w}; "
                    "give all labels of a clip one size"
                )
            stored_size = height_width
            images[label] = augmentation.image(label, np.stack([_fit(label, image, size) for image in stored]))
        return {label: images[label] for label in labels}


def check_size(name: str, size: Size, downscale: int) -> None:
    """Raise InputError unless a VAE with `downscale` pixels per latent can encode images of this size."""
    if min(size) < 1 or any(side % downscale for side in size):
        raise InputError(f"{name}: expected sides that are multiples of {downscale}, got {size[0]} {size[1]}")


def _fit(label: str, image: Float32[np.ndarray, "h w 3"], size: Size) -> Float32[np.ndarray, "H W 3"]:
    with on_cpu():
        resized = fit_cover(image, size, multiple=1)
    if label == "normal" and resized.shape != image.shape:
        resized = renormalize_normals(resized)
    return center_crop(resized, size)


# --- a folder of clips -----------------------------------------------------------------------------------------------


def open_clips(path: str | Path, labels: Sequence[str]) -> list[LabeledClip]:
    """Open the clips in a folder, in natural order. Every frame must have all `labels`.

    Raises:
      InputError: there is no clip, or a clip lacks a label, or lacks the light that an environment label needs.
    """
    stored = [label for label in labels if label not in ENVIRONMENT_LABELS]
    # Where only the light is needed, `rgb` gives the number of frames.
    clips = [LabeledClip(clip) for clip in find_gbuffer_clips(path, stored or ["rgb"], labels=stored or ["rgb"])]
    for clip in clips:
        if len(stored) < len(labels):
            clip.light()
    return clips


@dataclass(frozen=True)
class ClipDataset:
    """The clips of a folder as a source of training data.

    Attributes:
      path: of the folder.
      clips: from `open_clips`.
      size, environment_size: height and width of the frames and of the environment images.
      augmentation: distribution from which every row draws.
    """

    path: str
    clips: list[LabeledClip]
    size: Size
    environment_size: Size
    augmentation: AugmentationConfig = AugmentationConfig()

    def __len__(self) -> int:
        return len(self.clips)

    def require(self, frames: int) -> None:
        """Raise InputError naming the first clip without `frames` consecutive frames."""
        for clip in self.clips:
            if clip.longest < frames:
                raise InputError(
                    f"{self.path}: clip {clip.name!r} has {clip.longest} frames, fewer than {frames}; "
                    "lower data.frames, or remove the clip"
                )

    def warn_if_enlarged(self) -> None:
        """Warn if the first clip is smaller than `size`."""
        clip = self.clips[0]
        height, width = clip.buffers.read(clip.buffers.labels[0], next(iter(clip.buffers.chunks)), 0, 1).shape[1:3]
        if height < self.size[0] or width < self.size[1]:
            warnings.warn(
                f"{self.path}: clip {clip.name!r} of {height}x{width} pixels is enlarged to {self.size[0]}x"
                f"{self.size[1]}; set data.size to the size of the clips",
                stacklevel=2,
            )

    def draw(
        self, index: int, frames: int, labels: Sequence[str], rng: np.random.Generator
    ) -> dict[str, Float32[np.ndarray, "f _h _w 3"]]:
        """Draw consecutive frames of one clip, and an augmentation."""
        clip = self.clips[index]
        starts = [start for window in clip.windows(frames) for start in window]
        start = int(rng.choice(starts))
        augmentation = self.augmentation.draw(rng)
        return clip.images(labels, slice(start, start + frames), self.size, self.environment_size, augmentation)
