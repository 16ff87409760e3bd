"""The light of a clip itself: `--environment clip`, and the command `light`."""

import dataclasses
import json

import numpy as np
import pytest
from helpers import small
from helpers.runs import QUICK, QUICK_LIGHT, check_one_line, contents, png, write_frames
from helpers.stand_ins import InverseStandIn

from drender.lighting import estimation
from drender.locks import lock
from drender.media.images import read_hdr, read_image, write_exr, write_png
from drender.renderers.forward import ForwardRenderer
from drender.renderers.inverse import InverseRenderer
from drender.sampling import commands

LABELS = ("rgb", "basecolor", "normal", "depth", "roughness", "metallic")


@pytest.fixture(autouse=True)
def quick_estimation(monkeypatch):
    """Few pixels and directions."""
    monkeypatch.setattr(estimation, "MAX_PIXELS", 600)
    monkeypatch.setattr(estimation, "GRIDS", ((8, 16), (16, 32)))
    monkeypatch.setattr(estimation, "ROUNDS", (2, 1))


def write_sphere(folder, side=1.0, labels=LABELS, frames=2):
    """Write G-buffers of a sphere, and its picture in a light from the right (`side` = 1) or the left (−1)."""
    y, x = np.meshgrid(np.linspace(1, -1, 64), np.linspace(-1, 1, 64), indexing="ij")
    z = np.sqrt(np.maximum(1 - x**2 - y**2, 0))
    inside = (z > 0.3)[..., None]
    shading = 0.1 + 0.7 * np.maximum(0.8 * side * x + 0.6 * z, 0)
    images = {
        "rgb": np.where(inside, shading[..., None], 0.2), "basecolor": np.where(inside, 0.8, 0.0),
        "normal": np.where(inside, np.stack([x, y, z], axis=-1), [0, 0, 1]) / 2 + 0.5,
        "depth": np.where(inside, 1 - 0.9 * z[..., None], 1.0), "roughness": 0.8, "metallic": 0.0,
    }  # fmt: skip
    for label in labels:
        image = np.broadcast_to(images[label], (64, 64, 3)).astype(np.float32)
        for i in range(frames):
            write_png(folder / f"0000.{i:04d}.{label}.png", image)
    return folder


def brighter_half(path) -> str:
    """Return the half of the world that a map lights: to the right of the camera, or to the left."""
    light = read_hdr(path, False)
    right, left = light[:, : light.shape[1] // 2].sum(), light[:, light.shape[1] // 2 :].sum()
    return "right" if right > left else "left"


@pytest.fixture
def forward_own(run, models):
    words = ("--environment", "clip", *QUICK, *QUICK_LIGHT, "--html")
    return lambda *more: run("forward", "--checkpoint", models["forward"], *words, *more)


def test_forward_estimates_the_light_of_every_clip(forward_own, tmp_path):
    for name, side in (("a", 1.0), ("b", -1.0)):
        write_sphere(tmp_path / "in" / name, side)
    code, _, err = forward_own("--input", tmp_path / "in", "--output", tmp_path / "out")
    assert (code, err) == (0, "")
    assert [brighter_half(tmp_path / f"out/{name}.light.exr") for name in "ab"] == ["right", "left"]
    # The stand-in renders by the light at one edge of the map, so the two clips differ.
    frames = [read_image(tmp_path / f"out/{name}/0000.0000.env0000.png") for name in "ab"]
    assert np.abs(frames[0] - frames[1]).max() > 0.01
    assert '"clip"' in (tmp_path / "out/index.html").read_text()


def test_saved_light_is_a_map_that_gives_the_same_frames(forward_own, run, models, tmp_path):
    clip = write_sphere(tmp_path / "a")
    forward_own("--input", clip, "--output", tmp_path / "own", "--yaw", 40)
    code, *_ = run(
        "forward", "--checkpoint", models["forward"], "--environment", tmp_path / "own/a.light.exr", "--yaw", 40,
        *QUICK, *QUICK_LIGHT, "--input", clip, "--output", tmp_path / "map",
    )  # fmt: skip
    assert code == 0
    for own in (tmp_path / "own/a").glob("*.png"):
        assert own.read_bytes() == (tmp_path / "map/a" / own.name).read_bytes()


def test_repeated_run_keeps_the_light(forward_own, tmp_path):
    clip = write_sphere(tmp_path / "a")
    forward_own("--input", clip, "--output", tmp_path / "out")
    before = contents(tmp_path / "out")
    code, out, _ = forward_own("--input", clip, "--output", tmp_path / "out")
    assert code == 0 and "skipped" in out and contents(tmp_path / "out") == before
    write_sphere(clip, side=-1.0)
    code, *_ = forward_own("--input", clip, "--output", tmp_path / "out", "--overwrite")
    assert code == 0 and brighter_half(tmp_path / "out/a.light.exr") == "left"


def test_layers_that_only_the_light_needs_may_be_named(forward_own, monkeypatch, tmp_path):
    config = small.forward_config()
    unet = dataclasses.replace(config.unet, in_channels=config.unet.in_channels * 3 // (1 + len(config.conditions)))
    config = dataclasses.replace(config, conditions=("basecolor", "normal"), unet=unet)
    monkeypatch.setattr(ForwardRenderer, "load_config", lambda _: config)
    words = ("--input", write_sphere(tmp_path / "a"), "--output", tmp_path / "out", "--input-layers", "depth=G")
    assert forward_own(*words)[::2] == (0, "")
    assert brighter_half(tmp_path / "out/a.light.exr") == "right"


def test_relight_estimates_the_light_from_its_gbuffers(relight, tmp_path):
    clip = write_frames(tmp_path / "walk", 3)
    code, _, err = relight("--input", clip, "--output", tmp_path / "out", "--environment", "night", "clip")
    assert (code, err) == (0, "")
    light = read_hdr(tmp_path / "out/relit/walk.light.exr", False)
    assert light.shape == (32, 64, 3) and light.max() > 0
    assert {path.name.split(".")[2] for path in (tmp_path / "out/relit/walk").glob("*.png")} == {"env0000", "env0001"}


def test_what_the_light_needs_is_named(forward_own, relight, forward, tmp_path):
    for lacking in ("rgb", "normal"):
        clip = write_sphere(tmp_path / lacking, labels=[label for label in LABELS if label != lacking])
        result = forward_own("--input", clip, "--output", tmp_path / "out", "--drop", "normal")
        check_one_line(result, lacking, "--environment clip")
    result = relight(
        "--input", tmp_path, "--output", tmp_path / "o", "--environment", "clip", "--passes", "normal", "depth",
        "roughness", "metallic", "--drop", "basecolor",
    )  # fmt: skip
    check_one_line(result, "--passes has no basecolor", "--environment clip")
    check_one_line(forward("--fov", 40), "--fov 40", "--environment clip")
    check_one_line(forward_own("--fov", 180), "180 degrees")


# --- the command `light` ---


def test_light_of_gbuffers_is_a_map_a_ball_and_a_comparison(run, tmp_path):
    clip = write_sphere(tmp_path / "a", side=-1.0)
    code, out, err = run("light", "--gbuffers", clip, "--output", tmp_path / "sky.exr", "--fov", 30)
    assert (code, err) == (0, "") and "sky.comparison.png" in out
    assert brighter_half(tmp_path / "sky.exr") == "left"
    ball = read_image(tmp_path / "sky.ball.png")
    assert ball.shape == (256, 256, 3) and ball[:, :128].mean() > ball[:, 128:].mean()
    pictures = read_image(tmp_path / "sky.comparison.png")
    rgb, shaded = np.split(pictures, 2, axis=1)
    assert np.abs(rgb - shaded).mean() < 0.05


def test_light_of_a_video_is_estimated_by_the_inverse_renderer(run, models, tmp_path):
    for name in "ab":
        write_frames(tmp_path / "in" / name, 3)
    words = ("light", "--checkpoint", models["inverse"], "--input", tmp_path / "in", "--size", 64, 64, "--frames", 2)
    poses = ("--output", tmp_path / "out", "--poses", write_poses(tmp_path / "poses.json", 3))
    code, _, err = run(*words, *poses)
    assert (code, err) == (0, "")
    assert {path.name for path in (tmp_path / "out").glob("*.exr")} == {"a.exr", "b.exr"}
    code, out, _ = run(*words, *poses)
    assert code == 0 and out.count("skipped") == 2
    without_poses = run(*words, "--output", tmp_path / "out")
    check_one_line(without_poses, "out/a.exr was made with other options or of other inputs", "--overwrite")
    check_one_line(run(*words, "--output", tmp_path / "sky.exr"), "is one file, for 2 clips; give a folder")


def test_light_passes_on_what_stops_sampling(run, models, monkeypatch, tmp_path):
    def interrupted(*_, stop=None, **__):
        assert stop is not None
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(InverseStandIn, "estimate", interrupted)
    words = ("--checkpoint", models["inverse"], "--input", png(tmp_path / "a.png"), "--size", 64, 64)
    code, _, err = run("light", *words, "--output", tmp_path / "sky.exr")
    assert code == 130 and "interrupted" in err and not (tmp_path / "sky.exr").exists()


def test_light_finds_bad_clips_before_it_loads_models(run, models, monkeypatch, tmp_path):
    monkeypatch.setattr(InverseRenderer, "load", lambda *_: pytest.fail("loaded"))
    words = ("--checkpoint", models["inverse"], "--input", write_frames(tmp_path / "a", 3), "--size", 64, 64)
    poses = write_poses(tmp_path / "poses.json", 2)
    check_one_line(run("light", *words, "--output", tmp_path / "out", "--poses", poses), "3 frames, but --poses only 2")


def test_light_takes_a_checkpoint_by_name_and_knows_its_revision(run, models, monkeypatch, tmp_path):
    monkeypatch.setattr(commands, "resolve", lambda name: models["inverse"])
    words = ("light", "--input", png(tmp_path / "a.png"), "--size", 64, 64, "--output", tmp_path / "sky.exr")
    assert run(*words, "--checkpoint", "owner/name")[0] == 0
    code, out, _ = run(*words, "--checkpoint", models["inverse"])
    assert code == 0 and "skipped" in out


def test_light_of_other_inputs_is_not_taken_for_finished(run, tmp_path):
    words = ("light", "--gbuffers", tmp_path / "a", "--output", tmp_path / "sky.exr")
    write_sphere(tmp_path / "a", side=-1.0)
    assert run(*words)[0] == 0
    code, out, _ = run(*words)
    assert code == 0 and "skipped" in out
    write_sphere(tmp_path / "a", side=1.0)
    check_one_line(run(*words), "sky.exr was made with other options or of other inputs", "--overwrite")
    assert brighter_half(tmp_path / "sky.exr") == "left"
    assert run(*words, "--overwrite")[0] == 0
    assert brighter_half(tmp_path / "sky.exr") == "right"
    (tmp_path / "sky.exr").write_bytes(b"damaged")
    check_one_line(run(*words), "sky.exr")
    assert run(*words, "--overwrite")[0] == 0
    with lock(tmp_path / ".lock.sky.exr", "sky.exr"):
        check_one_line(run(*words, "--overwrite"), "sky.exr: process", "is writing there")
    assert not list(tmp_path.glob(".*"))


def test_light_reads_gbuffers_of_other_programs(run, tmp_path):
    """Metric depth, y-down normals and a texture that packs roughness give the light of the same buffers as ours."""
    write_sphere(tmp_path / "a", side=-1.0)
    for path in tmp_path.glob("a/*.normal.png"):
        image = read_image(path)
        write_png(path, np.stack([image[..., 0], 1 - image[..., 1], image[..., 2]], axis=-1))
    for path in tmp_path.glob("a/*.depth.png"):
        depth = read_image(path)[..., 0]
        distance = np.where(depth < 1, 2 + 5 * depth, np.inf).astype(np.float32)
        write_exr(path.with_suffix(".exr"), {"depth.V": distance, "other.V": np.zeros_like(distance)})
        path.unlink()
    words = ("--input-normals", "directx", "--input-depth", "metric", "--input-layers", "depth=depth.V")
    assert run("light", "--gbuffers", tmp_path / "a", "--output", tmp_path / "sky.exr", *words)[0] == 0
    assert brighter_half(tmp_path / "sky.exr") == "left"


def test_light_names_what_is_wrong(run, tmp_path):
    clip = write_sphere(tmp_path / "a", labels=("rgb", "basecolor", "depth"))
    check_one_line(run("light", "--gbuffers", clip, "--output", tmp_path / "sky.exr"), "no normal")
    check_one_line(run("light", "--gbuffers", clip, "--input", clip), "--input and --gbuffers exclude each other")
    for name in ("sky.hdr", "sky.PNG"):
        check_one_line(run("light", "--gbuffers", clip, "--output", name), name, ".exr")
    check_one_line(run("light", "--gbuffers", clip, "--steps", 3), "--steps: has no effect on --gbuffers")
    check_one_line(run("light", "--input", clip, "--input-depth", "metric"), "--input-depth: has no effect on --input")
    empty = write_sphere(tmp_path / "b")
    for path in (*empty.glob("*.depth.png"), *empty.glob("*.normal.png")):
        write_png(
            path,
            np.broadcast_to(np.float32([0.5, 0.5, 1]) if "normal" in path.name else 1, (64, 64, 3)).astype(np.float32),
        )
    check_one_line(run("light", "--gbuffers", empty, "--output", tmp_path / "sky.exr"), "no pixel shows a surface")


def write_poses(path, count):
    frames = [{"file_path": f"{i}.png", "transform_matrix": np.eye(4).tolist()} for i in range(count)]
    path.write_text(json.dumps({"frames": frames}))
    return path


def test_insert_keeps_the_light_of_the_scene_for_forward(forward_own, run, tmp_path):
    clip = write_sphere(tmp_path / "a")
    inserted = write_sphere(tmp_path / "object", frames=1)
    write_png(inserted / "0000.0000.mask.png", np.ones((64, 64, 3), np.float32))  # hides all of the clip
    for label in ("basecolor", "normal"):
        write_png(inserted / f"0000.0000.{label}.png", np.full((64, 64, 3), 0.5, np.float32))
    words = ("--object", inserted, "--depth", 0, 0, "--environment", "clip", "--output", tmp_path / "scene")
    assert run("insert", "--input", clip, *words)[0] == 0
    assert run("light", "--gbuffers", clip, "--output", tmp_path / "sky.exr")[0] == 0
    kept = tmp_path / "scene/a.light.exr"
    np.testing.assert_array_equal(read_hdr(kept), read_hdr(tmp_path / "sky.exr"))
    assert forward_own("--input", tmp_path / "scene", "--output", tmp_path / "out")[0] == 0
    np.testing.assert_array_equal(read_hdr(tmp_path / "out/a.light.exr"), read_hdr(kept))


def test_insert_needs_the_picture_for_the_light(run, tmp_path):
    clip = write_sphere(tmp_path / "a", labels=LABELS[1:])
    result = run("insert", "--input", clip, "--object", clip, "--environment", "clip", "--output", tmp_path / "scene")
    check_one_line(result, "no rgb")
