"""Batches for the device: of equal shapes, with the next one computed while the last is used."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Float

from drender.errors import is_out_of_memory
from drender.renderers.windows import cross_fade, plan_windows

# Frames per device that are encoded together: enough to fill a GPU, few enough for its memory.
ENCODE_BATCH = 8


def batched(items: Sequence, n: int) -> list[Sequence]:
    """Split items into consecutive batches of n; the last may be shorter."""
    return [items[i : i + n] for i in range(0, len(items), n)]


def map_in_batches(
    fn: Callable, items: Float[np.ndarray, "n ..."], num_devices: int = 1, batch: int = ENCODE_BATCH
) -> Float[np.ndarray, "n ..."]:
    """Apply `fn` to batches of `batch` items, or to a single item alone; several devices share the items evenly.

    The last item is repeated to fill the batches, so that images, G-buffers and environment maps share one program.
    """
    n = len(items)
    num_batches = -(-n // (batch * num_devices))
    size = batch if num_devices == 1 and n > 1 else -(-n // (num_batches * num_devices)) * num_devices
    padding = np.repeat(items[-1:], num_batches * size - n, axis=0)
    batches = np.split(np.concatenate([items, padding]), num_batches)
    return np.concatenate(list(prefetch_to_host(map(fn, batches))))[:n]


def map_in_windows(
    fn: Callable, clips: Float[np.ndarray, "b f ..."], length: int, overlap: int, num_devices: int = 1
) -> Iterator[Float[np.ndarray, "b n ..."]]:
    """Yield the results of `fn` on windows of frames, one row per device.

    Without `overlap` the last window may be shorter. With it all have the same length, and are cross-faded over the
    frames that they share.
    """
    f = clips.shape[1]
    windows = [slice(start, min(start + length, f)) for start in range(0, f, length)]
    if overlap:
        windows = plan_windows(f, length, overlap)
    rows = [clip[None, window] for window in windows for clip in clips]
    # Every device takes a row of its own; they share rows only if too few are left.
    batches = [batch for _, equal in itertools.groupby(rows, np.shape) for batch in batched(list(equal), num_devices)]
    results = prefetch_to_host(fn(np.concatenate(batch)) for batch in batches)
    frames = (row for result in results for row in result)
    return cross_fade(windows, (np.stack([next(frames) for _ in clips]) for _ in windows))


def halve_to_fit(run: Callable[[int], Iterable], size: int) -> tuple[int, Iterator]:
    """Return `size` and the results of `run(size)`, or those of the largest half, quarter, … that the device can hold.

    The first result decides: those that follow need as much memory.
    """
    while True:
        try:
            results = iter(run(size))
            return size, itertools.chain([next(results)], results)
        except RuntimeError as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        size //= 2


def prefetch_to_host(results: Iterable[jax.Array]) -> Iterator[np.ndarray]:
    """Yield device results as numpy arrays; the next one is dispatched before the current one is awaited."""
    results = iter(results)
    current = next(results)
    for following in results:
        yield np.asarray(current)
        current = following
    yield np.asarray(current)
