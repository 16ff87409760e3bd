"""Tiny training runs: networks of one level and clips of 16×16 pixels, whose only cost is compilation."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import yaml
from helpers.small import random_params
from helpers.tiny_clips import write_sky

from drender import sharding
from drender.checkpoints import orbax
from drender.fields import from_dict
from drender.lighting.light_file import Light, write_light
from drender.media.gbuffers import frame_path
from drender.media.images import write_png
from drender.models.params import flatten
from drender.models.registry import network_of
from drender.sharding import MeshConfig
from drender.training import loop
from drender.training.config import TrainConfig
from drender.training.run_dir import RunFolder
from drender.training.step import compile_step, init_state, make_optimizer, make_step
from drender.training.weights import resolve_weights

SIZE = 16
UNET = {
    "block_out_channels": [8],
    "down_block_types": ["DownBlockSpatioTemporal"],  # attention is in the middle only
    "up_block_types": ["UpBlockSpatioTemporal"],
    "layers_per_block": 1,
    "transformer_layers_per_block": 1,
    "num_attention_heads": 2,
    "cross_attention_dim": 8,
    "temporal_cross_attention_dim": 8,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24,
    "norm_num_groups": 4,
}
VAE = {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4}
EXACT = {"one_step": True, "condition_dropout": 0.0, "all_dropout": 0.0}


def settings(objective: str, clips: Path | str, output: Path | str, /, **changes) -> dict:
    """Return the values of a run's YAML file, with changes by dotted name."""
    values = {
        "objective": objective,
        "output": str(output),
        "model": {"vae": VAE} | ({} if objective == "vae" else {"unet": UNET}),
        "data": {"sources": [{"path": str(clips)}], "batch": 4, "frames": 2, "size": [SIZE, SIZE]},
        "optimizer": {"warmup": 2, "learning_rate": 1e-3},
        "dtype": "float32",
        "remat": False,
        "log_every": 1,
    }
    for name, value in changes.items():
        *parents, last = name.split(".")
        branch = values
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = value
    return values


def config(*run, **changes) -> TrainConfig:
    """Return the run of `settings`."""
    return from_dict(TrainConfig, settings(*run, **changes), "the test")


def write_config(path: Path, *run, **changes) -> Path:
    """Write the run of `settings` to a file."""
    path.write_text(yaml.safe_dump(settings(*run, **changes)))
    return path


@contextlib.contextmanager
def begin_run(output: Path, **changes) -> Iterator[RunFolder]:
    """Begin an auto-encoder's run without any step, and yield its folder."""
    run = config("vae", "", output, **changes)
    with RunFolder(run, resolve_weights(run).model) as folder:
        folder.begin()
        yield folder


def write_vae(folder: Path, seed: int = 0, dtype: str = "float32") -> Path:
    """Write a checkpoint that holds only an auto-encoder, with random parameters."""
    model = resolve_weights(config("vae", "", "")).model
    params = random_params(*network_of(model, "vae"), seed)
    orbax.save(folder, model, {"vae": jax.tree.map(lambda x: np.asarray(x, dtype), params)})
    return folder


def write_balls(folder: Path, clips: int = 1, frames: int = 2, size: int = SIZE, seed: int = 0, light: bool = True):
    """Write clips of a lit ball that moves before a wall, with exact labels, and return `folder`."""
    random = np.random.default_rng(seed)
    write_sky(folder / "sky.exr", seed)
    y, x = np.meshgrid(np.linspace(1, -1, size), np.linspace(-1, 1, size), indexing="ij")
    for clip in range(clips):
        path = folder / f"clip{clip}"
        colours, roughness, metallic = random.random((2, 3)), random.random(), random.integers(2)
        centre, motion, sun = random.uniform(-0.2, 0.2, 2), random.uniform(-0.1, 0.1, 2), random.uniform(0.2, 0.8, 3)
        for frame in range(frames):
            u, v = (x - centre[0] - motion[0] * frame) / 0.6, (y - centre[1] - motion[1] * frame) / 0.6
            ball = u**2 + v**2 < 1
            height = np.sqrt(np.clip(1 - u**2 - v**2, 0, 1))
            normal = np.where(ball[..., None], np.stack([u, v, height], -1), (0, 0, 1))
            basecolor = np.where(ball[..., None], *colours)
            images = {
                "rgb": basecolor * (0.2 + 0.6 * np.clip(normal @ sun, 0, 1)[..., None]),
                "basecolor": basecolor,
                "normal": normal / 2 + 0.5,
                "depth": np.where(ball, 0.6 - height / 2, 1)[..., None],
                "roughness": np.where(ball, roughness, 0.5)[..., None],
                "metallic": np.where(ball, metallic, 0)[..., None],
            }
            for label, image in images.items():
                image = np.broadcast_to(np.clip(image, 0, 1), (size, size, 3)).astype(np.float32)
                write_png(frame_path(path, 0, frame, label), image)
        if light:
            write_light(path, Light("../sky.exr"))
    return folder


# --- steps without a run ---------------------------------------------------------------------------------------------


def batch(rows: int, frames: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """Return random rows of the inverse objective."""
    random = np.random.default_rng(seed)
    images = lambda: random.random((rows, frames, SIZE, SIZE, 3), np.float32)
    return {
        "rgb": images(),
        "buffer": images(),
        "domain": np.arange(rows, dtype=np.int32) % 5,
        "image_only": np.zeros(rows, bool),
        "real": np.arange(rows) % 2 == 1,
    }


def steps(config: TrainConfig, mesh: MeshConfig, devices: list[jax.Device], number: int = 2) -> dict[str, np.ndarray]:
    """Run steps of the inverse objective; return losses, moments, parameters and EMA by name."""
    mesh = sharding.make_mesh(mesh, config.data.batch, config.optimizer.grad_accum_steps, devices)
    weights = resolve_weights(config)
    setup = loop.make_setup(config, weights, latent=False, mesh=mesh)
    leaves = flatten({name: random_params(*network_of(weights.model, name)) for name in ("unet", "vae")})
    trained = {name: x for name, x in leaves.items() if weights.trains(name)}
    frozen = {name: x for name, x in leaves.items() if name not in trained}
    optimizer = make_optimizer(config.optimizer)
    state = init_state(trained, optimizer, mesh)
    frozen = sharding.device_put_global(frozen, sharding.param_sharding(frozen, mesh))
    rows = sharding.make_global_batch(batch(config.data.batch, config.data.frames), mesh) | {
        "stop": sharding.per_process_value(0, mesh)
    }
    step = compile_step(make_step(setup, config, optimizer), state, frozen, rows, mesh)
    results = {}
    for i in range(number):
        state, metrics = step(state, frozen, rows, np.uint32(i))
        results |= {f"{name} {i}": np.asarray(value) for name, value in metrics.items()}
    moments = state.optimizer[1][0].mu
    for kind, tree in (("moment", moments), ("parameter", state.params), ("average", state.ema)):
        results |= {f"{kind} {name}": np.asarray(value) for name, value in tree.items()}
    results |= {"sharded": np.int32(sum(not x.sharding.is_fully_replicated for x in state.params.values()))}
    return results
