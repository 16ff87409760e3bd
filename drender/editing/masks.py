"""Read the masks and textures that accompany the frames of clips, from a still, a clip, or a folder of clips."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float32

from drender.errors import InputError, extent, naming
from drender.files import natural_order
from drender.media.gbuffers import find_images
from drender.media.resize import center_crop, fit_cover, resize
from drender.media.video import DEFAULT_FPS, Clip, find_clips

T = TypeVar("T")
MAX_TINT, MIN_WHITE = 0.25, 0.1  # largest difference of a mask's channels, and least of its brightest values


class Companion:
    """Images named by a command-line option: one image for all frames, a clip of equal length, or a folder of clips.

    Several clips are matched to the input's clips by name. `--input-transfer` and the like are not for these files.

    Args:
      option: name of the option, for error messages.
      path: an image, a video, a folder of frames or of G-buffers, or a folder of these; InputError if unreadable.
      label: image kind to read from folders of G-buffers.
    """

    def __init__(self, option: str, path: str | Path, label: str):
        self.option, self.path = option, Path(path)
        labeled = find_images(path, (label,)) if self.path.is_dir() else []
        with naming(option):
            clips = find_clips(path, label=label) if not labeled else []
        for name, files in labeled:
            paths = tuple(files[label][stem] for stem in sorted(files[label], key=natural_order))
            clips.append(Clip(name, DEFAULT_FPS, len(paths), paths, label))
        self._clips = {clip.name: clip for clip in clips}

    def of(self, name: str, num_frames: int) -> "CompanionFrames":
        """Return the frames for the clip `name`; raise InputError if none match or their number differs."""
        clip = select_clip(name, self._clips, f"{self.option} {self.path}")
        if clip.num_frames not in (1, num_frames):
            problem = f"expected 1 or {num_frames} frames for clip {name!r}, got {clip.num_frames}"
            raise InputError(f"{self.option} {self.path}: {problem}; give one image or one per frame")
        return CompanionFrames(self.option, clip)


def select_clip(name: str, clips: Mapping[str, T], source: str) -> T:
    """Return the only clip, or the clip called `name`; raise InputError, naming `source`, if there is none."""
    clip = next(iter(clips.values())) if len(clips) == 1 else clips.get(name)
    if clip is None:
        problem = f"none of its {len(clips)} clips is named {name!r}"
        raise InputError(f"{source}: {problem}; give a single clip or rename one")
    return clip


class CompanionFrames:
    """The frames of one clip, read one at a time; a single image stands for all frames."""

    def __init__(self, option: str, clip: Clip):
        self._option, self._clip = option, clip
        self._index, self._image, self._frames = -1, None, None  # the last image that was read, and those after it

    def at(self, index: int, size: tuple[int, int], crop: bool = False) -> Float32[np.ndarray, "h w 3"]:
        """Return frame `index`, stretched to (height, width) = `size` as renderers stretch to multiples of 64.

        With `crop`, an image of another aspect covers the size and is center-cropped; without it, raise InputError.
        """
        index = 0 if self._clip.num_frames == 1 else index
        if index < self._index or self._frames is None:  # a video cannot seek: read it again from its first frame
            self._index, self._frames = index - 1, self._clip.frames(index)
        while self._index < index:
            self._image, self._index = next(self._frames), self._index + 1
        image = self._image
        if same_aspect(image.shape[:2], size):
            return resize(image, size)
        if not crop:
            problem = f"expected the aspect ratio of the {extent(size)} G-buffers, got {extent(image.shape)} pixels"
            raise InputError(f"{self._option} {self._clip.paths[0]}: {problem}; resize or crop it")
        return center_crop(fit_cover(image, size), size)


def mask_weights(source: str, mask: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w 1"]:
    """Return the weight of each pixel of a mask; warn, naming `source`, if it holds labels from 0 up.

    InputError if it is colored, as a picture with alpha or with a color per object.
    """
    if np.ptp(mask, axis=-1).max() > MAX_TINT:
        raise InputError(f"{source}: expected a mask, white inside, got colors; save the area or alpha as a gray image")
    if 0 < mask.max() < MIN_WHITE:
        problem = f"its mask reaches only {mask.max():.3g}, expected 1 (white) inside; multiply its values"
        warnings.warn(f"{source}: {problem}", stacklevel=2)
    return mask.mean(axis=-1, keepdims=True)


def same_aspect(source: tuple[int, int], size: tuple[int, int]) -> bool:
    """Return whether buffers of (height, width) = `size` can be those of frames of size `source`.

    Inverse renderers scale frames and round their sides up to multiples of 64, which stretches them. Sizes that are not
    multiples of 64 may differ by one pixel of rounding.
    """
    below, above = (1, 1) if any(side % 64 for side in size) else (64, 0)
    scales = [((side - below) / own, (side + above) / own) for own, side in zip(source, size, strict=True)]
    return max(low for low, _ in scales) < min(high for _, high in scales)
