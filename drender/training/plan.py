"""Describe a run before it trains: its configuration, parameters, memory, arithmetic and first batch."""

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml
from einops import rearrange

from drender.data.loader import TrainingData
from drender.fields import to_dict
from drender.files import expand_home
from drender.media.images import write_png
from drender.training import flops
from drender.training.config import TrainConfig

# Share of the devices' peak that a step is assumed to reach where nothing is measured yet.
ASSUMED_MFU = 0.4


def describe_config(config: TrainConfig) -> str:
    """Return the complete configuration as YAML, with the defaults that nobody gave."""
    text = yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
    return "configuration:\n" + textwrap.indent(text.rstrip(), "  ")


def describe_parameters(trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> str:
    """Return a line per component: how many of its parameters train."""
    counts: dict[str, list[int]] = {}
    for index, arrays in enumerate((trained, frozen)):
        for key, x in arrays.items():
            counts.setdefault(key.partition(".")[0], [0, 0])[index] += x.size
    return "\n".join(f"{name}: {a:,} parameters train, {b:,} are frozen" for name, (a, b) in sorted(counts.items()))


def describe_step(config: TrainConfig, flops_per_step: float) -> str:
    """Return the arithmetic of a step, and the time that it takes by the devices' peak."""
    device, count = jax.devices()[0], jax.device_count()
    total = f"{flops_per_step / 1e12:.4g} TFLOP per step on {count} × {device.device_kind}, without rematerialization"
    peak = flops.peak(device.device_kind, config.dtype)
    if peak is None:
        return f"{total}\nthe peak of {device.device_kind} is unknown: run a few steps to learn their time"
    seconds = flops_per_step / (peak * count * ASSUMED_MFU)
    hours = seconds * config.optimizer.steps / 3600
    return (
        f"{total}\nat {ASSUMED_MFU:.0%} of the peak of {peak / 1e12:g} TFLOP/s per device, a step takes "
        f"{seconds:.3g} s and the run of {config.optimizer.steps} steps {hours:.3g} h"
    )


def write_batch(config: TrainConfig, data: TrainingData) -> Path:
    """Draw the first rows of this process, beside the folder of the run, and return the file.

    A row of the picture is a row of the batch: the middle frame of each image. Of cached latents the first three
    channels are shown.
    """
    batch = next(data.batches())
    rows = list(zip(*_images(batch), strict=True))[:8]
    height = max(len(image) for row in rows for image in row)
    padded = ([np.pad(image, ((0, height - len(image)), (0, 0), (0, 0))) for image in row] for row in rows)
    picture = np.concatenate([np.concatenate(row, axis=1) for row in padded])
    output = expand_home(config.output)
    path = output.with_name(f"{output.name}.first-batch.png")
    write_png(path, picture)
    return path


def _images(batch: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    """Yield arrays `[b, h, w, 3]`, one per image of a row."""
    for images in batch.values():
        if images.ndim < 5:
            continue
        images = images[:, None] if images.ndim == 5 else images
        frames = rearrange(images[:, :, images.shape[2] // 2], "b i h w c -> i b h w c").astype(np.float32)
        for image in frames[..., :3]:
            low, high = (0, 1) if images.shape[-1] <= 3 else (image.min(), image.max())
            image = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
            yield np.broadcast_to(image, (*image.shape[:3], 3))  # a mask has one channel
