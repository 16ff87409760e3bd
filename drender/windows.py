"""Clips longer than the model: which frames each chunk takes."""

from dataclasses import dataclass

from .errors import InputError, unknown

MODES = ("all", "first", "drop-last")


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


def plan_chunks(num_frames: int, length: int = 24, overlap: int = 6, mode: str = "all") -> list[Chunk]:
    """Cuts a clip into chunks as the released scripts do, except that every clip has at least one.

    Args:
      num_frames: of the clip, 1 or more.
      length: frames per chunk. A clip that is no longer is one chunk of its own length.
      overlap: frames that a chunk shares with the one before.
      mode: "all", "first" (only the first chunk) or "drop-last" (without an incomplete last chunk).
    Raises:
      InputError: for numbers that make no chunks, or an unknown mode.
    """
    if length < 1:
        raise InputError(f"frames per chunk is {length}; it must be 1 or more")
    if overlap < 0 or (overlap >= length and num_frames > length):
        raise InputError(f"overlap is {overlap}; it must be at least 0 and less than the {length} frames of a chunk")
    if mode not in MODES:
        raise unknown("chunk mode", mode, MODES)
    if num_frames <= length:
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
