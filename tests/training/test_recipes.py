"""The recipes of docs/training.md: their commands run as they are written, on tiny networks and clips."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import smallest
from helpers.renders import write_blender
from helpers.small import random_params

import drender.commands.main
from drender import sharding
from drender.checkpoints import orbax
from drender.commands import train
from drender.media.images import write_png
from drender.models.registry import NETWORKS, network_of
from drender.training.config import read_config
from drender.training.init import renderer_config
from drender.training.weights import resolve_weights

ROOT = Path(__file__).parents[2]
RECIPES = dict(re.findall(r"```sh\n# recipe: (\w+)\n(.*?)```", (ROOT / "docs/training.md").read_text(), re.S))
TINY = [
    "data.batch=2", "data.frames=2", "data.size=[16,16]", "dtype=float32", "remat=false", "optimizer.steps=2",
    "optimizer.grad_accum_steps=1", "optimizer.warmup=1", "save_every=1", "evaluation.every=1",
    "evaluation.num_steps=1", "evaluation.clips=1",
]  # fmt: skip
ADDED = {  # to commands, by their first words
    "drender train": TINY,
    "drender inverse": ["--steps", "1", "--frames", "2", "--size", "64", "64"],
    "drender.data label": ["--steps", "1", "--frames", "2", "--size", "64", "64", "--devices", "1"],
    "drender.data encode": ["--size", "16", "16", "--devices", "1"],
    "drender.synthetic": ["--clips", "2", "--frames", "2", "--spp", "1", "--processes", "1"],
}


def words_of(recipe: str) -> list[list[str]]:
    lines = RECIPES[recipe].replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line]


def run(words: list[str], monkeypatch) -> None:
    """Run a command in this process."""
    words = words[words.index("-m") + 1 :] if "-m" in words else words
    name = " ".join(words[:2])
    added = next((extra for prefix, extra in ADDED.items() if name.startswith(prefix)), [])
    monkeypatch.setattr(sys, "argv", [*words, *added])
    module = drender.commands.main if words[0] == "drender" else importlib.import_module(f"{words[0]}.__main__")
    assert not module.main(), words


def write_checkpoint(folder: Path, kind: str) -> None:
    """Write a tiny Stable Video Diffusion or inverse renderer, with random weights."""
    model = {"unet": smallest.UNET | {"in_channels": 8, "context_vocab_size": 16}, "vae": smallest.VAE}
    model |= {"size": [16, 16], "environment_size": [16, 16], "frames": 2}
    config = resolve_weights(smallest.config("vae", "", "", model=model)).model
    if kind == "inverse":
        config = renderer_config("inverse", config)
    names = [name for name in NETWORKS if getattr(config, name) is not None]
    orbax.save(folder, config, {name: random_params(*network_of(config, name)) for name in names})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: checkpoints, clips, held-out clips, renders and footage."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sharding, "join_hosts", lambda *_: None)  # JAX computes in this process already
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    for kind in ("svd", "inverse"):
        write_checkpoint(tmp_path / "checkpoints" / kind, kind)
    return tmp_path


def write_clips(folder: Path) -> None:
    for name, seed in (("clips", 0), ("held-out", 1)):
        smallest.write_balls(folder / name, clips=2, seed=seed)
        for file in sorted((folder / name).glob("*/*.roughness.png")):  # a new kind of G-buffer
            file.with_name(file.name.replace("roughness", "glossiness")).write_bytes(file.read_bytes())


def write_footage(folder: Path) -> None:
    for frame in range(2):
        write_png(folder / "footage" / "walk" / f"{frame}.png", np.full((64, 64, 3), 0.3 + 0.1 * frame, np.float32))


@pytest.mark.long
@pytest.mark.parametrize("recipe", sorted(set(RECIPES) - {"hosts"}))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_recipe_runs_as_it_is_written(recipe, folder, monkeypatch):
    if recipe == "renders":
        for shots in ("shots", "held-out-shots"):
            write_blender(folder / shots / "chair", size=16)
    elif recipe != "loop":
        write_clips(folder)
        write_footage(folder)
    if recipe == "loop":
        monkeypatch.setitem(ADDED, "drender train", [x for x in TINY if not x.startswith(("data.size", "data.frames"))])
    for words in words_of(recipe):
        run(words, monkeypatch)
    for metrics in folder.glob("runs/*/metrics.jsonl"):
        assert "evaluation/loss/mean" in metrics.read_text()


def test_every_recipe_has_valid_keys():
    """Commands for several hosts, which are not run, included."""
    assert set(RECIPES) == {"loop", "renders", "lora", "buffer", "forward", "svd", "hosts"}
    for recipe in RECIPES:
        for words in words_of(recipe):
            if "drender" in words and "train" in words:
                options, overrides = train.split(train.parser("train"), words[words.index("train") + 1 :])
                read_config(options[options.index("--config") + 1], overrides)
