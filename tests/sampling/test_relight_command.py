"""`sample.py relight`: inverse and forward in one run."""

import jax
import numpy as np
import pytest
from helpers.runs import (
    PNG_NAMES,
    labels,
    write_frames,
)

from drender import assets
from drender.config import DEFAULT_PASSES
from drender.lighting.environment import environment_maps
from drender.media.images import read_image
from drender.media.video import find_clips
from drender.renderers.forward import ForwardRenderer
from drender.renderers.inverse import InverseRenderer
from drender.sampling.outputs import ClipOutput


def test_defaults_are_the_built_in_models_and_clip(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for command in ("inverse", "forward", "relight"):
        code, out, err = run(command)
        assert (code, err) == (0, "")
        assert f"outputs/{command}" in out and f"outputs/{command}/brewer.contact.png" in out
    shown = {f"env{index:04d}" for index in range(len(assets.LIGHTS))}
    assert (
        labels(tmp_path / "outputs/inverse/brewer") == labels(tmp_path / "outputs/relight/gbuffers/brewer") == PNG_NAMES
    )
    assert labels(tmp_path / "outputs/forward/brewer") == labels(tmp_path / "outputs/relight/relit/brewer") == shown
    (clip,) = find_clips(tmp_path / "outputs/relight/relit/brewer.viz.mp4")
    assert clip.num_frames == 8
    # Of three frames: the input, five buffers and three lights.
    assert read_image(tmp_path / "outputs/relight/brewer.contact.png").shape == (3 * 128, 9 * 128, 3)


def test_the_forward_renderer_compiles_while_gbuffers_are_estimated(networks, relight, tmp_path, caplog):
    frames = write_frames(tmp_path / "walk", 3, width=192)  # a shape of its own
    with jax.log_compiles():  # of this thread
        assert relight("--input", frames, "--output", tmp_path / "out")[0] == 0
    # The inverse renderer's. Without the other thread it is followed by the forward renderer's.
    assert [record.args[0] for record in caplog.records if "Compiling" in record.msg].count("jit(predict_x0)") == 1


@pytest.mark.slow
def test_relight_equals_inverse_then_forward(networks, relight, models, sky, tmp_path):
    write_frames(tmp_path / "walk", 3)
    options = ("--bits", 16, "--guidance", 1.1, 1.3, "--rotate-light", "--chunks", "all")
    code, _, err = relight("--input", tmp_path / "walk", "--output", tmp_path / "out", *options)
    assert (code, err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gbuffers", "relit", "walk.contact.png"]
    assert labels(tmp_path / "out/gbuffers/walk") == PNG_NAMES
    assert labels(tmp_path / "out/relit/walk") == {"env0000"}
    assert (tmp_path / "out/relit/walk.viz.mp4").is_file() and (tmp_path / "out/gbuffers/walk.viz.mp4").is_file()
    rgb = np.stack(list(find_clips(tmp_path / "walk")[0].frames()))[None]
    device = jax.devices()[0]
    for chunk in range(2):
        buffers = InverseRenderer.load(str(models["inverse"]), None, device)(rgb[:, chunk : chunk + 2], num_steps=1)
        light = environment_maps(sky, 3, (64, 64), rotate_light=True)
        light = {name: maps[chunk : chunk + 2] for name, maps in light.items()}
        renderer = ForwardRenderer.load(str(models["forward"]), None, device, 0.25)
        relit = renderer(buffers, light, num_steps=1, guidance=(1.1, 1.3))[0]
        for i in range(2):
            found = read_image(tmp_path / f"out/relit/walk/{chunk:04d}.{i:04d}.env0000.png")
            np.testing.assert_allclose(found, relit[i], rtol=0, atol=2e-5)


def test_relight_reads_no_files_between_the_renderers(relight, monkeypatch, tmp_path):
    def refuse(*_):
        raise AssertionError("a file was read")

    monkeypatch.setattr(ClipOutput, "read", refuse)
    code, *_ = relight("--input", write_frames(tmp_path / "a", 2), "--output", tmp_path / "out", "--no-video")
    assert code == 0


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ((), (128, 64)),
        (("--fit", "contain"), (64, 36)),
        (("--fit", "stretch", "--output-size", "source"), (80, 45)),
    ],
)
def test_fit_modes_give_the_size_of_a_portrait(relight, tmp_path, options, size):
    write_frames(tmp_path / "walk", 2, height=80, width=45)
    code, _, err = relight("--input", tmp_path / "walk", "--output", tmp_path / "out", "--no-video", *options)
    assert (code, err) == (0, "")
    files = sorted((tmp_path / "out").glob("*/walk/*.png"))
    assert len(files) == 2 * (1 + len(DEFAULT_PASSES) + 1)
    assert {read_image(path).shape for path in files} == {(*size, 3)}
