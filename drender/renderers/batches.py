"""Batches for the device: of equal shapes, with the next one computed while the last is used."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Float

# Frames per device that are encoded together: enough to fill a GPU, few enough for its memory.
ENCODE_BATCH = 8


def batched(items: Sequence, n: int) -> list[Sequence]:
    """Split items into consecutive batches of n; the last may be shorter."""
    return [items[i : i + n] for i in range(0, len(items), n)]


def equal_batches(rows: Iterable[np.ndarray], n: int) -> list[list[np.ndarray]]:
    """Split rows into consecutive batches of at most n rows of the same shape."""
    batches: list[list[np.ndarray]] = []
    for row in rows:
        if batches and len(batches[-1]) < n and batches[-1][0].shape == row.shape:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def map_in_batches(fn: Callable, items: Float[np.ndarray, "n ..."], num_devices: int = 1) -> Float[np.ndarray, "n ..."]:
    """Apply `fn` to batches of at most ENCODE_BATCH items per device.

    All batches have the same size, so that `fn` compiles once: the last item is repeated to fill them.
    """
    n = len(items)
    num_batches = -(-n // (ENCODE_BATCH * num_devices))
    size = -(-n // (num_batches * num_devices)) * num_devices
    padding = np.repeat(items[-1:], num_batches * size - n, axis=0)
    batches = np.split(np.concatenate([items, padding]), num_batches)
    return np.concatenate(list(prefetch_to_host(map(fn, batches))))[:n]


def prefetch_to_host(results: Iterable[jax.Array]) -> Iterator[np.ndarray]:
    """Yield device results as numpy arrays; the next one is dispatched before the current one is awaited."""
    results = iter(results)
    current = next(results)
    for following in results:
        yield np.asarray(current)
        current = following
    yield np.asarray(current)
