"""Runs that change G-buffers on disk and write them anew, frame by frame: what edit_run.py and insert_run.py share."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from drender.errors import InputError
from drender.files import list_dir, map_collecting_errors
from drender.media.encodings import ImageFormat
from drender.media.gbuffers import GBufferClip, find_gbuffer_clips
from drender.media.images import stored_bits
from drender.sampling.inputs import BufferChunks, Chunk
from drender.sampling.jobs import Failed, Job, keep_apart, readers
from drender.sampling.outputs import ClipOutput, unique_frames
from drender.sampling.record import read_record
from drender.sampling.report import PageClip

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
class EditingJob(Job):
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

        found = find_gbuffer_clips(self.input, self.required(), failed, labels=(*PASSED_ON, *_recorded(self.input)))
        keep_apart(self.input, self.output, {clip.name: clip.folder for clip in found})
        return map_collecting_errors(plan, [(clip,) for clip in found], failed)

    def folders(self, clip: BufferChunks) -> list[ClipOutput]:
        settings = self.settings | {"overlap": clip.overlap}
        return [ClipOutput(self.output, clip.name, RECORD, self.labels(clip), settings, self.overwrite)]

    def labels(self, clip: BufferChunks) -> tuple[str, ...]:
        """Of the images that are written, in the order in which they are shown."""
        return tuple(sorted(clip.clip.labels, key=lambda label: label != "rgb"))

    def process(self, nothing: tuple[()], clip: BufferChunks, progress: bool) -> Iterator[Chunk]:
        (folder,) = self.folders(clip)
        change = self.change(clip)
        formats = {label: ImageFormat(bits=self.bits or _bits(clip.clip, label)) for label in self.labels(clip)}
        total = sum(chunk.num_frames for chunk in clip.chunks)
        whole = not folder.done
        with tqdm(total=total, disable=None if progress else True, leave=False, unit="frame") as bar:
            for chunk in clip.chunks:
                if chunk.index in folder.done:
                    continue
                for i, images in enumerate(self._changed(clip, chunk, change)):
                    for label, image in images.items():
                        folder.put(chunk, i, label, image, formats[label])
                    bar.update()
                folder.complete(chunk)
                print(f"{clip.name}: frames {chunk.start} to {chunk.stop - 1} written", flush=True)
                yield chunk
        if whole and change.unseen:
            warnings.warn(f"clip {clip.name!r}: {change.unseen}", stacklevel=2)
        shown = list(unique_frames(clip.chunks, clip.overlap))
        tiles = lambda chunk, frame: [folder.read(chunk, frame, label) for label in self.labels(clip)]
        self.draw_sheet(clip.name, shown, tiles)
        self.finish(folder, shown, tiles, clip.fps)

    def page_clip(self, clip: BufferChunks) -> PageClip:
        (folder,), shown = self.folders(clip), list(unique_frames(clip.chunks, clip.overlap))
        return PageClip(clip.name, clip.fps, len(shown), readers(folder, shown, self.labels(clip)))

    def _changed(self, clip: BufferChunks, chunk: Chunk, change: Change) -> Iterator[Images]:
        for i in range(chunk.num_frames):
            images = {label: clip.read(chunk, i, label) for label in clip.clip.labels}
            _same_size(clip.name, images)
            yield change(images, chunk.start + i)


def _recorded(source: Path) -> list[str]:
    """The labels that records in a folder, or in those in it, tell of: renderers may know other buffers than ours."""
    folders = [source, *(entry for entry in list_dir(source) if entry.is_dir())] if source.is_dir() else []
    labels = [label for folder in folders for label in read_record(folder / f"{RECORD}.json").get("labels", [])]
    return [label for label in dict.fromkeys(labels) if label != GUIDE]


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
