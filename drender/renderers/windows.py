"""Windows of clips that are longer than the model's: planning, stacking as rows, and cross-fading."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import ArrayLike, Float

# Bound on the scale that aligns depth between windows; a flat overlap would make it arbitrary.
MAX_STRETCH = 2.0


@dataclass(frozen=True)
class WindowedLatents:
    """Latents of a clip as overlapping windows."""

    windows: list[slice]  # the clip's frames in each window, in order
    latents: list[ArrayLike]  # of each window, `b f h w c`

    def blended(self) -> Float[ArrayLike, "b f h w c"]:
        """Return the latents of all frames, cross-faded where windows overlap."""
        if len(self.latents) == 1:
            return self.latents[0]
        return concat_frames(cross_fade(self.windows, self.latents))


def plan_windows(num_frames: int, length: int, overlap: int) -> list[slice]:
    """Return the fewest windows of `length` frames whose neighbors share at least `overlap` frames, evenly spaced.

    A clip that is not longer than a window is one window of its own length.
    """
    if num_frames <= length:
        return [slice(0, num_frames)]
    count = -(-(num_frames - overlap) // (length - overlap))
    starts = np.linspace(0, num_frames - length, count).round().astype(int)
    return [slice(start, start + length) for start in starts.tolist()]


def stack_windows(clips: ArrayLike, windows: list[slice]) -> ArrayLike:
    """Return the windows of `b f ...` as rows, `(windows b) f ...`; a single window stays on its device."""
    rows = [clips[:, window] for window in windows]
    return rows[0] if len(rows) == 1 else np.concatenate(rows)


def unstack_windows(rows: ArrayLike, num_windows: int) -> list[ArrayLike]:
    """Split rows into windows: the inverse of `stack_windows`."""
    return [rows] if num_windows == 1 else np.split(np.asarray(rows), num_windows)


def concat_frames(runs: Iterable[Float[np.ndarray, "b n h w c"]]) -> Float[np.ndarray, "b f h w c"]:
    """Concatenate frames that arrive some at a time."""
    return np.concatenate(list(runs), axis=1)


def cross_fade(
    windows: Iterable[slice],
    pieces: Iterable[Float[ArrayLike, "b f h w c"]],
    match: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> Iterator[Float[np.ndarray, "b f2 h w c"]]:
    """Yield all frames in order, each as soon as no later window contains it.

    The weight of a window rises in even steps from 0 to 1 over the frames that it shares with those before.

    Args:
      pieces: the frames of each window.
      match: adjusts a window's frames to those before it: (the frames so far that it shares, its own) -> its own.
    """
    held, stop = None, 0  # frames that the next window may still change, and the end of the windows so far
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
    """Scale and shift each clip of `piece` so that its first n frames fit `before` in the least-squares sense.

    Relative depth has a range of its own in every window. This gives it the range of the window before.
    """
    axes = (1, 2, 3, 4)
    first = piece[:, : before.shape[1]]
    mean, target = first.mean(axes, keepdims=True), before.mean(axes, keepdims=True)
    variance = np.square(first - mean).mean(axes, keepdims=True)
    scale = ((first - mean) * (before - target)).mean(axes, keepdims=True) / np.maximum(variance, 1e-8)
    scale = np.clip(scale, 1 / MAX_STRETCH, MAX_STRETCH)
    return ((piece - mean) * scale + target).astype(piece.dtype)
