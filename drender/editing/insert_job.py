"""`sample.py insert`: the run that puts an object into clips on disk."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from drender.editing.insertion import FileObject, Layer, RenderedObject, add_diffuse_albedo, guide, insert, place_depth
from drender.editing.jobs import GUIDE, PASSED_ON, Change, EditingJob, Images
from drender.editing.materials import check_labels, edit, set_to
from drender.errors import InputError
from drender.sampling.inputs import BufferChunks
from drender.sampling.outputs import unique_frames


@dataclass(frozen=True)
class InsertJob(EditingJob):
    """An object put into clips.

    Attributes:
      inserted: the object.
      place: its depth in the clip, as for `insertion.placed`.
      material: buffer -> value that all of the object gets, as for `edit`.
      guide: write a picture of the object over the RGB too?
    """

    title: ClassVar[str] = "G-buffers with an inserted object"

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
        first, *others = super().labels(clip)
        return (first, GUIDE, *others) if self.guide else (first, *others)

    def change(self, clip: BufferChunks) -> Change:
        labels = [label for label in clip.clip.labels if label not in PASSED_ON]
        self.inserted.check(clip.name, clip.chunks[-1].stop, labels)
        return _Inserted(self, clip)


class _Inserted(Change):
    unseen = "the object is nowhere to be seen; give it another --position or --depth, or look at its mask"

    def __init__(self, run: InsertJob, clip: BufferChunks):
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
        return replace(layer, images=add_diffuse_albedo(edit(layer.images, set=self.run.material)))

    @cached_property
    def depths(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The object's own nearest and furthest depth in the clip, and those that they are put at."""
        depth = lambda chunk, i: self.clip.read(chunk, i, "depth")
        first = depth(self.clip.chunks[0], 0)
        still = self.run.inserted.still(self.clip.name)
        own, place = (np.inf, -np.inf), None
        for chunk, i in unique_frames(self.clip.chunks, self.clip.overlap):
            layer = self.layer(chunk.start + i, first.shape[:2])
            near, far = layer.depth_range()
            if near <= far and place is None:
                place = place_depth(layer, depth(chunk, i), self.run.place)
            own = (min(own[0], near), max(own[1], far))
            if still:
                break
        return (own, place) if place else ((0.0, 1.0), (0.0, 0.0))
