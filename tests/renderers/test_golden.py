"""Tiny renderers against golden results of the released pipeline."""

import json
from pathlib import Path

import numpy as np
import pytest

from drender import ForwardRenderer, InverseRenderer
from drender.config import ENVIRONMENT_LABELS

GOLDEN = Path(__file__).parents[1] / "golden"


def load_golden(name: str) -> tuple[dict, dict]:
    with np.load(GOLDEN / f"{name}.npz") as data:
        arrays = dict(data)
    return arrays, json.loads(str(arrays.pop("meta")))


def psnr(a, b):
    return -10 * np.log10(np.mean((a - b) ** 2))


def test_inverse_matches_the_released_pipeline(inverse_checkpoint):
    golden, meta = load_golden("inverse_tiny")
    renderer = InverseRenderer.load(inverse_checkpoint, dtype="float32")
    buffers = renderer(golden["rgb"], meta["passes"], noise=golden["noise"], num_steps=meta["steps"])
    for name in meta["passes"]:
        assert np.abs(buffers[name] - golden[f"frames.{name}"]).max() < 2e-3, name


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scale"), [("forward_tiny_nolora", 0.0), ("forward_tiny_lora025", 0.25)])
def test_forward_matches_the_released_pipeline(forward_checkpoint, name, scale):
    golden, meta = load_golden(name)
    forward = ForwardRenderer.load(forward_checkpoint, dtype="float32", lora_scale=scale)
    frames = forward(
        {condition: golden[f"gbuffer.{condition}"] for condition in meta["conditions"]},
        {label: golden[label] for label in ENVIRONMENT_LABELS},
        noise=golden["noise"],
        num_steps=meta["steps"],
        guidance=meta["guidance"],
    )
    assert np.abs(frames - golden["frames"]).max() < 2e-3


# Measured: 42.8 dB and 62.0 dB.
@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "min_psnr"), [("bfloat16", 39.0), ("float16", 55.0)])
def test_half_precision_stays_close_to_the_released_pipeline(inverse_checkpoint, dtype, min_psnr):
    golden, meta = load_golden("inverse_tiny")
    renderer = InverseRenderer.load(inverse_checkpoint, dtype=dtype)
    frames = renderer(golden["rgb"], ["normal"], noise=golden["noise"], num_steps=meta["steps"])["normal"]
    assert frames.dtype == np.float32
    assert psnr(frames, golden["frames.normal"]) > min_psnr
