"""What runs read: clips and G-buffers, chunk by chunk."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from drender.errors import InputError, unknown_name_error
from drender.media.gbuffers import GBufferClip, read_frames
from drender.media.resize import ResizePlan
from drender.media.video import DEFAULT_FPS, Clip
from drender.sampling.record import read_record

READ_RUN = 8  # frames that are held at a time


MODES = ("blend", "all", "first", "drop-last")


@dataclass(frozen=True)
class Chunk:
    """Frames start to stop − 1 of a clip; `length` more than that means that the last frame is repeated to fill it."""

    index: int
    start: int
    stop: int
    length: int

    @property
    def num_frames(self) -> int:
        return self.stop - self.start


def plan_chunks(num_frames: int, length: int = 24, overlap: int = 6, mode: str = "blend") -> list[Chunk]:
    """What of a clip is sampled on its own: all of it, or chunks as the released scripts cut them.

    Unlike there, every clip has at least one.

    Args:
      num_frames: of the clip, 1 or more.
      length: frames per chunk. A clip that is no longer is one chunk of its own length.
      overlap: frames that a chunk shares with the one before.
      mode: "blend" (one chunk, which is sampled in windows of that length and overlap), "all", "first" (only the
        first chunk) or "drop-last" (without an incomplete last chunk).
    Raises:
      InputError: for numbers that make no chunks, or an unknown mode.
    """
    if length < 1:
        raise InputError(f"frames per chunk is {length}; it must be 1 or more")
    if overlap < 0 or (overlap >= length and num_frames > length):
        raise InputError(f"overlap is {overlap}; it must be at least 0 and less than the {length} frames of a chunk")
    if mode not in MODES:
        raise unknown_name_error("chunk mode", mode, MODES)
    if num_frames <= length or mode == "blend":
        return [Chunk(0, 0, num_frames, num_frames)]
    # A chunk that would hold nothing but the overlap with the one before is not begun.
    starts = range(0, num_frames - overlap, length - overlap)
    chunks = [Chunk(i, start, min(start + length, num_frames), length) for i, start in enumerate(starts)]
    return select(chunks, mode)


def select(chunks: list[Chunk], mode: str) -> list[Chunk]:
    """The chunks of a mode: all, the first, or those without repeated frames."""
    if mode == "first":
        return chunks[:1]
    return [chunk for chunk in chunks if mode == "all" or chunk.num_frames == chunk.length]


@dataclass(frozen=True)
class ChunkConfig:
    """How clips are cut.

    Attributes:
      frames, overlap: of a chunk, and those that neighbours share.
      mode: of the chunks, see `plan_chunks`.
    """

    frames: int = 24
    overlap: int = 6
    mode: str = "blend"

    def __post_init__(self):
        plan_chunks(self.frames + 1, self.frames, self.overlap, self.mode)  # for its errors

    def plan(self, num_frames: int) -> list[Chunk]:
        return plan_chunks(num_frames, self.frames, self.overlap, self.mode)


def frames_in_runs(frames: Iterator[np.ndarray], length: int) -> Iterator[Float[np.ndarray, "1 n h w 3"]]:
    """Frames as clips of at most READ_RUN; the last is repeated until there are `length`."""
    last = None
    for start in range(0, length, READ_RUN):
        run = list(itertools.islice(frames, min(READ_RUN, length - start)))
        last = run[-1] if run else last
        run += [last] * (min(READ_RUN, length - start) - len(run))
        yield np.stack(run)[None]


def rgb_runs(clip: Clip, chunk: Chunk, placement: ResizePlan) -> Iterator[Float[np.ndarray, "1 n h w 3"]]:
    """The frames of a chunk as the network sees them, some at a time."""
    return frames_in_runs((placement.fit(frame) for frame in clip.frames(chunk.start, chunk.stop)), chunk.length)


def require_finished(name: str, folder: Path) -> None:
    """InputError if the inverse run that writes the G-buffers in a clip's folder is not finished."""
    if read_record(folder / "inverse.json").get("finished") is False:
        raise InputError(f"clip {name!r}: the inverse run that writes it is not finished; run it again first")


@dataclass(frozen=True)
class BufferChunks:
    """G-buffers of a clip on disk, and the chunks they are rendered in.

    Attributes:
      clip: the files, which lie in chunks of their own.
      chunks: as they are rendered.
      places: of a chunk's frames: (chunk, frame) as the files are numbered.
      overlap: frames that neighbouring chunks share.
      fps: as the record of the run that wrote the files says.
    """

    clip: GBufferClip
    chunks: list[Chunk]
    places: dict[Chunk, list[tuple[int, int]]]
    overlap: int
    fps: float = DEFAULT_FPS

    @property
    def name(self) -> str:
        return self.clip.name

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its frames, of which the first is read for it."""
        return next(self.clip.frames(*next(iter(self.clip.paths)))).shape[:2]

    @classmethod
    def plan(cls, clip: GBufferClip, cut: ChunkConfig, fixed_frame: int | None) -> "BufferChunks":
        """The chunks that the files lie in, or, of one such or to be blended, those of a video.

        fixed_frame: a frame of the clip to repeat, and nothing else.
        InputError if there is no such frame, or if the files' chunks do not fit together.
        """
        # The record of our inverse run tells the chunks' overlap; the released scripts leave none.
        record = read_record(clip.folder / "inverse.json")
        fps = record.get("fps", DEFAULT_FPS)
        overlap = record.get("settings", {}).get("overlap", cut.overlap) if len(clip.chunks) > 1 else cut.overlap
        stored, places, length = [], [], max(clip.chunks.values())
        for index, num_frames in clip.chunks.items():
            if num_frames <= overlap and len(clip.chunks) > 1:
                raise InputError(
                    f"clip {clip.name!r}: chunk {index} has no more than the {overlap} frames that chunks share; "
                    "give the --overlap it was written with"
                )
            new = [(index, i) for i in range(overlap if stored else 0, num_frames)]
            start = len(places) + len(new) - num_frames
            places += new
            stored.append(Chunk(index, start, start + num_frames, length))
        if fixed_frame is not None:
            if not 0 <= fixed_frame < len(places):
                raise InputError(f"--fixed-frame {fixed_frame}: clip {clip.name!r} has frames 0 to {len(places) - 1}")
            still = Chunk(0, 0, cut.frames, cut.frames)
            return cls(clip, [still], {still: [places[fixed_frame]] * cut.frames}, 0, fps)
        if len(stored) > 1 and cut.mode != "blend":
            chunks = select(stored, cut.mode)
            return cls(clip, chunks, {c: [(c.index, i) for i in range(c.num_frames)] for c in chunks}, overlap, fps)
        chunks = cut.plan(len(places))
        return cls(clip, chunks, {chunk: places[chunk.start : chunk.stop] for chunk in chunks}, overlap, fps)

    def read(self, chunk: Chunk, frame: int, label: str) -> np.ndarray:
        """A frame of one buffer, as stored."""
        stored, i = self.places[chunk][frame]
        return self.clip.read(label, stored, i, i + 1)[0]

    def runs(self, chunk: Chunk, label: str, placement: ResizePlan) -> Iterator[Float[np.ndarray, "1 n h w 3"]]:
        """The frames of one buffer as the network sees them, some at a time, the last repeated to fill the chunk."""
        files = [self.clip.paths[label, stored][frame] for stored, frame in self.places[chunk]]
        return frames_in_runs(map(placement.fit, read_frames(files, label, self.clip.assumed)), chunk.length)
