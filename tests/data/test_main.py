"""`python -m drender.data`: label and encode, from the command line to training rows."""

import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import small
from helpers.runs import pictures
from helpers.stand_ins import InverseStandIn
from helpers.tiny_clips import LABELS, write_sky

from drender import assets, cli
from drender.checkpoints import orbax
from drender.config import ENVIRONMENT_LABELS
from drender.data import __main__
from drender.data.augment import AugmentationConfig
from drender.data.clips import open_clips
from drender.data.config import DataConfig, Source
from drender.data.latent_cache import read_manifest
from drender.data.loader import TrainingData
from drender.lighting import estimation
from drender.lighting.light_file import Light
from drender.media.gbuffers import find_gbuffer_clips, frame_path
from drender.media.images import read_hdr, read_image, write_png
from drender.renderers.inverse import InverseRenderer

INVERSE, FORWARD = small.inverse_config(), small.forward_config()


@pytest.fixture
def run(monkeypatch, capsys):
    """run(*arguments) -> (exit code, stdout, stderr) of `python -m drender.data`, on one device."""

    def call(*arguments) -> tuple[int, str, str]:
        words = [str(word) for word in arguments]
        words += ["--devices", "1"] * ("--devices" not in words and len(words) > 1)
        monkeypatch.setattr(sys, "argv", ["data.py", *words])
        with pytest.raises(SystemExit) as stopped:
            cli.run(__main__.main)
        return (stopped.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def inverse_model(tmp_path, monkeypatch) -> Path:
    """A checkpoint that is not loaded: the stand-in takes its place."""
    orbax.save(tmp_path / "inverse", INVERSE, {})
    monkeypatch.setattr(InverseRenderer, "load", lambda *_: InverseStandIn())
    return tmp_path / "inverse"


@pytest.mark.slow
def test_encode_and_train(run, lit, vae, tmp_path):
    arguments = ("encode", lit, tmp_path / "set", "--checkpoint", vae, "--size", 12, 12, "--labels", "rgb", "normal")
    code, out, err = run(*arguments, "--variants", 2, "--exposure-range", 0.5, 2, "--crop", 0.75)
    assert code == 0 and "4/4" in err and "4 of 4 entries to encode" in out and "complete" in out
    manifest = read_manifest(tmp_path / "set")
    assert manifest.labels == ("rgb", "normal", *ENVIRONMENT_LABELS)
    assert manifest.environment_size == FORWARD.environment_size
    assert manifest.augmentation == AugmentationConfig(flip=0.5, exposure_range=(0.5, 2.0), crop=0.75)
    data = TrainingData(
        DataConfig((Source(str(tmp_path / "set")),), frames=2, passes=("normal",)), "inverse", INVERSE, rows=2, seed=0
    )
    assert next(data.batches())["buffer"].shape == (2, 2, 6, 6, 4)
    code, out, err = run(*arguments, "--variants", 3)
    assert code == 2 and err.count("\n") == 1 and "holds latents made with another variants (2, now 3)" in err
    code, _, err = run("encode", lit, tmp_path / "plain", "--checkpoint", vae, "--size", 16, 16, "--no-environment")
    assert code == 0 and "2/2" in err
    assert read_manifest(tmp_path / "plain").labels == LABELS


def test_label_makes_training_clips(run, inverse_model, tmp_path):
    for name, frames in (("walk", 5), ("run", 4)):
        for i in range(frames):
            write_png(tmp_path / "real" / name / f"{i}.png", np.full((64, 64, 3), (10 * i + 1) / 255, np.float32))
    for file in ("walk.hdr", "run.exr"):
        write_sky(tmp_path / "skies" / file)
    arguments = ("label", tmp_path / "real", tmp_path / "set", "--checkpoint", inverse_model, "--frames", 2)
    arguments += ("--size", 64, 64, "--passes", "normal", "depth")
    code, _, err = run(*arguments)
    assert (code, err) == (0, "")
    assert not (tmp_path / "set" / "walk" / "light.json").exists()
    code, out, err = run(*arguments, "--environments", tmp_path / "skies")
    assert (code, err) == (0, "") and out.count("finished before, skipped") == 2
    light = json.loads((tmp_path / "set" / "run" / "light.json").read_text())
    assert light["environment"] == "../../skies/run.exr"
    run_clip, walk = open_clips(tmp_path / "set", ("rgb", "normal", "depth", "env_ldr"))
    # Whole chunks only, one after the other.
    assert (run_clip.chunks, walk.chunks) == ({0: 2, 1: 2}, {0: 2, 1: 2})
    frames = [round(float(frame[0, 0, 0]) * 255) for frame in walk.read("rgb", slice(None), (64, 64))]
    assert frames == [1, 11, 21, 31]
    assert walk.light() == Light("../../skies/walk.hdr")
    # A light that was edited by hand is kept.
    (walk.folder / "light.json").write_text('{"environment": "../../skies/walk.hdr", "strength": 2}')
    run(*arguments, "--environments", tmp_path / "skies")
    assert walk.light().strength == 2
    # Stopped before the end: the missing chunk is made, the other kept.
    record = json.loads((walk.folder / "inverse.json").read_text())
    (walk.folder / "inverse.json").write_text(json.dumps(record | {"finished": False, "chunks": [0]}))
    before = frame_path(walk.folder, 0, 0, "depth").stat().st_mtime_ns
    code, out, _ = run(*arguments)
    assert code == 0 and "walk: depth, frames 2 to 3, written" in out and "walk: frames 0 to 1" not in out
    assert frame_path(walk.folder, 0, 0, "depth").stat().st_mtime_ns == before
    assert len(find_gbuffer_clips(tmp_path / "set", ("depth",))) == 2
    assert read_image(frame_path(walk.folder, 0, 1, "depth")).shape == (64, 64, 3)


@pytest.mark.parametrize(("command", "function"), [("encode", "encode_clips"), ("label", "label_clips")])
def test_checkpoints_have_names(run, monkeypatch, command, function):
    received = {}
    monkeypatch.setattr(
        __main__, function, lambda *options, **arguments: received.update(vars(options[0]) if options else arguments)
    )
    assert run(command, "clips", "out", "--checkpoint", "built-in/inverse")[0] == 0
    assert received["checkpoint"] == str(assets.checkpoint("inverse"))


@pytest.mark.filterwarnings("default:clip .night. gets no light")
def test_label_estimates_the_light(run, inverse_model, monkeypatch, tmp_path):
    monkeypatch.setattr(estimation, "GRIDS", ((8, 16), (16, 32)))
    monkeypatch.setattr(estimation, "MAX_PIXELS", 300)
    for name in ("walk", "night"):
        for i, image in enumerate(pictures(2)):
            write_png(tmp_path / "real" / name / f"{i}.png", image if name == "walk" else np.ones_like(image))
    arguments = ("label", tmp_path / "real", tmp_path / "set", "--checkpoint", inverse_model, "--frames", 2)
    arguments += ("--size", 64, 64, "--light")
    code, _, err = run(*arguments, "--fov", 40)
    assert code == 0 and err.startswith("warning: clip 'night' gets no light.json: ") and "saturated" in err
    (walk,) = open_clips(tmp_path / "set" / "walk", ("rgb", "normal", "env_ldr"))
    assert walk.light() == Light("environment.exr")
    assert read_hdr(walk.folder / "environment.exr", False).shape == (32, 64, 3)
    assert not (tmp_path / "set/night/light.json").exists()
    before = (walk.folder / "environment.exr").stat().st_mtime_ns
    run(*arguments)
    assert (walk.folder / "environment.exr").stat().st_mtime_ns == before
    run(*arguments, "--overwrite")
    assert (walk.folder / "environment.exr").stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "expected a command; known: label, encode"),
        (("lable",), "did you mean 'label'"),
        (("encode", "a", "b", "--checkpiont", "c"), "did you mean '--checkpoint'"),
        (("encode", "a", "b", "--checkpoint", "/nowhere"), "/nowhere: no such folder"),
        (("encode", "a", "b", "--checkpoint", "c", "--devices", "0"), "--devices: expected at least 1, got 0"),
        (("encode", "a", "b", "--checkpoint", "c", "--flip", "2"), "flip: expected at least 0 and at most 1, got 2.0"),
        (("label", "a", "b", "--checkpoint", "/nowhere"), "/nowhere: no such folder"),
    ],
)
def test_bad_commands(run, words, message):
    code, _, err = run(*words)
    assert code == 2 and message in err and err.count("\n") == 1


def test_bad_labels(run, inverse_model, vae, tmp_path):
    write_png(tmp_path / "walk.png", np.full((64, 64, 3), 0.5, np.float32))
    (tmp_path / "skies").mkdir()
    label = functools.partial(run, "label", tmp_path / "walk.png", tmp_path / "set", "--checkpoint")
    for arguments, message in (
        ((inverse_model, "--environments", tmp_path / "skies"), "no walk.hdr or walk.exr for clip 'walk'"),
        ((inverse_model, "--light", "--environments", tmp_path / "skies"), "exclude each other"),
        ((inverse_model, "--light", "--passes", "normal"), "--light: --passes has no basecolor"),
        ((inverse_model, "--fov", 40), "--fov 40: it is for --light"),
        ((inverse_model, "--light", "--fov", 200), "field of view 200 must be"),
        ((inverse_model, "--passes", "normals"), "unknown pass 'normals'; did you mean 'normal'"),
        ((inverse_model, "--frames", 0), "frames: expected at least 1, got 0"),
        ((inverse_model, "--size", 0, 64), "size is 0 64"),
        ((inverse_model, "--steps", 0), "num_steps: expected at least 1, got 0"),
        ((vae,), "holds a 'forward' model, but the inverse renderer needs 'inverse'"),
    ):
        code, _, err = label(*arguments)
        assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "set").exists()
