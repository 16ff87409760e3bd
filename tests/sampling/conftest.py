"""Commands of `sample.py` in this process, with renderers that render at once unless a test asks for networks."""

import functools
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import small
from helpers.runs import (
    PASSES,
    QUICK,
    QUICK_LIGHT,
    write_frames,
    write_gbuffers,
    write_hdr,
)
from helpers.stand_ins import ForwardStandIn, InverseStandIn

import sample
from drender import cli
from drender.checkpoints import orbax
from drender.renderers.forward import ForwardRenderer
from drender.renderers.inverse import InverseRenderer


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of small models; the forward one has LoRA factors."""
    folder = tmp_path_factory.mktemp("models")
    for kind, config in (("inverse", small.inverse_config()), ("forward", small.forward_config())):
        orbax.save(folder / kind, config, small.params_of(config))
    return {"inverse": folder / "inverse", "forward": folder / "forward"}


LOADED = {cls: functools.cache(cls.load) for cls in (InverseRenderer, ForwardRenderer)}


@pytest.fixture(autouse=True, scope="module")
def quick_environments(small_cubes):
    """Environments through smaller cube maps."""


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """Replace the renderers by instant ones, because most tests are about everything around them."""
    monkeypatch.setattr(InverseRenderer, "load", lambda *_: InverseStandIn())
    monkeypatch.setattr(ForwardRenderer, "load", lambda *_: ForwardStandIn())


@pytest.fixture
def networks(stand_ins, monkeypatch):
    """The real ones instead. They stay loaded, and what is compiled of them stays compiled, from test to test."""
    for cls, load in LOADED.items():
        monkeypatch.setattr(cls, "load", load)


@pytest.fixture(scope="session")
def walk(tmp_path_factory) -> Path:
    """A folder of three frames; not to be changed."""
    return write_frames(tmp_path_factory.mktemp("input") / "walk", 3)


@pytest.fixture(scope="session")
def gbuffers(tmp_path_factory) -> Path:
    """G-buffers of two frames; not to be changed."""
    return write_gbuffers(tmp_path_factory.mktemp("input") / "gbuffers")


@pytest.fixture(scope="session")
def sky(tmp_path_factory) -> Path:
    """A Radiance map 64×32 with a sun and a bright side."""
    light = np.random.default_rng(0).random((32, 64, 3)).astype(np.float32)
    light[:, :16] *= 20
    light[4:8, 10:14] = 500
    return write_hdr(tmp_path_factory.mktemp("sky") / "sky.hdr", light)


@pytest.fixture
def run(monkeypatch, capsys):
    """run(*arguments) -> (exit code, stdout, stderr), in this process; one device unless asked for more."""

    def call(*arguments) -> tuple[int, str, str]:
        words = [str(word) for word in arguments]
        if (
            "--devices" not in words
            and words
            and words[0] in ("inverse", "forward", "relight")
            and "--help" not in words
        ):
            words += ["--devices", "1"]
        monkeypatch.setattr(sys, "argv", ["sample.py", *words])
        with pytest.raises(SystemExit) as stopped:
            cli.run(sample.main)
        return (stopped.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def inverse(run, models):
    """A quick run of `inverse` for two passes."""
    return functools.partial(run, "inverse", "--checkpoint", models["inverse"], "--passes", *PASSES, *QUICK)


@pytest.fixture
def forward(run, models, sky):
    return functools.partial(
        run, "forward", "--checkpoint", models["forward"], "--environment", sky, *QUICK, *QUICK_LIGHT
    )


@pytest.fixture
def relight(run, models, sky):
    arguments = ("--inverse", models["inverse"], "--forward", models["forward"], "--environment", sky)
    return functools.partial(run, "relight", *arguments, *QUICK, *QUICK_LIGHT)
