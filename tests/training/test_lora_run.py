"""A run that trains LoRA factors alone."""

import dataclasses
import json

import numpy as np
import pytest
from helpers import smallest
from helpers.small import random_params

from drender.checkpoints import orbax
from drender.models.registry import network_of
from drender.training import loop
from drender.training.config import LoraConfig
from drender.training.run_dir import load_ema
from drender.training.weights import resolve_weights


@pytest.mark.slow
def test_lora_alone_learns_from_plain_sources(tmp_path):
    clips = smallest.write_balls(tmp_path / "clips", light=False)
    config = smallest.config("inverse", clips, tmp_path / "run", **{"optimizer.steps": 2, "optimizer.warmup": 0})
    renderer = resolve_weights(config).model
    parts = {name: random_params(*network_of(renderer, name)) for name in ("unet", "vae")}
    orbax.save(tmp_path / "start", renderer, parts)
    fine_tuning = {
        "lora": LoraConfig(rank=2),
        "trainable": ("lora",),
        "init_from": str(tmp_path / "start"),
        "model": {},
    }
    assert loop.train(dataclasses.replace(config, **fine_tuning)) == 0
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert all(line["gradient_norm"] > 0 for line in lines)
    factors = load_ema(tmp_path / "run", "lora")
    # Cross-attention to a single token does not depend on its queries and keys.
    trained = [x for name, x in factors.items() if ".attn1." in name and name.endswith("lora_B")]
    assert trained and all(np.abs(x).max() > 0 for x in trained)
