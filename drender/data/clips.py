"""Clips on disk for training: frames of every label at one size, and the light they were made under.

A clip is a folder of G-buffers and `rgb` in a layout of `drender.media.gbuffers`. Where the light is needed it has a
`light.json` too. The environment images `env_ldr`, `env_log` and `env_nrm` count as labels. So does `valid`, which is
white where pixels count in the loss; pixels that are infinite or NaN in a float file are invalid too. Files of other
programs are read as the `encoding.json` in the folder of clips says; normals in world space need the cameras, in a
`transforms.json` in the clip's folder.
"""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from einops import rearrange
from jaxtyping import ArrayLike, Bool, Float32, Shaped

from drender.config import ENVIRONMENT_LABELS
from drender.data.augment import Augmentation, AugmentationConfig
from drender.errors import InputError, naming
from drender.lighting.camera import camera_rotations, read_poses
from drender.lighting.environment import load_environment
from drender.lighting.light_file import Light, read_light
from drender.lighting.projection import project
from drender.media.encodings import read_labeled, renormalize_normals
from drender.media.gbuffers import GBufferClip, find_gbuffer_clips, read_encoding
from drender.media.images import HDR_SUFFIXES
from drender.media.resize import center_crop, fit_cover
from drender.sharding import on_cpu

Size = tuple[int, int]  # height and width

VALID = "valid"  # not `mask`, which marks the foreground
# Stored values that invalid pixels get: those of the background, else gray.
FILL = {"normal": (0.5, 0.5, 1.0), "depth": (1.0,) * 3, "metallic": (0.0,) * 3}
# Keep cube maps, of 19 MB each: neighboring rows may share a clip or a sky.
_load_cube = functools.lru_cache(maxsize=8)(load_environment)


# --- a clip ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabeledClip(GBufferClip):
    """A clip of `open_clips`. Frames are numbered through its chunks, one after the other."""

    def masked(self, labels: Sequence[str]) -> bool:
        """Whether pixels of these labels may be invalid: there is a mask, or a file of floats."""
        files = (file for label, paths in self.paths.items() if label in labels for file in paths)
        return VALID in self.labels or any(file.suffix.lower() in HDR_SUFFIXES for file in files)

    @property
    def longest(self) -> int:
        """The number of frames of the longest chunk."""
        return max(self.chunks.values())

    def windows(self, length: int) -> list[range]:
        """Return the possible first frames of `length` consecutive frames, one range per chunk that is long enough.

        No window spans two chunks: an inverse renderer estimates each chunk on its own, with its own depth scale.
        """
        starts, first = [], 0
        for num_frames in self.chunks.values():
            if num_frames >= length:
                starts.append(range(first, first + num_frames - length + 1))
            first += num_frames
        return starts

    def read(self, label: str, frames: Sequence[int] | slice, size: Size) -> Float32[np.ndarray, "f h w 3"]:
        """Read frames of one label, in [0, 1], scaled to cover `size` and center-cropped."""
        return np.stack([_fit(label, image, size) for image in self._read_stored(label, frames)])

    def _read_stored(
        self, label: str, frames: Sequence[int] | slice, finite: bool = True
    ) -> list[Float32[np.ndarray, "h w 3"]]:
        """Read frames of one label at the size on disk; see `read_labeled` for `finite`."""
        paths, encoding, cameras = self.paths[label], self.encoding(label), [None] * self.num_frames
        if label == "rgb":  # pictures are sRGB also where albedo is linear
            encoding = replace(encoding, transfer=None)
        if label == "normal" and encoding.normals == "world":
            cameras = self._cameras
        numbers = range(self.num_frames)[frames] if isinstance(frames, slice) else frames
        return [read_labeled(paths[i], label, encoding, camera=cameras[i], finite=finite) for i in numbers]

    @functools.cached_property
    def _cameras(self) -> Float32[np.ndarray, "f 3 3"]:
        """Return the camera-to-world rotations in the clip's `transforms.json`."""
        file = self.folder / "transforms.json"
        with naming(file):
            return camera_rotations(self.num_frames, poses=read_poses(file))

    def light(self) -> Light:
        """Read the clip's `light.json`; raise InputError as `read_light` does."""
        return read_light(self.folder, self.num_frames)

    def environment(
        self, size: Size, frames: Sequence[int] | slice = slice(None), augmentation: Augmentation = Augmentation()
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

        With the label `valid`, invalid pixels of the other labels are filled, and `valid` `[f, h, w, 1]` is 1 where
        all of them are valid, and all pixels of which a resized one is made.

        Raises:
          InputError: a file that cannot be read, labels that are stored in different sizes, or non-finite values
            without the label `valid`.
        """
        images, stored, is_masked = {}, {}, VALID in labels
        if any(label in ENVIRONMENT_LABELS for label in labels):
            images = self.environment(environment_size, frames, augmentation)
        for label in labels:
            if label not in images and (label != VALID or VALID in self.labels):
                stored[label] = self._read_stored(label, frames, finite=not is_masked)
        self._check(stored, size, crops=augmentation.side < 1)
        fitted: dict[str, list[Float32[np.ndarray, "h w 3"]]] = {}
        for stored_frame in zip(*stored.values(), strict=True):
            frame = dict(zip(stored, stored_frame, strict=True))
            if augmentation.side < 1:
                frame = {label: augmentation.crop(image, size) for label, image in frame.items()}
            for label, image in (_fill_invalid(frame) if is_masked else frame).items():
                fitted.setdefault(label, []).append(_fit(label, image, size))
        images |= {label: augmentation.image(label, np.stack(fitted_frames)) for label, fitted_frames in fitted.items()}
        if is_masked:
            images[VALID] = (images[VALID][..., :1] > 0.999).astype(np.float32)
        return {label: images[label] for label in labels}

    def _check(self, stored: dict[str, list[Float32[np.ndarray, "h w 3"]]], size: Size, crops: bool) -> None:
        """Raise InputError for images of different sizes or a mask without white; warn of images below `size`."""
        images = [(label, image) for label, frames in stored.items() for image in frames]
        height, width = images[0][1].shape[:2] if images else size
        for label, image in images:
            if image.shape[:2] != (height, width):
                sizes = f"{image.shape[0]}x{image.shape[1]} pixels, other images {height}x{width}"
                raise InputError(f"clip {self.name!r}: its {label!r} has {sizes}; give all images of a clip one size")
            if label == VALID and 0 < (highest := image.max()) <= 1 / 255:
                raise InputError(f"clip {self.name!r}: its {VALID!r} is 0 to {highest:.3g}; write valid pixels white")
        # Python shows a text once, so that clips of one size in a folder give one warning.
        clips, wanted = f"{self.folder.parent}: clips of {height}x{width} pixels", f"{size[0]}x{size[1]}"
        if height < size[0] or width < size[1]:
            warnings.warn(f"{clips} are enlarged to {wanted}; give their size as data.size or --size", stacklevel=2)
        if crops and stored and height <= size[0] and width <= size[1]:
            remedy = "give larger clips, a smaller size, or no crop"
            warnings.warn(f"{clips} are too small to crop to {wanted}; {remedy}", stacklevel=2)


def _fill_invalid(frame: dict[str, Float32[np.ndarray, "h w 3"]]) -> dict[str, Float32[np.ndarray, "h w 3"]]:
    """Replace invalid pixels of a frame's labels by `FILL`, and make `valid` 1 where all labels are valid.

    The picture keeps its pixels outside the mask, because the renderer will see such pixels too.
    """
    given = frame.pop(VALID, None)
    inside = np.bool_(True) if given is None else given.min(-1) >= 0.5
    valid, filled = inside, {}
    for label, image in frame.items():
        finite = np.isfinite(image).all(-1)
        keeps = finite if label == "rgb" else finite & inside
        filled[label] = np.where(keeps[..., None], image, np.float32(FILL.get(label, (0.5,) * 3)))
        valid = valid & finite
    return filled | {VALID: np.repeat(valid[..., None], 3, axis=-1).astype(np.float32)}


def latent_mask(mask: Shaped[ArrayLike, "*b H W 1"], downscale: int) -> Bool[ArrayLike, "*b h w 1"]:
    """Return whether all pixels of each latent are valid, for a VAE with `downscale` pixels per latent."""
    blocks = rearrange(mask > 0, "... (h i) (w j) c -> ... h w c (i j)", i=downscale, j=downscale)
    return blocks.all(axis=-1)


def check_size(name: str, size: Size, downscale: int) -> None:
    """Raise InputError unless a VAE with `downscale` pixels per latent can encode images of this size."""
    if min(size) < 1 or any(side % downscale for side in size):
        raise InputError(f"{name}: expected sides that are multiples of {downscale}, got {size[0]} {size[1]}")


def _fit(label: str, image: Float32[np.ndarray, "h w 3"], size: Size) -> Float32[np.ndarray, "H W 3"]:
    with on_cpu():
        resized = fit_cover(image, size)
    if label == "normal" and resized.shape != image.shape:
        resized = renormalize_normals(resized)
    return center_crop(resized, size)


# --- a folder of clips -----------------------------------------------------------------------------------------------


def open_clips(path: str | Path, labels: Sequence[str], optional: Sequence[str] = ()) -> list[LabeledClip]:
    """Open the clips in a folder, in natural order.

    Args:
      labels: every frame must have them.
      optional: the frames of a clip have all or none of each; see `LabeledClip.labels`. `valid` is always optional.
    Raises:
      InputError: there is no clip, or a clip lacks a label, or lacks the light that an environment label needs.
    """
    # Where only the light is needed, `rgb` gives the number of frames.
    stored = [label for label in labels if label not in ENVIRONMENT_LABELS] or ["rgb"]
    optional = (*optional, VALID)
    found = find_gbuffer_clips(path, stored, labels=(*stored, *optional), assumed=read_encoding(path))
    clips = [LabeledClip(**vars(clip)) for clip in found]
    for clip in clips:
        for label in set(clip.incomplete).intersection(optional):
            problem = f"clip {clip.name!r} has {label!r} in some frames only"
            raise InputError(f"{problem}; add the missing files, or remove these")
        if any(label in ENVIRONMENT_LABELS for label in labels):
            clip.light()
    return clips


@dataclass(frozen=True)
class ClipDataset:
    """The clips of a folder as a source of training data."""

    path: str
    clips: list[LabeledClip]
    size: Size  # of the frames
    environment_size: Size  # of the environment images
    augmentation: AugmentationConfig = AugmentationConfig()  # from which every row draws

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def names(self) -> list[str]:
        """The names of the clips."""
        return [clip.name for clip in self.clips]

    def has(self, index: int, label: str) -> bool:
        """Whether a clip has a label."""
        return label in self.clips[index].labels

    def masked(self, labels: Sequence[str]) -> bool:
        """Whether pixels of these labels may be invalid in some clip."""
        return any(clip.masked(labels) for clip in self.clips)

    def require(self, frames: int) -> None:
        """Raise InputError naming the first clip without `frames` consecutive frames."""
        for clip in self.clips:
            if clip.longest < frames:
                problem = f"clip {clip.name!r} has {clip.longest} frames, fewer than {frames}"
                raise InputError(f"{self.path}: {problem}; lower data.frames, or remove the clip")

    def draw(
        self, index: int, frames: int, labels: Sequence[str], rng: np.random.Generator
    ) -> dict[str, Float32[np.ndarray, "f _h _w 3"]]:
        """Draw consecutive frames of one clip, and an augmentation."""
        clip = self.clips[index]
        starts = [start for window in clip.windows(frames) for start in window]
        start = int(rng.choice(starts))
        augmentation = self.augmentation.draw(rng)
        return clip.images(labels, slice(start, start + frames), self.size, self.environment_size, augmentation)
