"""The parts of gpu.py that no other script measures.

python benchmarks/gpu_parts.py {about,goldens,training} {tiny,full}
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import roofline
import train_cost
from gpu import ROOT, SCALES
from helpers import small, tiny

from drender import InverseRenderer, sharding
from drender.checkpoints import convert
from drender.training.config import read_config
from drender.training.step import compile_step, init_state, make_optimizer, make_step


def about(scale: str) -> None:
    """Print the platform, and the first lines of the report."""
    from speed import commit  # sets how JAX takes memory, which the other parts leave as users have it

    device = jax.devices()[0]
    versions = f"jax {jax.__version__}, Python {sys.version.split()[0]}, commit {commit()}."
    print(f"{device.platform}\n# {device.device_kind}, {scale} networks\n\n{versions}\n")


def goldens(scale: str) -> None:
    """Print the largest difference and the PSNR of tiny renderers from the released pipeline's results."""
    with np.load(ROOT / "tests/golden/inverse_tiny.npz") as data, tempfile.TemporaryDirectory() as folder:
        tiny.write_released(Path(folder, "released"), "inverse")
        convert.from_released(f"{folder}/released", Path(folder, "model"), log=lambda _: None)
        steps = json.loads(str(data["meta"]))["steps"]
        print("| dtype | largest difference | PSNR, dB |\n|---|---|---|")
        for dtype in ("bfloat16", "float16", "float32") if scale == "full" else ("float32",):
            renderer = InverseRenderer.load(f"{folder}/model", dtype=dtype)
            frames = renderer(data["rgb"], ["normal"], noise=data["noise"], num_steps=steps)["normal"]
            error = frames - data["frames.normal"]
            psnr = -10 * np.log10(np.square(error).mean())
            print(f"| {dtype} | {np.abs(error).max():.1e} | {psnr:.1f} |", flush=True)


def training(scale: str, steps: int = 5) -> None:
    """Print the time of a training step on one row of random latents, beside its prediction."""
    frames, side, _, dtype = SCALES[scale]
    clip = [f"data.frames={frames}", f"data.size=[{side},{side}]", f"dtype={dtype}"]
    config = read_config(ROOT / "configs/inverse.yaml", ["mesh.fsdp=1", "data.batch=1", *clip])
    if scale == "tiny":
        # plan.tiny is as deep as the full networks: 70,000 operations to trace, and minutes to compile on a CPU.
        networks = small.inverse_config()
        model = {name: dataclasses.asdict(getattr(networks, name)) for name in ("unet", "vae")}
        config = dataclasses.replace(config, model=model)
    config, context, trained, frozen, batch = train_cost.abstract_inputs(config, "here", False)
    numbers = np.random.default_rng(0).standard_normal(2**22, np.float32) / 50  # drawing all would take a minute

    def draw(x: jax.ShapeDtypeStruct) -> np.ndarray:
        return np.resize(numbers if jnp.issubdtype(x.dtype, jnp.floating) else 0, x.shape).astype(x.dtype)

    optimizer = make_optimizer(config.optimizer)
    state = init_state(jax.tree.map(draw, trained), optimizer, context.mesh)
    weights = sharding.device_put_global(jax.tree.map(draw, frozen), sharding.param_sharding(frozen, context.mesh))
    rows = sharding.make_global_batch(jax.tree.map(draw, batch), context.mesh)
    began = time.perf_counter()
    step = compile_step(make_step(context, config, optimizer), state, weights, rows, context.mesh)
    print(f"{config.objective}, one row of {frames} frames {side}×{side}, cached latents, {dtype}: compiled in "
          f"{time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip
    seconds = []
    for number in range(steps):
        began = time.perf_counter()
        state, metrics = step(state, weights, rows, np.uint32(number))
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - began)
    name = roofline.named(jax.devices()[0].device_kind)
    kernels, gpu = roofline.Program(step.as_text()).kernels(), roofline.GPUS[name]
    speed = sum(kernel.flop * kernel.calls for kernel in kernels) / min(seconds) / 1e12
    stats = jax.devices()[0].memory_stats()
    peak = f"{stats['peak_bytes_in_use'] / train_cost.GIB:.1f} GiB" if stats else "unknown"
    print(f"fastest of {steps} steps {min(seconds):.3f} s, {speed:.3g} TFLOP/s with recomputation, peak memory {peak}, "
          f"loss {float(metrics['loss']):.3g}\n")  # fmt: skip
    print(roofline.table(f"predicted for one {name}", kernels, gpu, dtype))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parts = {function.__name__: function for function in (about, goldens, training)}
    parser.add_argument("part", choices=parts)
    parser.add_argument("scale", choices=SCALES)
    args = parser.parse_args()
    parts[args.part](args.scale)
