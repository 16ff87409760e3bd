"""Inputs of a run: clips and G-buffers, cut in chunks."""

import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from drender.errors import InputError
from drender.fields import bounded, check_ranges
from drender.lighting.camera import require_poses
from drender.media.encodings import Cameras
from drender.media.gbuffers import GBufferClip, read_frames
from drender.media.resize import ResizePlan
from drender.media.video import DEFAULT_FPS, Clip
from drender.sampling.record import read_record

READ_BATCH = 8  # frames that are decoded and held at a time
MAX_NAME = 230  # bytes of a clip's name; file systems take 255, and `.forward.contact.png` is appended
MODES = ("blend", "all", "first", "drop-last")

# --- chunks ---


@dataclass(frozen=True)
class Chunk:
    """Frames `start` to `stop` − 1 of a clip; the last frame is repeated until there are `length`."""

    index: int
    start: int
    stop: int
    length: int

    @property
    def num_frames(self) -> int:
        return self.stop - self.start


Frame = tuple[Chunk, int]  # a frame's chunk and its index within the chunk


def select_chunks(chunks: list[Chunk], mode: str) -> list[Chunk]:
    """Return all chunks, the first, or those without repeated frames."""
    if mode == "first":
        return chunks[:1]
    return [chunk for chunk in chunks if mode == "all" or chunk.num_frames == chunk.length]


def unique_frames(chunks: list[Chunk], overlap: int) -> Iterator[Frame]:
    """Yield every frame of a clip once: shared frames come from the earlier chunk."""
    for chunk in chunks:
        for i in range(overlap if chunk.start else 0, chunk.num_frames):
            yield chunk, i


@dataclass(frozen=True)
class ChunkConfig:
    """How clips are cut in chunks that are sampled separately; InputError for an invalid length or overlap.

    The mode is "blend" (one chunk, sampled in blended windows of that length and overlap), or as the released scripts:
    "all", "first" (only the first chunk) or "drop-last" (without an incomplete last chunk).
    """

    frames: int = bounded(24, at_least=1)  # per chunk; a clip of no more frames is one chunk of its own length
    overlap: int = bounded(6, at_least=0)  # frames that a chunk shares with the previous one
    mode: str = "blend"

    def __post_init__(self):
        check_ranges(self)
        if self.overlap >= self.frames:
            raise InputError(f"overlap: expected less than frames ({self.frames}), got {self.overlap}")

    def plan(self, num_frames: int) -> list[Chunk]:
        """Return the chunks of a clip; unlike in the released scripts, there is always at least one."""
        if num_frames <= self.frames or self.mode == "blend":
            return [Chunk(0, 0, num_frames, num_frames)]
        # A last chunk of nothing but the overlap would add no frame, so stop before it.
        starts = range(0, num_frames - self.overlap, self.frames - self.overlap)
        stops = (min(start + self.frames, num_frames) for start in starts)
        chunks = [Chunk(i, *span, self.frames) for i, span in enumerate(zip(starts, stops, strict=True))]
        return select_chunks(chunks, self.mode)


def batch_frames(frames: Iterator[np.ndarray], length: int) -> Iterator[Float[np.ndarray, "1 n h w 3"]]:
    """Yield `length` frames in batches of READ_BATCH, repeating the last frame where there are fewer."""
    last = None
    for start in range(0, length, READ_BATCH):
        batch = list(itertools.islice(frames, min(READ_BATCH, length - start)))
        last = batch[-1] if batch else last
        batch += [last] * (min(READ_BATCH, length - start) - len(batch))
        yield np.stack(batch)[None]


# --- clips in chunks ---


@dataclass(frozen=True)
class ChunkedClip:
    """A clip on disk and its chunks. Subclasses add readers."""

    name: str
    fps: float
    chunks: list[Chunk]  # processed one after the other
    overlap: int  # frames that neighboring chunks share
    clip: Clip | GBufferClip  # the files; G-buffers may have chunks of their own

    def __post_init__(self):
        if (length := len(os.fsencode(self.name))) > MAX_NAME:
            problem = f"its name has {length} bytes, too many for the names of its results ({MAX_NAME})"
            raise InputError(f"clip {self.name[:40]!r}…: {problem}; rename it")

    @property
    def num_frames(self) -> int:
        return self.chunks[-1].stop

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frames on disk."""
        return self.clip.size

    @property
    def frames(self) -> list[Frame]:
        """Every frame of the clip once, in order."""
        return list(unique_frames(self.chunks, self.overlap))


@dataclass(frozen=True)
class RgbChunks(ChunkedClip):
    """An RGB clip."""

    @classmethod
    def plan(cls, clip: Clip, config: ChunkConfig) -> "RgbChunks":
        """Return the clip in chunks. The record of our inverse run gives the frame rate of its images."""
        record = read_record(clip.paths[0].parent / "inverse.json") if len(clip.paths) > 1 else {}
        return cls(clip.name, record.get("fps", clip.fps), config.plan(clip.num_frames), config.overlap, clip)

    def files(self) -> tuple[Path, ...]:
        return self.clip.paths

    def batches(self, chunk: Chunk, resize: ResizePlan) -> Iterator[Float[np.ndarray, "1 n h w 3"]]:
        """Yield a chunk's frames at the network's size."""
        frames = self.clip.frames(chunk.start, chunk.stop)
        return batch_frames((resize.fit(frame) for frame in frames), chunk.length)


@dataclass(frozen=True)
class BufferChunks(ChunkedClip):
    """The G-buffers of a clip."""

    places: dict[Chunk, Sequence[int]]  # index among the files of each frame of a chunk
    cameras: Cameras = None  # camera-to-world rotation of every frame of the clip, for normals in world space

    @classmethod
    def plan(
        cls, clip: GBufferClip, config: ChunkConfig, fixed_frame: int | None = None, cameras: Cameras = None
    ) -> "BufferChunks":
        """Return the clip in the chunks of its files, or, if they have one or are to be blended, in those of a video.

        The record of our inverse run gives the frame rate and the overlap of the files' chunks; the released scripts
        write none. Of a `fixed_frame`, the frame and its camera are repeated `config.frames` times, and nothing else is
        used. InputError if there is no such frame, there are too few cameras, or the chunks contradict the overlap.
        """
        record = read_record(clip.folder / "inverse.json")
        fps = record.get("fps", DEFAULT_FPS)
        several = len(clip.chunks) > 1
        overlap = record.get("settings", {}).get("overlap", config.overlap) if several else config.overlap
        stored = _stored_chunks(clip, overlap)
        places = [file for chunk, files in stored.items() for file in files[overlap if chunk.start else 0 :]]
        if fixed_frame is not None and not 0 <= fixed_frame < len(places):
            raise InputError(f"--fixed-frame {fixed_frame}: clip {clip.name!r} has frames 0 to {len(places) - 1}")
        require_poses(f"clip {clip.name!r}", len(places) if fixed_frame is None else fixed_frame + 1, cameras)
        if fixed_frame is not None:
            still = Chunk(0, 0, config.frames, config.frames)
            cameras = cameras if cameras is None else cameras[fixed_frame : fixed_frame + 1].repeat(config.frames, 0)
            return cls(clip.name, fps, [still], 0, clip, {still: [places[fixed_frame]] * config.frames}, cameras)
        if several and config.mode != "blend":
            return cls(clip.name, fps, select_chunks(list(stored), config.mode), overlap, clip, stored, cameras)
        chunks = config.plan(len(places))
        joined = {chunk: places[chunk.start : chunk.stop] for chunk in chunks}
        return cls(clip.name, fps, chunks, overlap, clip, joined, cameras)

    def files(self, labels: Sequence[str] | None = None) -> list[Path]:
        """Return the files of these labels, by default of all."""
        return [path for label in (self.clip.labels if labels is None else labels) for path in self.clip.paths[label]]

    @functools.cached_property
    def kept_light(self) -> Path | None:
        """Return the clip's light without the object, if `insert --environment clip` wrote these G-buffers."""
        folder = self.clip.folder.resolve()
        path = folder.with_name(f"{folder.name}.light.exr")
        inserted = read_record(folder / "inverse.json").get("settings", {}).get("command") == "insert"
        return path if inserted and path.exists() else None

    def read(self, chunk: Chunk, frame: int, label: str) -> Float[np.ndarray, "h w 3"]:
        """Return a frame of one buffer at its size on disk."""
        return next(self._frames(chunk, label, slice(frame, frame + 1)))

    def batches(self, chunk: Chunk, label: str, resize: ResizePlan) -> Iterator[Float[np.ndarray, "1 n h w 3"]]:
        """Yield a chunk's frames of one buffer at the network's size."""
        return batch_frames(map(resize.fit, self._frames(chunk, label)), chunk.length)

    def _frames(self, chunk: Chunk, label: str, frames: slice = slice(None)) -> Iterator[Float[np.ndarray, "h w 3"]]:
        files = [self.clip.paths[label][place] for place in self.places[chunk][frames]]
        cameras = () if self.cameras is None else self.cameras[chunk.start : chunk.stop][frames]
        return read_frames(files, label, self.clip.encoding(label), cameras)


def _stored_chunks(clip: GBufferClip, overlap: int) -> dict[Chunk, range]:
    """Return the chunks of a clip's files, and the indices of the files of each."""
    stored, first, start, length = {}, 0, 0, max(clip.chunks.values())
    for index, num_frames in clip.chunks.items():
        if num_frames <= overlap and len(clip.chunks) > 1:
            problem = f"chunk {index} has no more than the {overlap} frames that chunks share"
            raise InputError(f"clip {clip.name!r}: {problem}; give the --overlap it was written with")
        stored[Chunk(index, start, start + num_frames, length)] = range(first, first + num_frames)
        first, start = first + num_frames, start + num_frames - overlap
    return stored


def require_finished(name: str, folder: Path) -> None:
    """Raise InputError if the inverse run that writes a clip's G-buffers is not finished."""
    if read_record(folder / "inverse.json").get("finished") is False:
        raise InputError(f"clip {name!r}: the inverse run that writes it is not finished; run it again first")
