"""Jobs of `drender edit` and `insert`: read the G-buffers of clips, change them frame by frame, and write them."""

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from drender.config import DOMAINS
from drender.editing.insertion import FileObject, Layer, RenderedObject, add_diffuse_albedo, guide, insert, place_depth
from drender.editing.materials import edit, set_to
from drender.editing.steps import EditStep
from drender.errors import InputError, OnFailure, extent, say
from drender.files import map_collecting_errors
from drender.media.encodings import DEFAULT, Cameras, ImageFormat, InputEncoding
from drender.media.gbuffers import GBufferClip, buffer_labels, find_gbuffer_clips
from drender.media.images import stored_bits
from drender.sampling.base import ClipJob
from drender.sampling.inputs import BufferChunks, Chunk
from drender.sampling.lights import Lights, require_for_own_light
from drender.sampling.outputs import ClipOutput, RunConfig

Images = dict[str, Float32[np.ndarray, "h w 3"]]  # of one frame, by label
PASSED_ON = ("rgb", "mask")  # copied with the G-buffers: the source picture and the foreground
# A folder of G-buffers has one writer, whose record gives `forward` the overlap of the chunks.
COMMAND = "inverse"
GUIDE = "guide"  # label of pictures that show where an inserted object is


# --- what both commands share ---


class Change:
    """The change to the frames of one clip."""

    unseen: str | None = None  # why no pixel has changed so far
    whole = False  # the clip's first chunk was changed too, not by an interrupted run

    def __call__(self, images: Images, index: int) -> Images:
        """Return the images of frame `index` of the clip, changed."""
        raise NotImplementedError


@dataclass(frozen=True)
class EditingJob(ClipJob):
    """A job whose unchanged images keep their values, and their bits where `bits` is None."""

    run: RunConfig
    bits: int | None = None  # of the PNG files, 8 or 16; None: those of each label in the input
    encoding: InputEncoding = DEFAULT  # of input files that do not state theirs
    cameras: Cameras = None  # camera-to-world rotations of the frames, for normals in world space

    def required_labels(self) -> tuple[str, ...]:
        """Return the labels that a clip must have."""
        raise NotImplementedError

    def change(self, clip: BufferChunks) -> Change:
        """Return the change of a clip; raise InputError if a mask, a texture or the object does not fit it."""
        raise NotImplementedError

    def labels(self, clip: BufferChunks) -> tuple[str, ...]:
        """Return the labels of the images that are written, in the order in which they are shown."""
        return tuple(sorted(clip.clip.labels, key=lambda label: label != "rgb"))

    def discover(self, on_failure: OnFailure) -> list[BufferChunks]:
        def plan(clip: GBufferClip) -> BufferChunks:
            chunked = BufferChunks.plan(clip, self.run.chunks, cameras=self.cameras)
            self.change(chunked)  # raises InputError
            return chunked

        labels = (*PASSED_ON, *buffer_labels(self.run.input))
        self.encoding.check_labels((*labels, *DOMAINS))
        clips = find_gbuffer_clips(self.run.input, self.required_labels(), on_failure, labels, assumed=self.encoding)
        self.run.check_separate({clip.name: clip.folder for clip in clips})
        return map_collecting_errors(plan, clips, on_failure)

    def outputs(self, clip: BufferChunks) -> list[ClipOutput]:
        return [ClipOutput(self.run, clip.name, COMMAND, self.labels(clip), clip.files(), overlap=clip.overlap)]

    def run_clip(self, renderers: tuple[()], clip: BufferChunks, **control: Any) -> str:
        return super().run_clip(self.change(clip), clip, **control)

    def run_chunk(self, change: Change, clip: BufferChunks, chunk: Chunk, outputs, *, progress: bool, stop: Event):
        (output,) = outputs
        change.whole |= chunk is clip.chunks[0]
        files = clip.clip.paths | {GUIDE: clip.clip.paths.get("rgb", ())}
        formats = {label: ImageFormat(bits=self.bits or max(map(stored_bits, files[label]))) for label in output.labels}
        for i in tqdm(range(chunk.num_frames), disable=None if progress else True, leave=False, unit="frame"):
            images = {label: clip.read(chunk, i, label) for label in clip.clip.labels}
            _check_one_size(clip.name, images)
            for label, image in change(images, chunk.start + i).items():
                output.write_frame(chunk, i, label, image, formats[label])
        say(f"{clip.name}: frames {chunk.start} to {chunk.stop - 1} written")
        if chunk is clip.chunks[-1] and change.unseen and change.whole:
            warnings.warn(f"clip {clip.name!r}: {change.unseen}", stacklevel=2)


def _check_one_size(clip_name: str, images: Images) -> None:
    (first, size), *others = [(label, extent(image.shape)) for label, image in images.items() if label != "rgb"]
    for label, other in others:
        if other != size:
            raise InputError(f"clip {clip_name!r}: {label} has {other} pixels, {first} {size}; a clip needs one size")


# --- edit ---


@dataclass(frozen=True)
class EditJob(EditingJob):
    """Material edits, one after the other. All masks refer to the input, not to the result of earlier edits."""

    title: ClassVar[str] = "Edited G-buffers"

    steps: Sequence[EditStep] = ()

    def required_labels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(label for step in self.steps for label in step.labels))

    def change(self, clip: BufferChunks) -> Change:
        return _Edits(self.steps, clip)


class _Edits(Change):
    def __init__(self, steps: Sequence[EditStep], clip: BufferChunks):
        of_clip = lambda companion: companion.of(clip.name, clip.num_frames)
        self.steps = steps
        self.masks = [step.mask and of_clip(step.mask) for step in steps]
        self.textures = [{label: of_clip(images) for label, images in step.replace.items()} for step in steps]
        self.without_effect = dict.fromkeys(range(1, len(steps) + 1))  # numbers of edits whose mask was empty so far

    def __call__(self, images: Images, index: int) -> Images:
        changed = images
        for number, (step, mask, textures) in enumerate(zip(self.steps, self.masks, self.textures, strict=True), 1):
            size = images[step.labels[0]].shape[:2]
            area = step.area(images, mask and mask.at(index, size))
            if area.any():
                self.without_effect.pop(number, None)
                replacements = {label: frames.at(index, size, crop=True) for label, frames in textures.items()}
                changed = edit(changed, area, step.set, step.scale, replacements)
        return changed

    @property
    def unseen(self) -> str | None:
        if not self.without_effect:
            return None
        numbers = ", ".join(map(str, self.without_effect))
        empty = "the mask is empty" if len(self.steps) == 1 else f"the masks of edits {numbers} are empty"
        return f"{empty} in every frame, so nothing was changed; check the mask or its range"


# --- insert ---


@dataclass(frozen=True)
class InsertJob(EditingJob):
    """An object put into clips."""

    title: ClassVar[str] = "G-buffers with an inserted object"

    inserted: FileObject | RenderedObject | None = None
    place: tuple[float, ...] | None = None  # its depth in the clip, as for `insertion.place_depth`
    material: Mapping[str, str] = field(default_factory=dict)  # values of the whole object by label, as for `edit`
    guide: bool = False  # write a picture of the object over the RGB too
    own_light: Lights | None = None  # if given, write the clip's own light, estimated without the object

    def __post_init__(self):
        for label, value in self.material.items():
            set_to(label, value)
        place = self.place or (0.0,)
        if len(place) > 2 or not all(0 <= depth <= 1 for depth in place) or list(place) != sorted(place):
            shown = " ".join(f"{depth:g}" for depth in place)
            raise InputError(f"--depth {shown}: must be one depth, or NEAR FAR, with 0 ≤ NEAR ≤ FAR ≤ 1")

    def required_labels(self) -> tuple[str, ...]:
        return ("depth", *(("rgb", "normal", "basecolor") if self.guide else ()))

    def labels(self, clip: BufferChunks) -> tuple[str, ...]:
        first, *others = super().labels(clip)
        return (first, GUIDE, *others) if self.guide else (first, *others)

    def change(self, clip: BufferChunks) -> Change:
        labels = [label for label in clip.clip.labels if label not in PASSED_ON]
        if self.own_light:
            require_for_own_light(clip.clip.labels, f"--environment clip: clip {clip.name!r} has")
        self.inserted.check(clip.name, clip.num_frames, labels)
        return _Insertion(self, clip)

    def run_chunk(self, change: Change, clip: BufferChunks, chunk: Chunk, outputs, **control: Any) -> None:
        if self.own_light:
            read = functools.partial(clip.read, chunk)
            self.own_light.keep_own(outputs[0], read, clip.clip.labels, chunk, clip.num_frames)
        super().run_chunk(change, clip, chunk, outputs, **control)


@dataclass
class _Insertion(Change):
    job: InsertJob
    clip: BufferChunks
    unseen = "the object is not visible in any frame; give another --position or --depth, or check its mask"

    def __call__(self, images: Images, index: int) -> Images:
        layer = self.layer(index, images["depth"].shape[:2])
        changed, visible = insert(images, layer, *self.depths)
        if visible.any():
            self.unseen = None
        if self.job.guide:
            if images["rgb"].shape[:2] != visible.shape[:2]:
                raise InputError(f"clip {self.clip.name!r}: its rgb and its depth have other sizes; leave out --guide")
            changed[GUIDE] = guide(images["rgb"], layer, visible)
        return changed

    def layer(self, index: int, size: tuple[int, int]) -> Layer:
        layer = self.job.inserted.layer(self.clip.name, index, size)
        images = add_diffuse_albedo(edit(layer.images, set=self.job.material))
        if isinstance(self.job.inserted, RenderedObject):  # further kinds of G-buffers, such as emission, are 0
            images = dict.fromkeys(self.clip.clip.labels, np.zeros_like(images["depth"])) | images
        return replace(layer, images=images)

    @functools.cached_property
    def depths(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the range of the object's own depths over all frames, and the range of the clip's depth it maps to."""
        size = self.clip.read(self.clip.chunks[0], 0, "depth").shape[:2]
        still = self.job.inserted.still(self.clip.name)
        own, place = (np.inf, -np.inf), None
        for chunk, i in self.clip.frames:
            layer = self.layer(chunk.start + i, size)
            near, far = layer.depth_range()
            if near <= far and place is None:
                place = place_depth(layer, self.clip.read(chunk, i, "depth"), self.job.place)
            own = (min(own[0], near), max(own[1], far))
            if still:
                break
        return (own, place) if place else ((0.0, 1.0), (0.0, 0.0))
