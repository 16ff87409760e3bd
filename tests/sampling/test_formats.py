"""Formats of the written files: EXR, 16 bits, transfer curves, frame rates and video quality."""

import json

import numpy as np
import pytest
from helpers.runs import (
    QUICK,
    check_one_line,
    pictures,
    write_frames,
)
from scipy.spatial.transform import Rotation

from drender.media.color import linear_to_srgb, srgb_to_linear
from drender.media.encodings import ImageFormat, decode_normal, encode_normal
from drender.media.gbuffers import find_gbuffer_clips
from drender.media.images import load_image, read_image, write_exr, write_png
from drender.media.video import find_clips, write_video


@pytest.mark.parametrize("options", [("--format", "exr"), ("--bits", 16), ("--bits", 16, "--transfer", "linear")])
def test_forward_reads_every_format_alike(run, forward, models, tmp_path, options):
    write_frames(tmp_path / "walk", 1)
    relit = []
    for normals in ("opengl", "directx"):
        arguments = ("--checkpoint", models["inverse"], *QUICK, "--input", tmp_path / "walk", "--normals", normals)
        assert run("inverse", *arguments, "--output", tmp_path / normals, *options)[0] == 0
        assert forward("--input", tmp_path / normals, "--output", tmp_path / f"{normals}-relit", "--bits", 16)[0] == 0
        relit.append(read_image(tmp_path / f"{normals}-relit/walk/0000.0000.env0000.png"))
    np.testing.assert_allclose(*relit, atol=4e-5)
    if "exr" in options:
        assert {path.suffix for path in (tmp_path / "opengl/walk").iterdir()} == {".exr", ".json"}
        return
    # The same PNG files without the attributes that state their encoding.
    for path in (tmp_path / "directx/walk").glob("*.png"):
        write_png(path, load_image(path).image, bits=16)
    stated = ("--input-normals", "directx", "--input-transfer", "linear" if "linear" in options else "srgb")
    assert forward("--input", tmp_path / "directx", "--output", tmp_path / "stated", "--bits", 16, *stated)[0] == 0
    assert forward("--input", tmp_path / "directx", "--output", tmp_path / "unstated", "--bits", 16)[0] == 0
    stated, unstated = (read_image(tmp_path / name / "walk/0000.0000.env0000.png") for name in ("stated", "unstated"))
    np.testing.assert_array_equal(stated, relit[1])
    assert np.abs(unstated - relit[1]).max() > 0.02


def test_relit_exr_is_linear_light(relight, tmp_path):
    write_frames(tmp_path / "walk", 1)
    for name, options in (("exr", ("--format", "exr")), ("png", ("--bits", 16))):
        assert relight("--input", tmp_path / "walk", "--output", tmp_path / name, *options)[0] == 0
    linear = read_image(tmp_path / "exr/relit/walk/0000.0000.env0000.exr")
    np.testing.assert_allclose(
        linear, srgb_to_linear(read_image(tmp_path / "png/relit/walk/0000.0000.env0000.png")), rtol=2**-10, atol=2e-5
    )
    videos = [next(find_clips(tmp_path / name / "relit/walk.viz.mp4")[0].frames()) for name in ("exr", "png")]
    assert np.abs(videos[0] - videos[1]).mean() < 2 / 255  # of noise, through H.264; a curve too many would be 50


def test_videos_have_the_frame_rate_of_the_source(run, forward, relight, models, tmp_path):
    write_video(tmp_path / "pan.mp4", pictures(2), 24000 / 1001)
    arguments = ("--checkpoint", models["inverse"], *QUICK, "--input", tmp_path / "pan.mp4")
    assert run("inverse", *arguments, "--output", tmp_path / "buffers")[0] == 0
    assert forward("--input", tmp_path / "buffers", "--output", tmp_path / "lit")[0] == 0
    assert relight("--input", tmp_path / "pan.mp4", "--output", tmp_path / "both")[0] == 0
    for video in ("buffers/pan", "lit/pan", "both/gbuffers/pan", "both/relit/pan"):
        assert find_clips(tmp_path / f"{video}.viz.mp4")[0].fps == 24000 / 1001


def test_video_quality_sets_the_size(inverse, tmp_path):
    write_frames(tmp_path / "walk", 2)
    sizes = []
    for quality in (1, 7, 10):
        code, out, _ = inverse("--input", tmp_path / "walk", "--output", tmp_path / "out", "--quality", quality)
        assert code == 0
        sizes.append((tmp_path / "out/walk.viz.mp4").stat().st_size)
        assert "written" not in out or quality == 1  # only the video is made again, with another quality
    assert sizes == sorted(set(sizes))


def test_overwriting_with_another_format_removes_the_files(inverse, tmp_path):
    write_frames(tmp_path / "walk", 2)
    arguments = ("--input", tmp_path / "walk", "--output", tmp_path / "out")
    assert inverse(*arguments)[0] == 0
    check_one_line(inverse(*arguments, "--format", "exr"), "another format ('png', now 'exr')", "--overwrite")
    assert inverse(*arguments, "--format", "exr", "--overwrite")[0] == 0
    assert not list((tmp_path / "out/walk").glob("*.png"))
    assert inverse(*arguments, "--overwrite")[0] == 0
    assert not list((tmp_path / "out/walk").glob("*.exr"))


def test_inverse_reads_linear_frames(inverse, tmp_path):
    linear = srgb_to_linear(pictures(1)[0])
    write_png(tmp_path / "srgb" / "walk" / "0.png", linear_to_srgb(linear), 16)
    write_png(tmp_path / "png" / "walk" / "0.png", linear, 16)
    write_exr(tmp_path / "exr" / "walk" / "0.exr", dict(zip("RGB", np.moveaxis(linear, -1, 0), strict=True)))
    for name, options in (("srgb", ()), ("png", ("--input-transfer", "linear")), ("exr", ())):
        arguments = ("--input", tmp_path / name, "--output", tmp_path / f"{name}-out", "--bits", 16, *options)
        assert inverse(*arguments)[0] == 0
    expected, *others = (read_image(tmp_path / f"{n}-out/walk/0000.0000.rgb.png") for n in ("srgb", "png", "exr"))
    for found in others:
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_gbuffers_of_other_programs(forward, gbuffers, tmp_path):
    """World normals, distances and odd layers give the results of the same buffers as drender writes them."""
    (clip,) = find_gbuffer_clips(gbuffers)
    images = {label: np.stack([*clip.frames(label)]) for label in clip.labels}
    for label in ("depth", "roughness", "metallic"):
        values = images[label].mean(axis=-1, keepdims=True)
        images[label] = ((values - values.min()) / np.ptp(values)).repeat(3, axis=-1)
    poses = Rotation.from_euler("XYZ", [[20, 30, 40], [70, 10, 0]], degrees=True).as_matrix()
    normals = decode_normal(images["normal"]).astype(np.float32)
    plain, other = tmp_path / "plain" / "walk", tmp_path / "other" / "walk"
    for i, pose in enumerate(poses):
        for label, frames in images.items():
            image = encode_normal(normals[i]) if label == "normal" else frames[i]
            ImageFormat("exr").write(plain / f"{i:04d}.{label}.exr", image, label)
        layers = {"Albedo": srgb_to_linear(images["basecolor"][i]), "World": normals[i] @ pose.T.astype(np.float32)}
        layers |= {label: images[label][i] for label in ("roughness", "metallic")}
        layers["depth"] = 3 + 4 * images["depth"][i]
        channels = {f"{name}.{c}": image[..., k] for name, image in layers.items() for k, c in enumerate("RGB")}
        write_exr(other / f"shot.{i:04d}.exr", channels)
    rows = [np.block([[pose, np.zeros((3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]]).tolist() for pose in poses]
    (tmp_path / "poses.json").write_text(json.dumps({"frames": [{"transform_matrix": row} for row in rows]}))
    options = ("--poses", tmp_path / "poses.json", "--bits", 16)
    assert forward("--input", plain, "--output", tmp_path / "a", *options)[0] == 0
    names = (
        "--input-layers",
        "basecolor=Albedo",
        "normal=World",
        "--input-normals",
        "world",
        "--input-depth",
        "metric",
    )
    check_one_line(forward("--input", other, "--output", tmp_path / "b", *names), "world", "give --poses")
    assert forward("--input", other, "--output", tmp_path / "b", *names, *options)[0] == 0
    for i in range(2):
        found, expected = (read_image(tmp_path / name / f"walk/0000.{i:04d}.env0000.png") for name in "ab")
        np.testing.assert_allclose(found, expected, atol=0.02)


def test_mistyped_layers_are_errors(forward, gbuffers):
    check_one_line(forward("--input", gbuffers, "--input-layers", "basecolour=A"), "basecolour", "did you mean")
    check_one_line(forward("--input", gbuffers, "--input-layers", "depth"), "expected LABEL=NAME")
