"""`sample.py forward`: G-buffers, environments, poses and fixed frames."""

import json

import jax
import numpy as np
import pytest
from helpers.runs import (
    QUICK,
    check_one_line,
    frames,
    labels,
    pictures,
    write_gbuffers,
    write_hdr,
)

from drender.config import CONDITIONS
from drender.lighting.environment import environment_maps
from drender.media.gbuffers import find_gbuffer_clips
from drender.media.images import read_image, write_png
from drender.media.video import find_clips, write_video
from drender.renderers.forward import ForwardRenderer


def test_forward_reads_what_inverse_writes(run, forward, models, tmp_path):
    write_video(tmp_path / "pan.mp4", pictures(3), 5.0)
    arguments = ("--checkpoint", models["inverse"], *QUICK, "--input", tmp_path / "pan.mp4")
    assert run("inverse", *arguments, "--output", tmp_path / "out")[0] == 0
    # The chunks are those of the inverse run, regardless of --overlap.
    code, *_ = forward("--input", tmp_path / "out", "--output", tmp_path / "relit", "--overlap", 0)
    assert code == 0
    assert frames(tmp_path / "relit/pan", "env0000") == frames(tmp_path / "out/pan", "normal")
    (clip,) = find_clips(tmp_path / "relit/pan.viz.mp4")
    assert clip.num_frames == 3


@pytest.mark.slow
def test_forward_equals_the_python_interface(networks, forward, models, sky, tmp_path):
    (clip,) = find_gbuffer_clips(write_gbuffers(tmp_path / "in"))
    options = ("--rotate-light", "--strength", 0.5, "--flip", "--rotation", 90, "--elevation", 20)
    options += ("--elevation-sign", "up", "--yaw", 20, "--pitch", -30, "--roll", 40, "--exposure", "auto", "--blur", 6)
    code, *_ = forward("--input", tmp_path / "in", "--output", tmp_path / "out", *options, "--bits", 16, "--no-video")
    assert code == 0
    light = environment_maps(
        sky, 2, (64, 64), strength=0.5, flip=True, rotation=90.0, rotate_light=True, elevation=20.0,
        elevation_sign="up", yaw=20.0, pitch=-30.0, roll=40.0, exposure="auto", blur=6.0,
    )  # fmt: skip
    renderer = ForwardRenderer.load(str(models["forward"]), None, jax.devices()[0], 0.25)
    relit = renderer({name: np.stack([*clip.frames(name)])[None] for name in CONDITIONS}, light, num_steps=1)
    found = np.stack([read_image(tmp_path / f"out/in/0000.{i:04d}.env0000.png") for i in range(2)])
    np.testing.assert_allclose(found, relit[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("layout", ["{label}/{frame}.png", "{frame}.{label}.png"])
def test_other_layouts_in_several_environments(forward, sky, tmp_path, layout):
    for label in CONDITIONS:
        for i, image in enumerate(pictures(2)):
            write_png(tmp_path / "in/walk" / layout.format(label=label, frame=f"f{i}"), image)
    other = write_hdr(tmp_path / "other.exr", pictures(1, 16, 32)[0] * 9)
    code, _, err = forward("--input", tmp_path / "in", "--output", tmp_path / "out", "--environment", sky, other)
    assert (code, err) == (0, "")
    assert labels(tmp_path / "out/walk") == {"env0000", "env0001"}
    one, two = (read_image(tmp_path / f"out/walk/0000.0001.env000{i}.png") for i in range(2))
    assert np.abs(one - two).max() > 0.02
    (clip,) = find_clips(tmp_path / "out/walk.viz.mp4")
    assert next(clip.frames()).shape == (64, 128, 3)


def test_fixed_frame_under_a_turning_light(forward, tmp_path):
    write_gbuffers(tmp_path / "in", chunks=(2, 2))  # frames 0 1 | 1 2: the chunks share one
    options = ("--input", tmp_path / "in", "--rotate-light", "--no-video")
    assert forward(*options, "--output", tmp_path / "out", "--fixed-frame", 2)[0] == 0
    assert frames(tmp_path / "out/in", "env0000") == ["0000.0000", "0000.0001"]
    # The third frame of the clip is the second of its second chunk.
    for label in CONDITIONS:
        for i in range(2):
            write_png(tmp_path / f"same/0000.{i:04d}.{label}.png", read_image(tmp_path / f"in/0001.0001.{label}.png"))
    assert forward("--input", tmp_path / "same", "--output", tmp_path / "out", "--rotate-light", "--no-video")[0] == 0
    for i in range(2):
        a, b = (read_image(tmp_path / f"out/{name}/0000.{i:04d}.env0000.png") for name in ("in", "same"))
        np.testing.assert_array_equal(a, b)
    code, _, err = forward(*options, "--output", tmp_path / "out2", "--fixed-frame", 3)
    assert code == 2 and "has frames 0 to 2" in err


def test_poses_turn_the_light(forward, tmp_path):
    turn = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1.0]])
    poses = [np.eye(4), turn, turn, turn]  # more than there are frames
    (tmp_path / "poses.json").write_text(json.dumps({"frames": [{"transform_matrix": p.tolist()} for p in poses]}))
    write_gbuffers(tmp_path / "in")
    for name, options in (("still", ()), ("moving", ("--poses", tmp_path / "poses.json"))):
        assert forward("--input", tmp_path / "in", "--output", tmp_path / name, *options)[0] == 0
    images = lambda i: [read_image(tmp_path / name / f"in/0000.{i:04d}.env0000.png") for name in ("still", "moving")]
    assert np.abs(np.subtract(*images(1))).max() > 0.02


@pytest.mark.slow
def test_dropped_conditions_may_be_missing(networks, forward, tmp_path):
    write_gbuffers(tmp_path / "in", labels=("basecolor", "normal", "depth"))
    options = ("--input", tmp_path / "in", "--output", tmp_path / "out")
    assert forward(*options, "--drop", "roughness", "metallic", "environment")[0] == 0


def test_an_environment_is_a_built_in_name_or_a_file(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run("forward", "--environment", "night", "--output", "built-in")[0] == 0
    (tmp_path / "night").write_bytes(b"x")
    check_one_line(run("forward", "--environment", "night", "--output", "own"), "unknown image suffix")
    check_one_line(
        run("forward", "--environment", "nigth", "--output", "own"), "unknown environment 'nigth'; did you mean 'night'"
    )


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda image: np.where(image > 400, np.nan, image), "contains NaN, taken as black"),
        (lambda image: image * 0, "is black and will light nothing"),
        (lambda image: image[:20], "is 64x20, not 2:1; is it a lat-long image?"),
    ],
)
@pytest.mark.filterwarnings("default")
def test_doubtful_environments_are_a_warning_of_one_line(forward, sky, tmp_path, change, warning):
    other = write_hdr(tmp_path / "other.exr", change(read_image(sky)))
    code, _, err = forward(
        "--input", write_gbuffers(tmp_path / "in"), "--output", tmp_path / "out", "--environment", other
    )
    assert code == 0
    assert err == f"warning: environment {other} {warning}\n"


@pytest.mark.filterwarnings("default")
def test_a_folder_of_maps_lights_frame_by_frame(forward, sky, tmp_path):
    (tmp_path / "sky").mkdir()
    for i, name in enumerate(("sky9.hdr", "sky10.hdr")):
        write_hdr(tmp_path / "sky" / name, read_image(sky) * 4.0**-i)
    options = ("--input", write_gbuffers(tmp_path / "in"), "--environment", tmp_path / "sky", sky)
    assert forward(*options, "--output", tmp_path / "out")[::2] == (0, "")
    first, second = (read_image(tmp_path / f"out/in/0000.000{i}.env0000.png") for i in range(2))
    np.testing.assert_array_equal(first, read_image(tmp_path / "out/in/0000.0000.env0001.png"))
    assert not np.array_equal(second, read_image(tmp_path / "out/in/0000.0001.env0001.png"))
    (tmp_path / "sky/sky10.hdr").unlink()
    check_one_line(forward(*options, "--output", tmp_path / "few"), f"environment {tmp_path / 'sky'} only 1 maps")
    assert not (tmp_path / "few").exists()


def test_contained_gbuffers_keep_their_size(inverse, forward, tmp_path):
    write_gbuffers(tmp_path / "in", height=36, width=64)
    for fit, size in (("contain", (36, 64)), ("cover", (64, 128))):
        options = ("--input", tmp_path / "in", "--output", tmp_path / fit, "--fit", fit)
        assert forward(*options)[0] == 0
        assert read_image(tmp_path / fit / "in/0000.0000.env0000.png").shape == (*size, 3)
