"""Images that go with the frames of clips: masks and textures, from a still, a clip, or a folder of clips."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Float32

from drender.errors import InputError
from drender.files import natural_order
from drender.media.gbuffers import find_images
from drender.media.resize import center_crop, fit_cover, resize
from drender.media.video import DEFAULT_FPS, Clip, find_clips

T = TypeVar("T")


class Companion:
    """What a command-line option names: an image for all frames, a clip with as many frames, or a folder of clips.

    In a folder of G-buffers, the images with a certain label are meant. Of several clips, each goes with the one of its
    name.

    Args:
      option: for messages.
      path: an image, a video, a folder of frames or of G-buffers, or a folder of such.
      label: of the images in folders of G-buffers.
    Raises:
      InputError: nothing there that can be read.
    """

    def __init__(self, option: str, path: str | Path, label: str):
        self.option, self.path = option, Path(path)
        found = find_images(path, (label,)) if self.path.is_dir() else []
        try:
            clips = [_labelled(name, files[label]) for name, files in found] or find_clips(path)
        except InputError as error:
            raise InputError(f"{option}: {error}") from None
        self._clips = {clip.name: clip for clip in clips}

    def of(self, name: str, num_frames: int) -> "Frames":
        """Those of the clip of that name; InputError if there are none, or too few, or too many."""
        clip = of_clip(name, self._clips, f"{self.option} {self.path}")
        if clip.num_frames not in (1, num_frames):
            raise InputError(
                f"{self.option} {self.path}: has {clip.num_frames} frames, but clip {name!r} {num_frames}; "
                "give one image, or as many as the clip has"
            )
        return Frames(self.option, clip)


def of_clip(name: str, companions: Mapping[str, T], given: str) -> T:
    """The only one of them, or that of the name; InputError if there is none, naming what was given."""
    found = next(iter(companions.values())) if len(companions) == 1 else companions.get(name)
    if found is None:
        raise InputError(f"{given}: has {len(companions)} clips, but none named {name!r}; give one of them")
    return found


def _labelled(name: str, files: dict[str, Path]) -> Clip:
    paths = tuple(files[stem] for stem in sorted(files, key=natural_order))
    return Clip(name, DEFAULT_FPS, len(paths), paths)


class Frames:
    """The frames of one clip, read one at a time; those of a single image are all the same."""

    def __init__(self, option: str, clip: Clip):
        self._option, self._clip = option, clip
        self._next, self._frames, self._image = 0, None, None

    def at(self, index: int, size: tuple[int, int], crop: bool = False) -> Float32[np.ndarray, "h w 3"]:
        """Frame `index` at (height, width) = `size`: stretched to it, as renderers stretch frames to multiples of 64.

        Another shape is an InputError; or, with `crop`, it covers the size and is cut to it around the centre.
        """
        index = 0 if self._clip.num_frames == 1 else index
        if self._image is None or index != self._next - 1:
            if self._frames is None or index < self._next:  # a video is read from its beginning again
                self._next, self._frames = index, self._clip.frames(index)
            while self._next <= index:
                self._image, self._next = next(self._frames), self._next + 1
        image = self._image
        if same_view(image.shape[:2], size):
            return resize(image, size)
        if not crop:
            (h, w), (height, width) = image.shape[:2], size
            raise InputError(
                f"{self._option} {self._clip.paths[0]}: {w}x{h} pixels have another shape than the G-buffers' "
                f"{width}x{height}; make them the same"
            )
        return center_crop(fit_cover(image, size, multiple=1), size)


def same_view(source: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether an inverse renderer can have made buffers of (height, width) = `size` from frames of `source`.

    It scales frames and rounds the sides up to multiples of 64, which stretches them; other sizes allow for one pixel.
    """
    below, above = (64, 0) if not any(side % 64 for side in size) else (1, 1)
    scales = [((side - below) / own, (side + above) / own) for own, side in zip(source, size, strict=True)]
    return max(least for least, _ in scales) < min(most for _, most in scales)
