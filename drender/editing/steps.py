"""One edit of `drender edit`: parsed from the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from drender.editing import materials
from drender.editing.masks import Companion, mask_weights
from drender.errors import InputError, naming

MAX_FEATHER = 1000  # pixels


@dataclass(frozen=True)
class EditStep:
    """One edit: what changes, and where. Without any kind of mask it applies everywhere, else where all agree."""

    set: Mapping[str, str]  # this and the next as for `edit`
    scale: Mapping[str, str]
    replace: Mapping[str, Companion]  # images that take the buffer's place
    mask: Companion | None = None
    colors: tuple[str, float] | None = None  # color, distance
    depths: tuple[float, float] | None = None  # near, far
    invert: bool = False  # apply it everywhere else instead
    feather: float = 0.0  # half width of soft edges, in pixels

    @classmethod
    def parse(
        cls, set=(), scale=(), replace=(), mask=None, color_range=None, depth_range=None, invert=False, feather=0.0
    ) -> "EditStep":
        """Return the edit that command-line words describe; raise InputError if it is invalid or changes nothing."""
        given = {"--set": set, "--scale": scale, "--replace": replace}
        named = {option: [_label_and_value(option, words) for words in given[option]] for option in given}
        labels = [label for pairs in named.values() for label, _ in pairs]
        if not labels:
            raise InputError("an edit changes nothing; give it --set, --scale or --replace")
        materials.check_labels(labels, labels)
        if invert and not (mask or color_range or depth_range):
            raise InputError("--invert: there is no mask to invert; give --mask, --color-range or --depth-range")
        if not 0 <= feather <= MAX_FEATHER:
            raise InputError(f"--feather {feather:g}: must be 0 to {MAX_FEATHER} pixels")
        textures = {label: Companion("--replace", path, label) for label, path in named["--replace"]}
        step = cls(
            dict(named["--set"]), dict(named["--scale"]), textures, mask and Companion("--mask", mask, "mask"),
            color_range and _color_range(color_range), depth_range and tuple(depth_range), invert, feather,
        )  # fmt: skip
        blank = dict.fromkeys((*materials.EDITABLE, "depth"), np.zeros((1, 1, 3), np.float32))
        materials.edit(blank, step.area(blank, None), step.set, step.scale)  # raises InputError for invalid values
        return step

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the buffers that the edit needs."""
        ranges = ("basecolor",) * (self.colors is not None) + ("depth",) * (self.depths is not None)
        return (*self.set, *self.scale, *self.replace, *ranges)

    def area(
        self, images: dict[str, Float32[np.ndarray, "h w 3"]], mask: Float32[np.ndarray, "h w 3"] | None
    ) -> Float32[np.ndarray, "h w 1"]:
        """Return the weight of the edit at each pixel of a frame; `mask` is the frame of `self.mask`."""
        height, width, _ = images[self.labels[0]].shape
        area = np.ones((height, width, 1), np.float32)
        if mask is not None:
            area = mask_weights(f"--mask {self.mask.path}", mask)
        if self.colors is not None:
            area = area * materials.color_range(images["basecolor"], *self.colors)
        if self.depths is not None:
            area = area * materials.depth_range(images["depth"], *self.depths)
        return materials.feather(1 - area if self.invert else area, self.feather)


def _label_and_value(option: str, words: Sequence[str]) -> tuple[str, str]:
    if len(words) < 2:
        raise InputError(f"{option} {words[0]}: a value is missing; give a buffer and its new value")
    return words[0], " ".join(words[1:])


def _color_range(words: Sequence[str]) -> tuple[str, float]:
    """Return the color, of one word or three, and the distance from it."""
    where = f"--color-range {' '.join(words)}"
    *center, last = " ".join(words).split() or [""]  # which may have been quoted together
    center = " ".join(center)
    try:
        distance = float(last)
    except ValueError:
        center = ""
    if not center:
        raise InputError(f"{where}: give a color and a distance, such as '#c03020 0.2'")
    with naming(where):
        materials.color_range(np.zeros((1, 1, 3), np.float32), center, distance)  # raises InputError
    return center, distance
