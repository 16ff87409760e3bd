"""Rows of training data: configurations of the loader, and the origin of a row's images."""

from pathlib import Path

import numpy as np
from helpers import small
from helpers.tiny_clips import LABELS, STEP

from drender.data.config import DataConfig, Source

INVERSE, FORWARD = small.inverse_config(), small.forward_config()
DEFAULTS = {"size": (2, 2), "flip": 0.0, "num_workers": 2}


def config(*sources: Source | Path, **options) -> DataConfig:
    listed = tuple(source if isinstance(source, Source) else Source(str(source)) for source in sources)
    return DataConfig(listed, **(DEFAULTS | options))


def origin(image: np.ndarray) -> tuple[str, int, int]:
    """Label, clip and frame of an image of `tiny_clips.write_clip`."""
    label, clip, frame = (round(float(value) * 65535 / STEP) - 1 for value in image[0, 0])
    return LABELS[label], clip, frame
