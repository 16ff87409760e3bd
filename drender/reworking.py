"""Runs that change G-buffers on disk and write them anew, frame by frame: `sample.py edit` and `sample.py insert`."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from .edit import check_labels, color_range, depth_range, edit, feather, scale_by, set_to
from .errors import InputError
from .frames import Companion
from .gbuffers import GBufferClip, find_gbuffer_clips
from .insertion import FileObject, Layer, RenderedObject, guide, insert, placed, with_albedo
from .media import DEFAULT_FPS, readable, stored_bits
from .results import ClipFolder, shown_frames
from .runs import Failed, Run, keep_apart
from .sources import BufferChunks
from .windows import Chunk

Images = dict[str, Float32[np.ndarray, "h w 3"]]  # of one frame, by label
PASSED_ON = ("rgb", "mask")  # beside G-buffers: the picture that they were estimated of, and the foreground
# The inverse run's record, for a folder of G-buffers has one writer; it tells `forward` how chunks overlap.
RECORD = "inverse"
GUIDE = "guide"  # the label of pictures that show where an inserted object is


class Change:
    """What is done to the frames of one clip."""

    unseen: str | None = None  # as long as it changed no pixel: what it was that did not show

    def __call__(self, images: Images, index: int) -> Images:
        """The images of the clip's frame with that number, changed."""
        raise NotImplementedError


@dataclass(frozen=True)
class ReworkRun(Run):
    """What both share. Every image that is not changed keeps its values, and its bits where `bits` is None.

    Attributes:
      bits: of the PNG files, 8 or 16; None: what each label has in the input.
    """

    bits: int | None = None

    def required(self) -> tuple[str, ...]:
        """The labels that a clip must have."""
        raise NotImplementedError

    def change(self, clip: BufferChunks) -> Change:
        """What is done to the frames of a clip; InputError if what goes with it does not fit."""
        raise NotImplementedError

    def clips(self, failed: Failed) -> list[BufferChunks]:
        def plan(clip: GBufferClip) -> BufferChunks:
            chunks = BufferChunks.plan(clip, self.cut, None)
            self.change(chunks)  # for its errors
            return chunks

        found = find_gbuffer_clips(self.input, self.required(), failed, labels=PASSED_ON)
        keep_apart(self.input, self.output, {clip.name: _folder(clip) for clip in found})
        return readable(plan, [(clip,) for clip in found], failed)

    def folders(self, clip: BufferChunks) -> list[ClipFolder]:
        settings = self.settings | {"overlap": clip.overlap}
        return [ClipFolder(self.output, clip.name, RECORD, self.labels(clip), settings, self.overwrite)]

    def labels(self, clip: BufferChunks) -> tuple[str, ...]:
        """Of the images that are written, in the order in which they are shown."""
        return (*(label for label in PASSED_ON[:1] if label in clip.clip.labels), *_buffers(clip.clip))

    def process(self, nothing: None, clip: BufferChunks, progress: bool) -> Iterator[Chunk]:
        (folder,) = self.folders(clip)
        change = self.change(clip)
        bits = {label: self.bits or _bits(clip.clip, label) for label in self.labels(clip)}
        total = sum(chunk.num_frames for chunk in clip.stored)
        whole = not folder.done
        with tqdm(total=total, disable=None if progress else True, leave=False, unit="frame") as bar:
            for chunk in clip.stored:
                if chunk.index not in folder.done:
                    folder.write_frames(chunk, self._changed(clip, chunk, change, bar), bits)
                    yield chunk
        if whole and change.unseen:
            warnings.warn(f"clip {clip.name!r}: {change.unseen}", stacklevel=2)
        shown = list(shown_frames(clip.stored, clip.overlap))
        tiles = lambda chunk, frame: [folder.read(chunk, frame, label) for label in self.labels(clip)]
        self.draw_sheet(clip.name, shown, tiles)
        self.finish(folder, shown, tiles, DEFAULT_FPS)

    def _changed(self, clip: BufferChunks, chunk: Chunk, change: Change, bar: tqdm) -> Iterator[Images]:
        for i in range(chunk.num_frames):
            images = {label: clip.clip.read(label, chunk.index, i, i + 1)[0] for label in clip.clip.labels}
            _same_size(clip.name, images)
            yield change(images, chunk.start + i)
            bar.update()


def _folder(clip: GBufferClip) -> Path:
    path = next(iter(clip.paths.values()))[0]
    return path.parent


def _buffers(clip: GBufferClip) -> list[str]:
    return [label for label in clip.labels if label not in PASSED_ON[:1]]


def _bits(clip: GBufferClip, label: str) -> int:
    source = "rgb" if label == GUIDE else label
    return max(stored_bits(path) for chunk in clip.chunks for path in clip.paths[source, chunk])


def _same_size(name: str, images: Images) -> None:
    sizes = {label: image.shape[:2] for label, image in images.items() if label != "rgb"}
    (first, size), *others = sizes.items()
    for label, other in others:
        if other != size:
            (h, w), (height, width) = other, size
            raise InputError(
                f"clip {name!r}: {label} has {w}x{h} pixels, {first} {width}x{height}; a clip needs one size"
            )


# ---- Edits ----


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
        if feather < 0:
            raise InputError(f"--feather {feather:g}: must be 0 or more pixels")
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
    """ "#rrggbb 0.2" or "r g b 0.2"."""
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
class EditRun(ReworkRun):
    """Material edits, one after the other. Masks look at the input, not at what the edits before made of it."""

    steps: Sequence[Step] = ()

    def required(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(label for step in self.steps for label in step.labels))

    def change(self, clip: BufferChunks) -> Change:
        return _Edits(self.steps, clip.name, clip.stored[-1].stop)


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


# ---- Insertion ----


@dataclass(frozen=True)
class InsertRun(ReworkRun):
    """An object put into clips.

    Attributes:
      inserted: the object.
      place: its depth in the clip, as for `insertion.placed`.
      material: buffer -> value that all of the object gets, as for `edit`.
      guide: write a picture of the object over the RGB too?
    """

    inserted: FileObject | RenderedObject | None = None
    place: tuple[float, ...] | None = None
    material: Mapping[str, str] = field(default_factory=dict)
    guide: bool = False

    def __post_init__(self):
        check_labels(list(self.material), list(self.material))
        for label, value in self.material.items():
            set_to(label, value)
        place = self.place or (0.0,)
        if len(place) > 2 or not all(0 <= depth <= 1 for depth in place) or list(place) != sorted(place):
            shown = " ".join(f"{depth:g}" for depth in place)
            raise InputError(f"--depth {shown}: must be one depth, or NEAR FAR, with 0 ≤ NEAR ≤ FAR ≤ 1")

    def required(self) -> tuple[str, ...]:
        return ("depth", *(("rgb", "normal", "basecolor") if self.guide else ()))

    def labels(self, clip: BufferChunks) -> tuple[str, ...]:
        rgb, *buffers = super().labels(clip)
        return (rgb, GUIDE, *buffers) if self.guide else (rgb, *buffers)

    def change(self, clip: BufferChunks) -> Change:
        labels = [label for label in clip.clip.labels if label not in PASSED_ON]
        self.inserted.check(clip.name, clip.stored[-1].stop, labels)
        return _Inserted(self, clip)


class _Inserted(Change):
    unseen = "the object is nowhere to be seen; give it another --position or --depth, or look at its mask"

    def __init__(self, run: InsertRun, clip: BufferChunks):
        self.run, self.clip = run, clip

    def __call__(self, images: Images, index: int) -> Images:
        layer = self.layer(index, images["depth"].shape[:2])
        changed, visible = insert(images, layer, *self.depths)
        if visible.any():
            self.unseen = None
        if self.run.guide:
            size = images["rgb"].shape[:2]
            if size != visible.shape[:2]:
                raise InputError(f"clip {self.clip.name!r}: its rgb and its depth have other sizes; leave out --guide")
            changed[GUIDE] = guide(images["rgb"], layer, visible)
        return changed

    def layer(self, index: int, size: tuple[int, int]) -> Layer:
        layer = self.run.inserted.layer(self.clip.name, index, size)
        return replace(layer, images=with_albedo(edit(layer.images, set=self.run.material)))

    @cached_property
    def depths(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The object's own nearest and furthest depth in the clip, and those that they are put at."""
        depth = lambda chunk, i: self.clip.clip.read("depth", chunk.index, i, i + 1)[0]
        first = depth(self.clip.stored[0], 0)
        still = self.run.inserted.still(self.clip.name)
        own, place = (np.inf, -np.inf), None
        for chunk, i in shown_frames(self.clip.stored, self.clip.overlap):
            layer = self.layer(chunk.start + i, first.shape[:2])
            near, far = layer.depth_range()
            if near <= far and place is None:
                place = placed(layer, depth(chunk, i), self.run.place)
            own = (min(own[0], near), max(own[1], far))
            if still:
                break
        return (own, place) if place else ((0.0, 1.0), (0.0, 0.0))
