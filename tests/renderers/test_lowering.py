"""Every compiled stage lowers for CUDA, with calls of fused attention exactly where cuDNN supports it; needs no GPU."""

import dataclasses
import re

import jax
import plan
import pytest
from helpers import small

from drender import sharding
from drender.models import attention

CUDNN = "__cudnn$fmhaSoftmax"
# The decoder has attention from two layers on.
VAE = dataclasses.replace(small.VAE, layers_per_block=2)
# Its one head is wider than cuDNN supports, as in the released VAE.
WIDE_VAE = dataclasses.replace(VAE, block_out_channels=(32, 160))
INVERSE = dataclasses.replace(small.inverse_config(small.ONE_LEVEL), vae=VAE)
GROUP = sharding.DeviceGroup(tuple(jax.devices()))
FORWARD = dataclasses.replace(small.forward_config(small.ONE_LEVEL), vae=VAE)


@pytest.fixture(autouse=True)
def simulated_gpu(monkeypatch):
    """Answer for a GPU and its cuDNN, about which `attend` and JAX inquire."""
    monkeypatch.setattr(attention, "has_fused_attention", lambda: True)
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)


def fused_calls(fn, *arguments) -> int:
    """Return the number of fused-attention calls of a function lowered for CUDA."""
    return count_fused(jax.jit(fn).trace(*arguments))


def count_fused(traced) -> int:
    lowered = traced.lower(lowering_platforms=("cuda",)).as_text()
    return len(re.findall(rf"custom_call @({re.escape(CUDNN)}|CustomSPMDPartitioning)\b", lowered))


# The UNet has four transformers, each with attention over space and over time; the forward renderer's also over tokens.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "options", "expected"),
    [
        (INVERSE, {}, {"encode": 1, "denoise": 8, "decode": 1}),
        # Two passes in one batch, and guidance.
        (INVERSE, {"passes": ("normal", "depth"), "guidance": 1.5}, {"encode": 1, "denoise": 8, "decode": 1}),
        # An image has no attention over time.
        (INVERSE, {"num_frames": 1}, {"encode": 1, "denoise": 4, "decode": 1}),
        # Odd sides and frames.
        (INVERSE, {"num_frames": 3, "size": (10, 14)}, {"encode": 1, "denoise": 8, "decode": 1}),
        (FORWARD, {}, {"encode": 1, "environment": 0, "denoise": 12, "decode": 1}),
        (FORWARD, {"light_frames": 2}, {"encode": 1, "environment": 0, "denoise": 12, "decode": 1}),
        (FORWARD, {"drop": ("environment",)}, {"encode": 1, "denoise": 8, "decode": 1}),
        (dataclasses.replace(INVERSE, vae=WIDE_VAE), {}, {"encode": 0, "denoise": 8, "decode": 0}),
        (INVERSE, {"group": GROUP}, {"encode": 1, "denoise": 8, "decode": 1}),
        (FORWARD, {"group": GROUP}, {"encode": 1, "environment": 0, "denoise": 12, "decode": 1}),
    ],
    ids=["inverse", "two guided passes", "image", "odd", "forward, still light", "forward, moving light",
         "forward, no light", "wide head", "frames on two GPUs", "halves of guidance on two GPUs"],
)  # fmt: skip
def test_every_stage_lowers_for_cuda(config, options, expected):
    stages = plan.stages(config, "bfloat16", **{"num_frames": 2, "size": (16, 16), "num_steps": 2} | options)
    assert {stage.name for stage in stages} == set(expected)
    for stage in stages:
        traced = stage.fn.trace(*stage.arguments, split=stage.split)
        assert count_fused(traced) == expected[stage.name], stage.name


@pytest.mark.parametrize(
    ("dtype", "rows", "head", "fused"),
    [
        ("bfloat16", 2, 64, True),
        ("float16", 2, 64, True),
        ("bfloat16", 2, 128, True),
        ("float32", 2, 64, False),
        ("bfloat16", 2, 512, False),
        ("bfloat16", 2, 20, False),
        ("bfloat16", 2**16, 64, False),
    ],
)
def test_fused_attention_needs_cudnn_support(dtype, rows, head, fused):
    q = jax.ShapeDtypeStruct((rows, 24, 5, head), dtype)
    assert fused_calls(attention.attend, q, q, q) == fused


def test_gradients_of_fused_attention_lower_for_cuda():
    q = jax.ShapeDtypeStruct((2, 24, 5, 64), "bfloat16")
    loss = lambda *qkv: attention.attend(*qkv).astype("float32").sum()
    assert fused_calls(jax.grad(loss, (0, 1, 2)), q, q, q) == 1


def test_gpus_without_fused_attention_lower(monkeypatch):
    monkeypatch.setattr(attention, "has_fused_attention", lambda: False)
    for stage in plan.stages(INVERSE, "float16", 2, (16, 16), num_steps=1):
        assert count_fused(stage.fn.trace(*stage.arguments)) == 0
