"""The command line as users meet it: what it writes, how it goes on after a stop, and what it says of bad input."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import OpenImageIO as oiio
import pytest
from helpers import small
from helpers.pages import Page, decode
from helpers.stand_ins import ForwardStandIn, InverseStandIn

import sample
from drender import assets, cli
from drender.checkpoints import orbax
from drender.config import CONDITIONS, DEFAULT_PASSES
from drender.lighting.environment import environment_maps
from drender.media.color import srgb_to_linear
from drender.media.gbuffers import find_gbuffer_clips
from drender.media.images import read_image, write_png
from drender.media.video import find_clips, write_video
from drender.renderers.forward import ForwardRenderer
from drender.renderers.inverse import InverseRenderer
from drender.sampling import execute
from drender.sampling.outputs import ClipOutput

RNG = np.random.default_rng(0)
ROOT = Path(__file__).parents[2]
QUICK = ("--size", 64, 64, "--steps", 1, "--frames", 2, "--overlap", 1)
QUICK_LIGHT = ("--environment-size", 64, 64)
PASSES = ("basecolor", "normal")
PNG_NAMES = {"rgb", *DEFAULT_PASSES}


# ---- What the tests share ----


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of small models; the forward one has LoRA factors."""
    folder = tmp_path_factory.mktemp("models")
    for kind, config in (("inverse", small.inverse_config()), ("forward", small.forward_config())):
        names = [name for name in small.NETWORKS if getattr(config, name) is not None]
        params = {name: small.random_params(small.NETWORKS[name], getattr(config, name)) for name in names}
        orbax.save(folder / kind, config, params)
    return {"inverse": folder / "inverse", "forward": folder / "forward"}


LOADED = {cls: functools.cache(cls.load) for cls in (InverseRenderer, ForwardRenderer)}


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """Renderers that render at once: most of what is tested here is around them."""
    monkeypatch.setattr(InverseRenderer, "load", lambda *_: InverseStandIn())
    monkeypatch.setattr(ForwardRenderer, "load", lambda *_: ForwardStandIn())


@pytest.fixture
def networks(stand_ins, monkeypatch):
    """The real ones instead. They stay loaded, and what is compiled of them stays compiled, from test to test."""
    for cls, load in LOADED.items():
        monkeypatch.setattr(cls, "load", load)


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


@pytest.fixture(scope="session")
def sky(tmp_path_factory) -> Path:
    """A Radiance map 64×32 with a sun and a bright side."""
    light = RNG.random((32, 64, 3)).astype(np.float32)
    light[:, :16] *= 20
    light[4:8, 10:14] = 500
    return write_hdr(tmp_path_factory.mktemp("sky") / "sky.hdr", light)


def write_hdr(path: Path, image: np.ndarray) -> Path:
    output = oiio.ImageOutput.create(str(path))
    assert output.open(str(path), oiio.ImageSpec(image.shape[1], image.shape[0], 3, "float"))
    assert output.write_image(np.ascontiguousarray(image, np.float32)) and output.close()
    return path


def pictures(count: int, height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, height, width, 3)).astype(np.float32)


def write_frames(folder: Path, count: int = 2, **how) -> Path:
    for i, image in enumerate(pictures(count, **how)):
        write_png(folder / f"{i:03d}.png", image)
    return folder


def write_gbuffers(folder: Path, chunks: tuple[int, ...] = (2,), labels=CONDITIONS, **how) -> Path:
    for label in labels:
        for chunk, count in enumerate(chunks):
            for i, image in enumerate(pictures(count, seed=len(label) + 9 * chunk, **how)):
                write_png(folder / f"{chunk:04d}.{i:04d}.{label}.png", image)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def labels(folder: Path) -> set[str]:
    return {path.name.split(".")[2] for path in folder.glob("*.png")}


def frames(folder: Path, label: str) -> list[str]:
    return sorted(path.name.removesuffix(f".{label}.png") for path in folder.glob(f"*.{label}.png"))


# ---- What is written ----


def test_without_options_the_built_in_models_meet_the_built_in_clip(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for command in ("inverse", "forward", "relight"):
        code, out, err = run(command)
        assert (code, err) == (0, "")
        assert f"outputs/{command}" in out and f"outputs/{command}/capsules.contact.png" in out
    shown = {f"env{index:04d}" for index in range(len(assets.LIGHTS))}
    assert (
        labels(tmp_path / "outputs/inverse/capsules")
        == labels(tmp_path / "outputs/relight/gbuffers/capsules")
        == PNG_NAMES
    )
    assert labels(tmp_path / "outputs/forward/capsules") == labels(tmp_path / "outputs/relight/relit/capsules") == shown
    (clip,) = find_clips(tmp_path / "outputs/relight/relit/capsules.viz.mp4")
    assert clip.num_frames == 16
    # Of three frames: the input, five buffers and three lights, twice as large.
    assert read_image(tmp_path / "outputs/relight/capsules.contact.png").shape == (3 * 128, 9 * 128, 3)


def test_an_environment_may_be_a_built_in_one_or_a_file_of_that_name(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run("forward", "--environment", "night", "--output", "built-in")[0] == 0
    (tmp_path / "night").write_bytes(b"x")
    check_one_line(run("forward", "--environment", "night", "--output", "own"), "unknown image suffix")
    check_one_line(
        run("forward", "--environment", "nigth", "--output", "own"), "unknown environment 'nigth'; did you mean 'night'"
    )


def test_a_contact_sheet_shows_the_first_middle_and_last_frame(inverse, tmp_path):
    write_frames(tmp_path / "walk", 5)
    assert inverse("--input", tmp_path / "walk", "--output", tmp_path / "out")[0] == 0
    sheet = read_image(tmp_path / "out/walk.contact.png")
    for row, (chunk, frame) in enumerate([(0, 0), (0, 2), (0, 4)]):
        for column, label in enumerate(("rgb", *PASSES)):
            tile = sheet[row * 128 : row * 128 + 128, column * 128 : column * 128 + 128]
            image = read_image(tmp_path / f"out/walk/{chunk:04d}.{frame:04d}.{label}.png")
            np.testing.assert_array_equal(tile, image.repeat(2, 0).repeat(2, 1))


def test_inverse_of_a_folder_of_frames(inverse, tmp_path):
    code, out, err = inverse("--input", write_frames(tmp_path / "walk", 2), "--output", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "walk: done" in out
    assert labels(tmp_path / "out/walk") == {"rgb", *PASSES}
    assert frames(tmp_path / "out/walk", "normal") == ["0000.0000", "0000.0001"]
    (clip,) = find_clips(tmp_path / "out/walk.viz.mp4")
    assert clip.num_frames == 2 and next(clip.frames()).shape == (64, 192, 3)  # rgb and two passes side by side
    np.testing.assert_array_equal(
        read_image(tmp_path / "out/walk/0000.0001.rgb.png"), read_image(tmp_path / "walk/001.png")
    )


def test_inverse_equals_the_python_interface(networks, inverse, models, tmp_path):
    write_frames(tmp_path / "walk", 2)
    inverse("--input", tmp_path / "walk", "--output", tmp_path / "out", "--seed", 3, "--bits", 16, "--no-video")
    rgb = np.stack(list(find_clips(tmp_path / "walk")[0].frames()))[None]
    buffers = InverseRenderer.load(str(models["inverse"]), None, jax.devices()[0])(rgb, PASSES, num_steps=1, seed=3)
    for name in PASSES:
        found = np.stack([read_image(tmp_path / f"out/walk/0000.{i:04d}.{name}.png") for i in range(2)])
        np.testing.assert_allclose(found, buffers[name][0], rtol=0, atol=0.6 / 65535)
    assert not list(tmp_path.rglob("*.mp4"))


def test_a_video_is_one_chunk_of_all_its_frames(inverse, tmp_path):
    write_video(tmp_path / "pan.mp4", pictures(10, 48, 80), 5.0)
    code, out, _ = inverse("--input", tmp_path / "pan.mp4", "--output", tmp_path / "out")
    assert code == 0 and out.startswith("pan: rgb, frames 0 to 9, written\npan: basecolor,")
    for label in ("rgb", *PASSES):
        assert frames(tmp_path / "out/pan", label) == [f"0000.{frame:04d}" for frame in range(10)]
    (clip,) = find_clips(tmp_path / "out/pan.viz.mp4")
    assert (clip.num_frames, clip.fps) == (10, 5.0)


def test_a_video_is_cut_in_chunks_that_overlap(inverse, tmp_path):
    write_video(tmp_path / "pan.mp4", pictures(4, 48, 80), 5.0)
    assert inverse("--input", tmp_path / "pan.mp4", "--output", tmp_path / "out", "--chunks", "all")[0] == 0
    assert frames(tmp_path / "out/pan", "rgb") == [f"{chunk:04d}.{frame:04d}" for chunk in range(3) for frame in (0, 1)]
    same = [read_image(tmp_path / f"out/pan/{name}.rgb.png") for name in ("0000.0001", "0001.0000")]
    np.testing.assert_array_equal(*same)
    assert same[0].shape == (64, 128, 3)  # covers 64×64, then rounded up
    (clip,) = find_clips(tmp_path / "out/pan.viz.mp4")
    assert (clip.num_frames, clip.fps) == (4, 5.0)


@pytest.mark.parametrize(
    ("options", "written"),
    [
        (("--chunks", "first"), ["0000.0000", "0000.0001"]),
        (("--chunks", "drop-last", "--overlap", 0), ["0000.0000", "0000.0001"]),
        (("--chunks", "all", "--overlap", 0), ["0000.0000", "0000.0001", "0001.0000"]),  # without the repeated frame
        ((), ["0000.0000", "0000.0001", "0000.0002"]),
    ],
)
def test_chunk_modes(inverse, tmp_path, options, written):
    code, *_ = inverse("--input", write_frames(tmp_path / "a", 3), "--output", tmp_path / "out", *options)
    assert code == 0 and frames(tmp_path / "out/a", "normal") == written


def test_an_overlap_that_is_not_given_suits_short_chunks(run, models, tmp_path):
    arguments = ("--checkpoint", models["inverse"], "--size", 64, 64, "--steps", 1, "--passes", "normal", "--frames", 2)
    arguments += ("--chunks", "all")
    code, *_ = run("inverse", *arguments, "--input", write_frames(tmp_path / "a", 3), "--output", tmp_path / "out")
    assert code == 0 and frames(tmp_path / "out/a", "normal") == ["0000.0000", "0000.0001", "0001.0000", "0001.0001"]


def test_a_folder_of_many_clips_with_a_single_image(inverse, tmp_path):
    write_frames(tmp_path / "in/walk", 2)
    write_video(tmp_path / "in/pan.mp4", pictures(2), 5.0)
    write_png(tmp_path / "in/cat.v2.png", pictures(1)[0])
    assert inverse("--input", tmp_path / "in", "--output", tmp_path / "out")[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {"walk", "pan", "cat.v2"}
    assert frames(tmp_path / "out/cat.v2", "normal") == ["0000.0000"]
    assert (tmp_path / "out/cat.v2.viz.mp4").is_file()


@pytest.mark.parametrize("kind", ["P", "L", "LA", "RGBA", "I;16"])
def test_unusual_images(inverse, tmp_path, kind):
    image = pytest.importorskip("PIL.Image").fromarray((pictures(1)[0] * 255).astype(np.uint8))
    image = image.convert("L").convert("I").convert("I;16") if kind == "I;16" else image.convert(kind)
    image.save(tmp_path / "a.png")
    code, _, err = inverse("--input", tmp_path / "a.png", "--output", tmp_path / "out")
    assert (code, err) == (0, "")


def test_an_image_of_one_pixel(inverse, tmp_path):
    write_png(tmp_path / "a.png", pictures(1, 1, 1)[0])
    assert inverse("--input", tmp_path / "a.png", "--output", tmp_path / "out")[0] == 0
    assert read_image(tmp_path / "out/a/0000.0000.normal.png").shape == (64, 64, 3)


def test_gbuffers_go_from_inverse_to_forward(run, forward, models, tmp_path):
    write_video(tmp_path / "pan.mp4", pictures(3), 5.0)
    arguments = ("--checkpoint", models["inverse"], *QUICK, "--input", tmp_path / "pan.mp4")
    assert run("inverse", *arguments, "--output", tmp_path / "out")[0] == 0
    # The chunks are those of the inverse run, whatever --overlap says here.
    code, *_ = forward("--input", tmp_path / "out", "--output", tmp_path / "relit", "--overlap", 0)
    assert code == 0
    assert frames(tmp_path / "relit/pan", "env0000") == frames(tmp_path / "out/pan", "normal")
    (clip,) = find_clips(tmp_path / "relit/pan.viz.mp4")
    assert clip.num_frames == 3


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
    relit = renderer({name: clip.read(name)[None] for name in CONDITIONS}, light, num_steps=1)
    found = np.stack([read_image(tmp_path / f"out/in/0000.{i:04d}.env0000.png") for i in range(2)])
    np.testing.assert_allclose(found, relit[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("layout", ["{label}/{frame}.png", "{frame}.{label}.png"])
def test_gbuffers_of_other_layouts_in_several_environments(forward, sky, tmp_path, layout):
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


def test_a_fixed_frame_under_a_turning_light(forward, tmp_path):
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


def test_poses(forward, tmp_path):
    turn = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1.0]])
    poses = [np.eye(4), turn, turn, turn]  # more than there are frames
    (tmp_path / "poses.json").write_text(json.dumps({"frames": [{"transform_matrix": p.tolist()} for p in poses]}))
    write_gbuffers(tmp_path / "in")
    for name, options in (("still", ()), ("moving", ("--poses", tmp_path / "poses.json"))):
        assert forward("--input", tmp_path / "in", "--output", tmp_path / name, *options)[0] == 0
    images = lambda i: [read_image(tmp_path / name / f"in/0000.{i:04d}.env0000.png") for name in ("still", "moving")]
    assert np.abs(np.subtract(*images(1))).max() > 0.02


def test_conditions_that_are_dropped_need_not_be_there(networks, forward, tmp_path):
    write_gbuffers(tmp_path / "in", labels=("basecolor", "normal", "depth"))
    options = ("--input", tmp_path / "in", "--output", tmp_path / "out")
    assert forward(*options, "--drop", "roughness", "metallic", "environment")[0] == 0


def test_relight_is_inverse_and_forward_without_files_between(networks, relight, models, sky, tmp_path):
    write_frames(tmp_path / "walk", 3)
    code, _, err = relight(
        "--input",
        tmp_path / "walk",
        "--output",
        tmp_path / "out",
        "--bits",
        16,
        "--guidance",
        1.1,
        1.3,
        "--rotate-light",
        "--chunks",
        "all",
    )
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


def test_relight_reads_no_gbuffers(relight, monkeypatch, tmp_path):
    def refuse(*_):
        raise AssertionError("a file was read")

    monkeypatch.setattr(ClipOutput, "read", refuse)
    code, *_ = relight("--input", write_frames(tmp_path / "a", 2), "--output", tmp_path / "out", "--no-video")
    assert code == 0


def test_two_devices_share_the_clips_and_give_what_one_gives(networks, inverse, tmp_path):
    for i in range(3):
        write_frames(tmp_path / f"in/clip{i}", 2, seed=i)
    for count in (1, 2):
        code, out, _ = inverse("--input", tmp_path / "in", "--output", tmp_path / f"out{count}", "--devices", count)
        assert code == 0 and out.count("done in") == 3
    one, two = (
        {name: data for name, data in contents(tmp_path / f"out{i}").items() if not name.endswith(".json")}
        for i in (1, 2)
    )
    assert one == two


def test_two_devices_share_one_clip(networks, inverse, tmp_path):
    write_frames(tmp_path / "in/clip", 2)
    for count in (1, 2):
        code, _, _ = inverse("--input", tmp_path / "in", "--output", tmp_path / f"out{count}", "--devices", count)
        assert code == 0
    images = sorted(path.relative_to(tmp_path / "out1") for path in (tmp_path / "out1").rglob("*.normal.png"))
    assert len(images) == 2
    for image in images:
        one, two = (read_image(tmp_path / f"out{i}" / image) for i in (1, 2))
        assert np.abs(one - two).max() < 1.01 / 255  # another order of sums, and then rounded


def test_processes_share_the_clips(inverse, tmp_path):
    for i in range(3):
        write_frames(tmp_path / f"in/clip{i}", 2, seed=i)
    arguments = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--html")
    code, out, _ = inverse(*arguments, "--process", 1, 2)
    assert code == 0 and "clip1: done" in out and out.count("done in") == 1
    code, out, _ = inverse(*arguments, "--process", 0, 2)
    assert code == 0 and "clip0: done" in out and "clip2: done" in out and "clip1" not in out.split("index.html")[0]
    assert len(Page(tmp_path / "out/index.html").data["clip"]) == 3


# ---- The page to look at results ----


def check_page(output: Path, clips: int, *folders: Path) -> Page:
    """The page of a run shows what is in these folders of its first clip: each frame once, as on disk."""
    page = Page(output / "index.html")
    assert len(page.data["clip"]) == len(page.data["images"]) == clips
    shown = set()
    for folder in folders:
        for label in labels(folder):
            stems = [stem for stem in frames(folder, label) if stem[:4] == "0000" or stem[5:] != "0000"]  # overlap 1
            uris = page.data["images"][0][label]
            for stem, uri in zip(stems, uris, strict=True):
                assert np.abs(decode(uri) - read_image(folder / f"{stem}.{label}.png")).mean() < 0.05
            shown.add(label)
    assert shown == set(page.data["images"][0])
    return page


def smooth(folder: Path, count: int = 3) -> Path:
    """Frames that JPEG keeps well."""
    y, x = np.mgrid[0:64, 0:64].astype(np.float32) / 64
    for i in range(count):
        write_png(folder / f"{i:03d}.png", np.stack([x, y, np.full_like(x, i / count)], axis=-1))
    return folder


def test_a_page_of_each_command_shows_what_it_wrote(inverse, forward, relight, sky, tmp_path):
    smooth(tmp_path / "walk")
    assert inverse("--input", tmp_path / "walk", "--output", tmp_path / "out", "--html")[0] == 0
    page = check_page(tmp_path / "out", 1, tmp_path / "out/walk")
    assert page.data["run"][0]["settings"]["passes"] == ", ".join(PASSES)
    buffers, lit = (tmp_path / "both" / part / "walk" for part in ("gbuffers", "relit"))
    assert relight("--input", tmp_path / "walk", "--output", tmp_path / "both", "--html")[0] == 0
    page = check_page(tmp_path / "both", 1, buffers, lit)
    (light,) = page.data["clip"][0]["lights"].values()
    assert light["name"] == "sky" and len(light["thumbnails"]) == 1
    turning = ("--output", tmp_path / "relit", "--html", "--rotate-light")
    assert forward("--input", tmp_path / "both/gbuffers", *turning)[0] == 0
    page = check_page(tmp_path / "relit", 1, buffers, tmp_path / "relit/walk")  # with the picture that lies beside
    (light,) = page.data["clip"][0]["lights"].values()
    expected = environment_maps(sky, 3, (256, 512), rotate_light=True)["env_ldr"]
    for uri, image in zip(light["thumbnails"], np.asarray(expected), strict=True):
        assert np.abs(decode(uri) - image.reshape(64, 4, 128, 4, 3).mean((1, 3))).mean() < 0.06


def test_a_page_of_a_held_frame_repeats_it(forward, tmp_path):
    write_gbuffers(tmp_path / "in", (2,))
    options = ("--fixed-frame", 1, "--frames", 4, "--rotate-light", "--html")
    assert forward("--input", tmp_path / "in", "--output", tmp_path / "out", *options)[0] == 0
    images = Page(tmp_path / "out/index.html").data["images"][0]
    assert [len(images[label]) for label in (*CONDITIONS, "env0000")] == [4] * (len(CONDITIONS) + 1)
    assert len(set(images["normal"])) == 1 and len(set(images["env0000"])) > 1


def test_a_page_of_a_finished_run_is_made_from_its_files(inverse, monkeypatch, tmp_path):
    arguments = ("--input", smooth(tmp_path / "walk"), "--output", tmp_path / "out")
    assert inverse(*arguments)[0] == 0
    assert not (tmp_path / "out/index.html").exists()
    before = contents(tmp_path / "out")
    monkeypatch.setattr(InverseRenderer, "load", None)  # nothing is left to render
    code, out, _ = inverse(*arguments, "--html")
    assert code == 0 and "finished before, skipped" in out and f"{tmp_path / 'out/index.html'}: a page" in out
    after = contents(tmp_path / "out")
    page = after.pop("index.html")
    assert after == before
    assert inverse(*arguments, "--html")[0] == 0
    assert contents(tmp_path / "out") == before | {"index.html": page}


def test_a_page_of_a_resumed_run_shows_all_of_it(inverse, monkeypatch, tmp_path):
    arguments = ("--input", smooth(tmp_path / "walk", 5), "--output", tmp_path / "out", "--html")
    with monkeypatch.context() as patch:
        patch.setattr("drender.media.encodings.write_png", Stop(7, KeyboardInterrupt()))
        assert inverse(*arguments)[0] == 130
    assert not (tmp_path / "out/index.html").exists()
    assert inverse(*arguments)[0] == 0
    page = check_page(tmp_path / "out", 1, tmp_path / "out/walk")
    assert page.data["clip"][0]["shown"] == list(range(5))


def test_a_page_shows_the_clips_that_did_not_fail(inverse, tmp_path):
    smooth(tmp_path / "in/a")
    smooth(tmp_path / "in/b")
    (tmp_path / "in/b/001.png").write_bytes((tmp_path / "in/b/001.png").read_bytes()[:200])
    code, _, err = inverse("--input", tmp_path / "in", "--output", tmp_path / "out", "--html")
    assert code == 2 and "1 of 2 clips failed" in err
    assert check_page(tmp_path / "out", 1, tmp_path / "out/a").data["clip"][0]["name"] == "a"


def test_a_page_that_cannot_be_made_is_one_line(inverse, tmp_path):
    arguments = ("--input", smooth(tmp_path / "walk"), "--output", tmp_path / "out")
    assert inverse(*arguments, "--html")[0] == 0
    page = (tmp_path / "out/index.html").read_bytes()
    missing = tmp_path / "out/walk/0000.0001.normal.png"
    missing.unlink()
    check_one_line(inverse(*arguments, "--html"), f"{missing} does not exist")
    assert (tmp_path / "out/index.html").read_bytes() == page and not list((tmp_path / "out").glob(".*"))


# ---- Shapes and formats ----


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ((), (128, 64)),
        (("--fit", "contain"), (64, 36)),
        (("--fit", "stretch"), (64, 64)),
        (("--fit", "contain", "--output-size", "source"), (80, 45)),
        (("--output-size", "source"), (80, 45)),
    ],
)
def test_a_portrait_in_every_fit(relight, tmp_path, options, size):
    write_frames(tmp_path / "walk", 3, height=80, width=45)
    code, _, err = relight("--input", tmp_path / "walk", "--output", tmp_path / "out", *options)
    assert (code, err) == (0, "")
    files = sorted((tmp_path / "out").glob("*/walk/*.png"))
    assert len(files) == 3 * (1 + len(DEFAULT_PASSES) + 1)  # frames 0 1 | 1 2
    assert {read_image(path).shape for path in files} == {(*size, 3)}


def test_contained_gbuffers_keep_their_size_in_forward(inverse, forward, tmp_path):
    write_gbuffers(tmp_path / "in", height=36, width=64)
    for fit, size in (("contain", (36, 64)), ("cover", (64, 128))):
        options = ("--input", tmp_path / "in", "--output", tmp_path / fit, "--fit", fit)
        assert forward(*options)[0] == 0
        assert read_image(tmp_path / fit / "in/0000.0000.env0000.png").shape == (*size, 3)


@pytest.mark.parametrize("options", [("--format", "exr"), ("--bits", 16), ("--bits", 16, "--transfer", "linear")])
def test_gbuffers_of_every_format_are_the_same_to_forward(run, forward, models, tmp_path, options):
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
    # The same PNG files without what they say of themselves.
    for path in (tmp_path / "directx/walk").glob("*.png"):
        write_png(path, read_image(path), bits=16)
    said = ("--input-normals", "directx", "--input-transfer", "linear" if "linear" in options else "srgb")
    assert forward("--input", tmp_path / "directx", "--output", tmp_path / "said", "--bits", 16, *said)[0] == 0
    assert forward("--input", tmp_path / "directx", "--output", tmp_path / "unsaid", "--bits", 16)[0] == 0
    said, unsaid = (read_image(tmp_path / name / "walk/0000.0000.env0000.png") for name in ("said", "unsaid"))
    np.testing.assert_array_equal(said, relit[1])
    assert np.abs(unsaid - relit[1]).max() > 0.02


def test_relit_frames_as_exr_are_linear_light(relight, tmp_path):
    write_frames(tmp_path / "walk", 1)
    for name, options in (("exr", ("--format", "exr")), ("png", ("--bits", 16))):
        assert relight("--input", tmp_path / "walk", "--output", tmp_path / name, *options)[0] == 0
    linear = read_image(tmp_path / "exr/relit/walk/0000.0000.env0000.exr")
    np.testing.assert_allclose(
        linear, srgb_to_linear(read_image(tmp_path / "png/relit/walk/0000.0000.env0000.png")), rtol=2**-10, atol=2e-5
    )
    videos = [next(find_clips(tmp_path / name / "relit/walk.viz.mp4")[0].frames()) for name in ("exr", "png")]
    assert np.abs(videos[0] - videos[1]).mean() < 2 / 255  # of noise, through H.264; a curve too many would be 50


def test_the_frame_rate_is_that_of_the_source(run, forward, relight, models, tmp_path):
    write_video(tmp_path / "pan.mp4", pictures(2), 24000 / 1001)
    arguments = ("--checkpoint", models["inverse"], *QUICK, "--input", tmp_path / "pan.mp4")
    assert run("inverse", *arguments, "--output", tmp_path / "buffers")[0] == 0
    assert forward("--input", tmp_path / "buffers", "--output", tmp_path / "lit")[0] == 0
    assert relight("--input", tmp_path / "pan.mp4", "--output", tmp_path / "both")[0] == 0
    for video in ("buffers/pan", "lit/pan", "both/gbuffers/pan", "both/relit/pan"):
        assert find_clips(tmp_path / f"{video}.viz.mp4")[0].fps == 24000 / 1001


def test_the_quality_of_the_video(inverse, tmp_path):
    write_frames(tmp_path / "walk", 2)
    sizes = []
    for quality in (1, 7, 10):
        assert inverse("--input", tmp_path / "walk", "--output", tmp_path / "out", "--quality", quality)[0] == 0
        sizes.append((tmp_path / "out/walk.viz.mp4").stat().st_size)
        (tmp_path / "out/walk.viz.mp4").unlink()  # then only the video is made again, with another quality
    assert sizes == sorted(set(sizes))


def test_another_format_takes_the_place_of_the_files(inverse, tmp_path):
    write_frames(tmp_path / "walk", 2)
    arguments = ("--input", tmp_path / "walk", "--output", tmp_path / "out")
    assert inverse(*arguments)[0] == 0
    check_one_line(inverse(*arguments, "--format", "exr"), "another format ('png', now 'exr')", "--overwrite")
    assert inverse(*arguments, "--format", "exr", "--overwrite")[0] == 0
    assert not list((tmp_path / "out/walk").glob("*.png"))
    assert inverse(*arguments, "--overwrite")[0] == 0
    assert not list((tmp_path / "out/walk").glob("*.exr"))


# ---- Stopping and going on ----


class Stop:
    """Stands for `write_png`: raises at the n-th call."""

    def __init__(self, after: int, error: BaseException):
        self.left, self.error = after, error

    def __call__(self, *arguments):
        self.left -= 1
        if self.left < 0:
            raise self.error
        write_png(*arguments)


@pytest.mark.parametrize("after", [0, 4, 6, 9])
def test_an_interrupted_run_goes_on_where_it_was(inverse, monkeypatch, tmp_path, after):
    write_frames(tmp_path / "in/a", 3)
    write_frames(tmp_path / "in/b", 2)
    arguments = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--chunks", "all")
    assert inverse(*arguments)[0] == 0
    whole = contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("drender.media.encodings.write_png", Stop(after, KeyboardInterrupt()))
        code, _, err = inverse(*arguments)
    assert code == 130 and err.count("\n") == 1 and "run the same command again" in err
    assert not [name for name in contents(tmp_path / "out") if name.endswith("mp4")]
    calls = []
    monkeypatch.setattr("drender.media.encodings.write_png", lambda *a: calls.append(a) or write_png(*a))
    assert inverse(*arguments)[0] == 0
    assert contents(tmp_path / "out") == whole
    assert len(calls) == 18 - after // 6 * 6  # finished chunks are not made again


def test_a_video_that_was_left_out_is_made_from_the_finished_frames(inverse, tmp_path):
    options = ("--input", write_frames(tmp_path / "a", 2), "--output", tmp_path / "out")
    assert inverse(*options, "--no-video")[0] == 0
    before = contents(tmp_path / "out")
    code, out, _ = inverse(*options)
    assert code == 0 and "written" not in out
    assert contents(tmp_path / "out").keys() - before.keys() == {"a.contact.png", "a.viz.mp4"}


def test_finished_clips_are_skipped(inverse, tmp_path):
    arguments = ("--input", write_frames(tmp_path / "a"), "--output", tmp_path / "out")
    inverse(*arguments)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    code, out, err = inverse(*arguments)
    assert (code, out, err) == (0, "a: finished before, skipped\n", "")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}


def test_results_of_other_options_are_kept_unless_overwritten(inverse, run, models, monkeypatch, tmp_path):
    arguments = ("--input", write_frames(tmp_path / "a", 3), "--output", tmp_path / "out")
    inverse(*arguments)
    before = contents(tmp_path / "out")
    code, _, err = inverse(*arguments, "--seed", 1)
    assert code == 2 and "another seed (None, now 1)" in err and "--overwrite" in err and err.count("\n") == 1
    # What cannot be replaced is not deleted either.
    assert inverse(*arguments, "--seed", 1, "--overwrite", "--checkpoint", models["forward"])[0] == 2
    with monkeypatch.context() as patch:
        patch.setattr(InverseStandIn, "estimate", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert inverse(*arguments, "--seed", 1, "--overwrite")[0] == 130
    assert contents(tmp_path / "out") == before
    # Nothing of the old results is left, not even where the new ones have fewer frames.
    assert inverse(*arguments, "--chunks", "first", "--passes", "depth", "--overwrite")[0] == 0
    assert labels(tmp_path / "out/a") == {"rgb", "depth"}
    assert frames(tmp_path / "out/a", "rgb") == ["0000.0000", "0000.0001"]


def test_leavings_of_a_run_with_other_options_are_not_mixed_in(inverse, monkeypatch, tmp_path):
    arguments = ("--input", write_frames(tmp_path / "a", 2), "--output", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("drender.media.encodings.write_png", Stop(5, KeyboardInterrupt()))
        assert inverse(*arguments)[0] == 130
    code, _, err = inverse(*arguments, "--chunks", "first", "--frames", 1, "--overlap", 0)
    assert code == 2 and "another" in err
    assert inverse(*arguments, "--chunks", "first", "--frames", 1, "--overlap", 0, "--overwrite")[0] == 0
    assert frames(tmp_path / "out/a", "rgb") == ["0000.0000"]


def test_a_run_that_is_killed_between_record_and_latents_leaves_no_latents(inverse, monkeypatch, tmp_path):
    arguments = ("--input", write_frames(tmp_path / "a", 3), "--output", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(ClipOutput, "_forget", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert inverse(*arguments)[0] == 130
    assert inverse(*arguments)[0] == 0
    assert not [name for name in contents(tmp_path / "out") if Path(name).name.startswith(".")]


def test_a_run_that_is_killed_while_it_removes_other_results_is_not_taken_for_them(inverse, monkeypatch, tmp_path):
    arguments = ("--input", write_frames(tmp_path / "a", 3), "--output", tmp_path / "out")
    inverse(*arguments)
    before = contents(tmp_path / "out")
    unlink, removed = Path.unlink, []

    def remove(path, *_, **how):
        if path.suffix == ".png" and not path.name.startswith("."):
            removed.append(path)
            if len(removed) > 2:
                raise KeyboardInterrupt
        unlink(path, *_, **how)

    (tmp_path / "out/a/.0000.0000.depth.part.png").touch()  # what a killed run of other passes may leave
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", remove)
        assert inverse(*arguments, "--seed", 1, "--overwrite")[0] == 130
    code, out, _ = inverse(*arguments)
    assert code == 0 and "skipped" not in out
    (tmp_path / "out/a/.0000.0000.depth.part.png").unlink()
    assert contents(tmp_path / "out") == before
    (tmp_path / "out/a/.0000.0000.depth.part.png").touch()
    assert inverse(*arguments, "--passes", "depth", "--overwrite")[0] == 0
    assert labels(tmp_path / "out/a") == {"rgb", "depth"}
    assert not [name for name in contents(tmp_path / "out") if Path(name).name.startswith(".")]


@pytest.mark.parametrize("record", ["", "{", "[]", '{"settings": 3}', '{"finished": true}'])
def test_files_that_no_known_run_wrote_are_kept(inverse, tmp_path, record):
    arguments = ("--input", write_frames(tmp_path / "a", 2), "--output", tmp_path / "out")
    write_png(tmp_path / "out/a/0000.0007.normal.png", pictures(1)[0])
    (tmp_path / "out/a/inverse.json").write_text(record)
    before = contents(tmp_path / "out")
    code, _, err = inverse(*arguments)
    assert code == 2 and "0000.0007.normal.png and no record" in err and contents(tmp_path / "out") == before
    assert inverse(*arguments, "--overwrite")[0] == 0
    assert frames(tmp_path / "out/a", "normal") == ["0000.0000", "0000.0001"]


def test_unfinished_gbuffers_are_no_input(run, forward, models, monkeypatch, tmp_path):
    arguments = ("inverse", "--checkpoint", models["inverse"], *QUICK, "--output", tmp_path / "out")
    arguments += ("--input", write_frames(tmp_path / "a", 3))
    with monkeypatch.context() as patch:
        patch.setattr("drender.media.encodings.write_png", Stop(12, KeyboardInterrupt()))
        assert run(*arguments)[0] == 130
    code, _, err = forward("--input", tmp_path / "out", "--output", tmp_path / "relit")
    assert code == 2 and "is not finished" in err


def test_an_interruption_of_two_devices_stops_after_their_chunks(inverse, monkeypatch, tmp_path):
    for i in range(6):
        write_frames(tmp_path / f"in/clip{i}", 2)
    write, seen = write_png, []

    def interrupted(*arguments):
        seen.append(arguments)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else (
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            )
            time.sleep(0.3)
        write(*arguments)

    monkeypatch.setattr("drender.media.encodings.write_png", interrupted)
    code, _, err = inverse("--input", tmp_path / "in", "--output", tmp_path / "out", "--devices", 2)
    assert code == 130 and "interrupted" in err
    assert len(seen) <= 12  # one clip on each device


# ---- Bad input ----


def text(path: Path, content: str | bytes = "no picture") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def damaged(path: Path, keep: float = 0.5) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def png(path: Path, **how) -> Path:
    write_png(path, pictures(1, **how)[0])
    return path


def video(path: Path, count: int = 4) -> Path:
    write_video(path, pictures(count), 5.0)
    return path


def two_sizes(folder: Path) -> Path:
    png(folder / "0.png"), png(folder / "1.png", height=32)
    return folder


BAD_INPUTS = {
    "missing": (lambda p: p / "none", "does not exist"),
    "empty path": (lambda p: "", "expected a path, got an empty one"),
    "empty folder": (lambda p: p, "no images or videos"),
    "folder without images": (lambda p: text(p / "in/a.txt").parent, "no images or videos"),
    "text file": (lambda p: text(p / "a.txt"), "no images or videos"),
    "text named png": (lambda p: text(p / "a.png"), "a.png: not a readable image"),
    "empty png": (lambda p: text(p / "a.png", ""), "a.png: not a readable image"),
    "truncated png": (lambda p: damaged(png(p / "a.png")), "a.png: truncated or damaged"),
    "truncated video": (lambda p: damaged(video(p / "a.mp4")), "a.mp4: truncated or damaged video"),
    "text named mp4": (lambda p: text(p / "a.mp4"), "a.mp4: not a video"),
    "empty video": (lambda p: text(p / "a.mp4", ""), "a.mp4: not a video"),
    "two sizes": (lambda p: two_sizes(p / "in"), "the frames of a clip need one size"),
    "device file": (lambda p: "/dev/null", "/dev/null is not a file"),
}


def check_one_line(result: tuple[int, str, str], *fragments: str) -> None:
    code, _, err = result
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    for fragment in fragments:
        assert fragment in err


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_told_before_models_are_loaded(inverse, monkeypatch, tmp_path, name):
    monkeypatch.setattr(InverseRenderer, "load", None)
    make, message = BAD_INPUTS[name]
    check_one_line(inverse("--input", make(tmp_path), "--output", tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()


BAD_OPTIONS = [
    ("inverse", ("--passes", "normals"), "unknown pass 'normals'; did you mean 'normal'?"),
    ("inverse", ("--steps", 0), "num_steps: expected at least 1, got 0"),
    ("inverse", ("--steps", -3), "num_steps: expected at least 1, got -3"),
    ("inverse", ("--steps", "many"), "--steps: invalid int value: 'many'"),
    ("inverse", ("--frames", 0), "frames: expected at least 1, got 0"),
    ("inverse", ("--frames", -1), "frames: expected at least 1, got -1"),
    ("inverse", ("--overlap", 2), "overlap: expected less than frames (2), got 2"),
    ("inverse", ("--size", 0, 64), "size is 0 64; both sides must be 1 or more"),
    ("inverse", ("--size", 64, -64), "size is 64 -64; both sides must be 1 or more"),
    ("inverse", ("--format", "exr", "--bits", 16), "--bits 16 is for PNG"),
    ("inverse", ("--quality", 11), "--quality 11: must be from 0 to 10"),
    ("inverse", ("--fit", "crop"), "unknown --fit 'crop'"),
    ("forward", ("--normals", "directx"), "unknown option '--normals'"),
    ("inverse", ("--seed", -1), "seed: expected at least 0 and below 9223372036854775808, got -1"),
    ("inverse", ("--fps", "nan"), "fps: expected a finite number, got nan"),
    ("inverse", ("--guidance", 1, "nan"), "guidance: expected a finite number, got (1.0, nan)"),
    ("inverse", ("--devices", 0), "--devices 0: must be 1 or more"),
    ("inverse", ("--process", 2, 2), "process: expected an index from 0 and a larger count, got 2 2"),
    ("inverse", ("--dtype", "float8"), "unknown --dtype 'float8'"),
    ("inverse", ("--chunks", "drop_last"), "unknown --chunks 'drop_last'; did you mean 'drop-last'?"),
    ("inverse", ("--chekpoint", "c"), "unknown option '--chekpoint'; did you mean '--checkpoint'?"),
    ("inverse", ("--see", 3), "unknown option '--see'; did you mean '--seed'?"),
    ("inverse", ("--environment", "a.hdr"), "unknown option '--environment'"),
    ("inverse", ("--checkpoint", "/nowhere"), "/nowhere: no such folder"),
    ("forward", ("--drop", "rough"), "unknown condition to drop 'rough'; did you mean 'roughness'?"),
    ("forward", ("--environment-size", 0, 64), "environment size 0x64 is not positive"),
    ("forward", ("--projection", "ball", "--environment-size", 64, 128), "not square, as projection 'ball' needs it"),
    ("forward", ("--strength", -1), "environment strength -1.0"),
    ("forward", ("--elevation", "nan"), "elevation nan"),
    ("forward", ("--poses", "/nowhere.json"), "cannot read /nowhere.json"),
    ("forward", ("--environment", "/nowhere.hdr"), "/nowhere.hdr does not exist"),
    ("forward", ("--environment", "/dev"), "/dev: no environment maps found"),
    ("forward", ("--exposure", "bright"), "environment exposure 'bright' is neither a number of stops nor 'auto'"),
    ("forward", ("--exposure", "inf"), "environment exposure inf"),
    ("forward", ("--blur", -5), "environment blur -5.0"),
    ("forward", ("--pitch", "nan"), "environment pitch nan"),
    ("forward", ("--elevation-sign", "dow"), "unknown --elevation-sign 'dow'"),
    ("relight", ("--passes", "normal", "depth"), "--passes lacks basecolor, roughness, metallic"),
]


@pytest.mark.parametrize(("command", "options", "message"), BAD_OPTIONS)
def test_bad_options_are_told_before_models_are_loaded(request, monkeypatch, tmp_path, command, options, message):
    monkeypatch.setattr(InverseRenderer, "load", None)
    monkeypatch.setattr(ForwardRenderer, "load", None)
    source = write_gbuffers(tmp_path / "in") if command == "forward" else write_frames(tmp_path / "in", 3)
    run = request.getfixturevalue(command)
    check_one_line(run("--input", source, "--output", tmp_path / "out", *options), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "expected a command; known: inverse, forward, relight"),
        (("invers",), "unknown command 'invers'; did you mean 'inverse'?"),
        (("--hlep",), "unknown option '--hlep'; did you mean '--help'?"),
        (("inverse", "--input", "i", "--output", "o", "x"), "unrecognized arguments: x"),
    ],
)
def test_bad_words(run, words, message):
    check_one_line(run(*words), message, "--help")


@pytest.mark.parametrize("command", ["inverse", "forward", "relight"])
def test_help(run, command):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    assert "None" not in out and "==" not in out
    assert "(the model's)" in out and "(8)" in out


def test_sizes_are_rounded_up_and_it_is_said(inverse, forward, tmp_path):
    code, out, err = inverse("--input", png(tmp_path / "a.png"), "--output", tmp_path / "out", "--size", 50, 40)
    assert (code, err) == (0, "") and "--size 50 40: rounded up to 64 64, multiples of 64" in out
    source = write_gbuffers(tmp_path / "in")
    code, out, err = forward("--input", source, "--output", tmp_path / "relit", "--environment-size", 8, 60)
    assert (code, err) == (0, "") and "--environment-size 8 60: rounded up to 64 64, multiples of 64" in out


def test_models_of_the_other_kind(inverse, forward, relight, models, tmp_path):
    source, other = write_gbuffers(tmp_path / "in"), tmp_path / "out"
    message = "holds a 'forward' model, but the inverse renderer needs 'inverse'"
    check_one_line(inverse("--input", source, "--output", other, "--checkpoint", models["forward"]), message)
    check_one_line(relight("--input", source, "--output", other, "--inverse", models["forward"]), message)
    message = "holds a 'inverse' model, but the forward renderer needs 'forward'"
    check_one_line(forward("--input", source, "--output", other, "--checkpoint", models["inverse"]), message)
    assert not other.exists()


def test_gbuffers_that_are_not_all_there(forward, monkeypatch, tmp_path):
    monkeypatch.setattr(ForwardRenderer, "load", None)
    write_gbuffers(tmp_path / "in", labels=CONDITIONS[:-1])
    check_one_line(forward("--input", tmp_path / "in", "--output", tmp_path / "out"), "clip 'in' has no 'metallic'")
    write_gbuffers(tmp_path / "in")
    (tmp_path / "in/0000.0001.depth.png").unlink()
    check_one_line(forward("--input", tmp_path / "in", "--output", tmp_path / "out"), "'depth' (frame 0000.0001)")
    check_one_line(forward("--input", tmp_path / "x", "--output", tmp_path / "out"), "does not exist")
    write_gbuffers(tmp_path / "short", chunks=(2, 1))
    check_one_line(forward("--input", tmp_path / "short", "--output", tmp_path / "out"), "give the --overlap")


def test_poses_that_do_not_fit(forward, relight, monkeypatch, tmp_path):
    monkeypatch.setattr(InverseRenderer, "load", None)
    monkeypatch.setattr(ForwardRenderer, "load", None)
    path = text(tmp_path / "poses.json", json.dumps({"frames": [{"transform_matrix": np.eye(4).tolist()}]}))
    source = write_gbuffers(tmp_path / "in")
    for run in (forward, functools.partial(relight, "--passes", *CONDITIONS)):
        options = ("--input", source if run is forward else write_frames(tmp_path / "a"), "--output", tmp_path / "out")
        check_one_line(run(*options, "--poses", path), "has 2 frames, but --poses only 1")
        check_one_line(run(*options, "--poses", path, "--elevation", 3), "exclude each other")


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda image: np.where(image > 400, np.nan, image), "contains NaN, taken as black"),
        (lambda image: image * 0, "is black and will light nothing"),
        (lambda image: image[:20], "is 64x20, not 2:1; is it a lat-long image?"),
    ],
)
@pytest.mark.filterwarnings("default")
def test_doubtful_environments_light_with_a_warning_of_one_line(forward, sky, tmp_path, change, warning):
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


def test_broken_environments(forward, sky, tmp_path):
    options = ("--input", write_gbuffers(tmp_path / "in"), "--output", tmp_path / "out", "--environment")
    broken = damaged(Path(shutil.copy(sky, tmp_path / "half.hdr")))
    check_one_line(forward(*options, sky, broken), "half.hdr")
    check_one_line(forward(*options, text(tmp_path / "a.hdr")), "a.hdr: not a readable image")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["file/below", "file", "/proc/drender"])
def test_an_output_that_cannot_be_written(inverse, monkeypatch, tmp_path, place):
    monkeypatch.setattr(InverseRenderer, "load", None)
    text(tmp_path / "file")
    check_one_line(
        inverse("--input", png(tmp_path / "a.png"), "--output", tmp_path / place), "--output", "give another"
    )
    assert (tmp_path / "file").read_text() == "no picture"


@pytest.mark.parametrize(("source", "place"), [("in", "in"), ("in", "in/out"), ("in/a", "in"), ("in/v.mp4", ".")])
def test_results_among_the_input(inverse, tmp_path, source, place):
    write_frames(tmp_path / "in/a"), video(tmp_path / "in/v.mp4")
    if place == ".":
        shutil.move(tmp_path / "in/v.mp4", tmp_path / "in/in.mp4")
        source = "in/in.mp4"
    before = contents(tmp_path)
    check_one_line(inverse("--input", tmp_path / source, "--output", tmp_path / place), "among the input's files")
    assert contents(tmp_path) == before


def test_a_full_disk(inverse, monkeypatch, tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    source = png(tmp_path / "a.png")
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        result = inverse("--input", source, "--output", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    check_one_line(result, "cannot write", "basecolor")
    assert list(contents(tmp_path / "out")) == ["a/inverse.json"]
    assert inverse("--input", source, "--output", tmp_path / "out")[0] == 0


def test_a_full_device(inverse, monkeypatch, tmp_path):
    said = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 GiB.\nmore of it"

    def estimate(*_):
        raise jax.errors.JaxRuntimeError(said)

    monkeypatch.setattr(InverseStandIn, "estimate", estimate)
    result = inverse("--input", png(tmp_path / "a.png"), "--output", tmp_path / "out")
    check_one_line(result, "out of device memory", "allocate 9 GiB", "--frames")
    said = "RESOURCE_EXHAUSTED"
    check_one_line(inverse("--input", tmp_path / "a.png", "--output", tmp_path / "out"), "out of device memory")
    said = "INTERNAL: no such thing"
    with pytest.raises(jax.errors.JaxRuntimeError):
        inverse("--input", tmp_path / "a.png", "--output", tmp_path / "out")


def test_a_clip_that_fails_does_not_stop_the_others(inverse, tmp_path):
    text(tmp_path / "in/a.png"), damaged(png(tmp_path / "in/b/0.png"), 0.9), video(tmp_path / "in/c.mp4", 2)
    text(tmp_path / "in/d.mp4")
    (
        write_frames(tmp_path / "in/e"),
        (tmp_path / "in/e/001.png").write_bytes((tmp_path / "in/e/000.png").read_bytes()[:-30]),
    )
    code, out, err = inverse("--input", tmp_path / "in", "--output", tmp_path / "out")
    assert code == 2 and "c: done" in out
    *failed, last = err.splitlines()
    assert last == "error: 4 of 5 clips failed, as said above; mend them and run again"
    assert len(failed) == 4 and all(line.startswith("failed: ") for line in failed)
    assert (tmp_path / "out/c.viz.mp4").is_file() and not (tmp_path / "out/e").exists()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in Linux's way")
def test_no_file_stays_open(inverse, monkeypatch, tmp_path):
    for i in range(6):
        write_frames(tmp_path / f"in/{i}", 1)
    damaged(tmp_path / "in/3/000.png")
    counts, process = [], execute._process
    monkeypatch.setattr(execute, "_process", lambda *a: (process(*a), counts.append(len(os.listdir("/proc/self/fd")))))
    code, _, err = inverse("--input", tmp_path / "in", "--output", tmp_path / "out", "--html")
    assert code == 2 and "1 of 6 clips failed" in err
    assert len(counts) == 5 and len(set(counts[1:])) == 1


def test_gbuffers_that_fail_do_not_stop_the_others(forward, tmp_path):
    write_gbuffers(tmp_path / "in/a")
    write_gbuffers(tmp_path / "in/b", labels=CONDITIONS[:2])
    write_gbuffers(tmp_path / "in/c"), damaged(tmp_path / "in/c/0000.0001.depth.png")
    code, out, err = forward("--input", tmp_path / "in", "--output", tmp_path / "out")
    assert code == 2 and "a: done" in out and err.count("failed: ") == 2 and "2 of 3 clips failed" in err


# ---- As a process ----


def start(*arguments, **how) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, str(ROOT / "sample.py"), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **how)


def test_a_bad_input_of_a_process(models, tmp_path):
    arguments = ("--checkpoint", models["inverse"], "--input", text(tmp_path / "a.png"), "--output", tmp_path / "out")
    process = start("inverse", *arguments)
    _, err = process.communicate()
    check_one_line((process.returncode, "", err), "a.png: not a readable image")


def test_a_killed_process_goes_on_where_it_was(networks, inverse, models, tmp_path):
    write_frames(tmp_path / "a", 8)
    arguments = ("--input", tmp_path / "a", "--output", tmp_path / "out", "--dtype", "float32")
    assert inverse(*arguments)[0] == 0
    whole = contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    command = ("inverse", "--checkpoint", models["inverse"], "--passes", *PASSES, *QUICK, *arguments)
    process = start(*command)
    assert process.stdout.readline() == "a: rgb, frames 0 to 7, written\n"
    process.kill()
    process.communicate()
    assert not (tmp_path / "out/a.viz.mp4").exists()
    assert inverse(*arguments)[0] == 0
    assert contents(tmp_path / "out") == whole
