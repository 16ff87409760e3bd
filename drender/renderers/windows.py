"""Clips longer than the model: windows that are blended into one another, or the released scripts' separate chunks."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import ArrayLike, Float

# A window of depth is not stretched by more than this, nor shrunk, to fit the one before: what little they share may
# be flat.
MAX_STRETCH = 2.0


# --- windows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WindowedLatents:
    """Frames, or their latents, as windows that share some.

    Attributes:
      windows: which frames of the clip each has, in order.
      pieces: of each window, `b f h w c`.
    """

    windows: list[slice]
    pieces: list[ArrayLike]

    def blended(self) -> Float[ArrayLike, "b f h w c"]:
        """All frames, each once."""
        if len(self.pieces) == 1:
            return self.pieces[0]
        return whole(cross_fade(self.windows, self.pieces))


def whole(runs: Iterable[Float[np.ndarray, "b n h w c"]]) -> Float[np.ndarray, "b f h w c"]:
    """Frames that come some at a time, in one array."""
    return np.concatenate(list(runs), axis=1)


def plan_windows(num_frames: int, length: int, overlap: int) -> list[slice]:
    """As few windows of `length` frames as share `overlap` or more with their neighbours, evenly spread.

    A clip that is no longer than a window is one of its own length.
    """
    if num_frames <= length:
        return [slice(0, num_frames)]
    count = -(-(num_frames - overlap) // (length - overlap))
    starts = np.linspace(0, num_frames - length, count).round().astype(int)
    return [slice(start, start + length) for start in starts.tolist()]


def cross_fade(
    windows: Iterable[slice],
    pieces: Iterable[Float[ArrayLike, "b f h w c"]],
    match: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> Iterator[Float[np.ndarray, "b f2 h w c"]]:
    """All frames in order, as soon as no later window has a part in them.

    Over the frames that it shares with those before it, a window's weight rises in even steps from 0 to 1.

    Args:
      match: (frames so far that the window shares, the window's) -> the window's, made to fit.
    """
    held, stop = None, 0
    for window, piece in zip(windows, map(np.asarray, pieces), strict=True):
        if held is not None:
            shared = stop - window.start
            done, before = held[:, : held.shape[1] - shared], held[:, held.shape[1] - shared :]
            if match is not None and shared:
                piece = match(before, piece)
            weight = (np.arange(1, shared + 1, dtype=np.float32) / (shared + 1))[:, None, None, None]
            mixed = before + weight * (piece[:, :shared] - before)
            yield done
            piece = np.concatenate([mixed, piece[:, shared:]], axis=1)
        held, stop = piece, window.stop
    yield held


def match_range(
    before: Float[np.ndarray, "b n h w c"], piece: Float[np.ndarray, "b f h w c"]
) -> Float[np.ndarray, "b f h w c"]:
    """The piece scaled and shifted so that its first n frames fit `before`, in least squares, clip by clip.

    Relative depth has a range of its own in every window; this makes it that of the window before.
    """
    axes = (1, 2, 3, 4)
    first = piece[:, : before.shape[1]]
    mean, aim = first.mean(axes, keepdims=True), before.mean(axes, keepdims=True)
    variance = np.square(first - mean).mean(axes, keepdims=True)
    scale = ((first - mean) * (before - aim)).mean(axes, keepdims=True) / np.maximum(variance, 1e-8)
    scale = np.clip(scale, 1 / MAX_STRETCH, MAX_STRETCH)
    return ((piece - mean) * scale + aim).astype(piece.dtype)


# --- chunks ----------------------------------------------------------------------------------------------------------
