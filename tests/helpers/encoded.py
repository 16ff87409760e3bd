"""Cached latents of tiny clips."""

from collections.abc import Sequence
from pathlib import Path

import jax

from drender.data import encode
from drender.data.augment import AugmentationConfig


def encode_clips(
    source: Path,
    destination: Path,
    checkpoint: Path,
    labels: Sequence[str],
    augmentation: AugmentationConfig = AugmentationConfig(),
    devices: Sequence[jax.Device] | None = None,
    **options,
) -> None:
    """Encode these labels and no others; on one device, because each compiles."""
    paths = {"source": str(source), "destination": str(destination), "checkpoint": str(checkpoint)}
    options |= {"labels": tuple(labels), "environment": False, **vars(augmentation)}
    encode.encode_clips(encode.EncodeOptions(**paths, **options), devices or jax.local_devices()[:1])
