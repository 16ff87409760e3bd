"""`sample.py edit`: what its options ask for, and the run that does it to clips on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float32

from drender.editing.jobs import Change, EditingJob, Images
from drender.editing.masks import Companion
from drender.editing.materials import check_labels, color_range, depth_range, edit, feather, scale_by, set_to
from drender.errors import InputError
from drender.sampling.inputs import BufferChunks

MAX_FEATHER = 1000  # pixels


@dataclass(frozen=True)
class Step:
    """One edit of a clip: what is changed, and where. Without any kind of mask it is everywhere.

    Attributes:
      set, scale: as for `edit`.
      replace: label -> the images that take the buffer's place.
      mask, colours, depths: where all that are given agree; (colour, distance) and (near, far).
      invert: everywhere else instead.
      feather: pixels over which edges are soft.
    """

    set: Mapping[str, str]
    scale: Mapping[str, str]
    replace: Mapping[str, Companion]
    mask: Companion | None = None
    colours: tuple[str, float] | None = None
    depths: tuple[float, float] | None = None
    invert: bool = False
    feather: float = 0.0

    @classmethod
    def read(
        cls, set=(), scale=(), replace=(), mask=None, color_range=None, depth_range=None, invert=False, feather=0.0
    ) -> "Step":
        """Of the words of a command line. InputError for what makes no sense, or changes nothing."""
        named = {
            option: [_label_and_value(option, words) for words in given]
            for option, given in (("--set", set), ("--scale", scale), ("--replace", replace))
        }
        labels = [label for pairs in named.values() for label, _ in pairs]
        if not labels:
            raise InputError("an edit changes nothing; give it --set, --scale or --replace")
        check_labels(labels, labels)
        for label, value in named["--set"]:
            set_to(label, value)
        for label, value in named["--scale"]:
            scale_by(label, value)
        textures = {label: Companion("--replace", path, label) for label, path in named["--replace"]}
        if invert and not (mask or color_range or depth_range):
            raise InputError("--invert: there is no mask to invert; give --mask, --color-range or --depth-range")
        if not 0 <= feather <= MAX_FEATHER:
            raise InputError(f"--feather {feather:g}: must be 0 to {MAX_FEATHER} pixels")
        return cls(
            dict(named["--set"]), dict(named["--scale"]), textures, mask and Companion("--mask", mask, "mask"),
            color_range and _colour_range(color_range), depth_range and _depth_range(depth_range), invert, feather,
        )  # fmt: skip

    @property
    def labels(self) -> tuple[str, ...]:
        """The buffers that it needs."""
        seen = ("basecolor",) * (self.colours is not None) + ("depth",) * (self.depths is not None)
        return (*self.set, *self.scale, *self.replace, *seen)

    def area(self, images: Images, mask: Float32[np.ndarray, "h w 3"] | None) -> Float32[np.ndarray, "h w 1"]:
        """How much of the edit each pixel of a frame gets; `mask` is the frame of `self.mask`."""
        height, width, _ = images[self.labels[0]].shape
        area = np.ones((height, width, 1), np.float32) if mask is None else mask.mean(axis=-1, keepdims=True)
        if self.colours is not None:
            area = area * color_range(images["basecolor"], *self.colours)
        if self.depths is not None:
            area = area * depth_range(images["depth"], *self.depths)
        return feather(1 - area if self.invert else area, self.feather)


def _label_and_value(option: str, words: Sequence[str]) -> tuple[str, str]:
    if len(words) < 2:
        raise InputError(f"{option} {words[0]}: a value is missing; give a buffer and what to make of it")
    return words[0], " ".join(words[1:])


def _colour_range(words: Sequence[str]) -> tuple[str, float]:
    """The colour, of one word or three, and the distance from it."""
    try:
        centre, distance = " ".join(words[:-1]), float(words[-1])
    except ValueError:
        centre, distance = "", 0.0
    if not centre:
        raise InputError(f"--color-range {' '.join(words)}: give a colour and a distance, such as '#c03020 0.2'")
    try:
        color_range(np.zeros((1, 1, 3), np.float32), centre, distance)  # for its errors
    except InputError as error:
        raise InputError(f"--color-range {' '.join(words)}: {error}") from None
    return centre, distance


def _depth_range(bounds: Sequence[float]) -> tuple[float, float]:
    near, far = bounds
    depth_range(np.zeros((1, 1, 3), np.float32), near, far)  # for its errors
    return near, far


@dataclass(frozen=True)
class EditJob(EditingJob):
    """Material edits, one after the other. Masks look at the input, not at what the edits before made of it."""

    title: ClassVar[str] = "Edited G-buffers"

    steps: Sequence[Step] = ()

    def required(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(label for step in self.steps for label in step.labels))

    def change(self, clip: BufferChunks) -> Change:
        return _Edits(self.steps, clip.name, clip.chunks[-1].stop)


class _Edits(Change):
    def __init__(self, steps: Sequence[Step], name: str, num_frames: int):
        of_clip = lambda companion: companion and companion.of(name, num_frames)
        self.steps = steps
        self.masks = [of_clip(step.mask) for step in steps]
        self.textures = [{label: of_clip(images) for label, images in step.replace.items()} for step in steps]
        self.empty = dict.fromkeys(range(1, len(steps) + 1))  # the numbers of edits that found nothing yet

    def __call__(self, images: Images, index: int) -> Images:
        changed = images
        for number, (step, mask, textures) in enumerate(zip(self.steps, self.masks, self.textures, strict=True), 1):
            size = images[step.labels[0]].shape[:2]
            area = step.area(images, mask and mask.at(index, size))
            if area.any():
                self.empty.pop(number, None)
                new = {label: frames.at(index, size, crop=True) for label, frames in textures.items()}
                changed = edit(changed, area, step.set, step.scale, new)
        return changed

    @property
    def unseen(self) -> str | None:
        which = ", ".join(map(str, self.empty))
        which = "the mask is empty" if len(self.steps) == 1 else f"the masks of edits {which} are empty"
        return (
            f"{which} in every frame, nothing was changed there; look at the mask or its range" if self.empty else None
        )
