"""The command: resuming, layout, errors; with a stand-in tracer, and once from end to end."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.textured import write_box

from drender.data.clips import open_clips
from drender.errors import InputError
from drender.lighting.projection import ldr_curve
from drender.locks import PREFIX, lock_folder
from drender.media.color import srgb_to_linear
from drender.media.images import read_image, write_hdr, write_png
from drender.synthetic import environments, generate, pool
from drender.synthetic.atlas import TILE
from drender.synthetic.tracer import Frame, Tracer

ROOT = Path(__file__).parents[2]
# Not imported here, for that would choose LLVM before the tracer does.
with_mitsuba = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("mitsuba", "mitsuba_oidn")), reason="Mitsuba is not installed"
)


class GreyTracer(Tracer):
    def __init__(self, size, spp):
        self.size = size

    def set_materials(self, surfaces):
        assert all(surface.shape in ((TILE, TILE, 5), (5,)) for surface in surfaces)

    def set_objects(self, meshes):
        self.near = min(float(mesh.positions.min()) for mesh in meshes)

    def set_light(self, image, angle):
        self.light = float(image.mean())

    def trace(self, pose, fov, seed):
        height, width = self.size
        coverage = np.zeros((height, width, 1), np.float32)
        coverage[: height // 2] = 1
        depth = np.linspace(2, 4, height, dtype=np.float32)[:, None, None] * coverage
        values = [(0.5, 0.5, 0.5), (0, 0.6, 0.8), 0.25, 1]  # basecolor, normal, roughness, metallic
        surfaces = [coverage * np.float32(value) for value in values]
        return Frame(np.full((*self.size, 3), self.light, np.float32), coverage, *surfaces, depth, 2.0, 3.0)


@pytest.fixture
def command(monkeypatch):
    """Runs the command line in this process without Mitsuba; returns the jobs that it did."""

    def run(*words):
        done = []

        def here(work, jobs, processes):
            for job in jobs:
                work(job)
                done.append(job)
                yield job

        monkeypatch.setattr(generate, "tracer_of", GreyTracer)
        monkeypatch.setattr(pool, "run", here)
        monkeypatch.setattr(sys, "argv", ["synthetic", *map(str, words)])
        generate.main()
        return done

    return run


@pytest.mark.slow
def test_run_resumes_and_grows_but_rejects_other_settings(command, tmp_path):
    output = tmp_path / "clips"
    options = ("--frames", 2, "--size", 8, 16)
    assert command(output, "--clips", 2, *options) == [(0, 0), (1, 0)]
    before = {path: path.read_bytes() for path in output.rglob("*.*") if path.parent != output}
    assert command(output, "--clips", 3, "--lights", 2, *options) == [(0, 1), (1, 1), (2, 0), (2, 1)]
    assert all(path.read_bytes() == data for path, data in before.items())
    assert command(output, "--clips", 1, "--first", 2, *options) == []
    assert (output / generate.CONTACT).exists()
    with pytest.raises(InputError, match=r"clips made with another frames \(2, now 3\); give another folder"):
        command(output, "--clips", 4, "--frames", 3, "--size", 8, 16)
    with pytest.raises(InputError, match="clips made with another environments"):
        command(output, "--clips", 4, *options, "--environments", output / generate.ENVIRONMENTS)


def test_a_set_that_another_process_makes_is_refused(command, tmp_path):
    with lock_folder(tmp_path / "clips"):
        with pytest.raises(InputError, match=r"clips: process .* is writing there; wait until it ends"):
            command(tmp_path / "clips", "--clips", 1, "--frames", 1, "--size", 8, 8)
        assert [path.name for path in (tmp_path / "clips").iterdir()] == [PREFIX]


def test_clips_follow_layout_and_encodings(command, tmp_path):
    command(tmp_path / "clips", "--clips", 1, "--lights", 2, "--frames", 3, "--size", 8, 16)
    labels = ("rgb", "basecolor", "normal", "depth", "roughness", "metallic", "env_ldr", "env_log", "env_nrm")
    first, second = open_clips(tmp_path / "clips", labels)
    assert (first.name, second.name, first.num_frames) == ("00000", "00000b", 3)
    assert first.light() != second.light()
    images = first.images(labels, slice(0, 1), (8, 16), (16, 32))
    above, below = ({label: frames[0, row, 3] for label, frames in images.items()} for row in (1, 6))
    byte = 1 / 255
    np.testing.assert_allclose(above["normal"], [0.5, 0.8, 0.9], atol=byte)
    np.testing.assert_allclose(above["basecolor"], 0.735, atol=byte)  # 0.5, sRGB-encoded
    np.testing.assert_allclose([above["roughness"][0], above["metallic"][0]], [0.25, 1], atol=byte)
    np.testing.assert_allclose(below["normal"], [0.5, 0.5, 1], atol=byte)
    np.testing.assert_allclose(
        [below[x][0] for x in ("basecolor", "depth", "roughness", "metallic")], [0, 1, 0.5, 0], atol=byte
    )
    scene = json.loads((tmp_path / "clips/00000/scene.json").read_text())
    assert (scene["near"], scene["other_light"]) == (2, "00000b")
    np.testing.assert_allclose(images["depth"][0, :4, 0, 0], np.linspace(2, 4, 8)[:4] - 2, atol=byte)


@pytest.mark.slow
def test_everyday_scenes_resume_to_equal_bytes(command, tmp_path, monkeypatch):
    pytest.importorskip("trimesh")
    monkeypatch.setitem(environments.GENERATED, "sunsky", environments.procedural)
    for i, size in enumerate(((1, 1, 1), (0.2, 0.3, 0.2), (2, 0.8, 0.9))):
        write_box(tmp_path / "assets" / "objects" / f"box{i}.obj", size)
    (tmp_path / "assets" / "CREDITS.md").write_text("# Credits\n")
    options = ("--frames", 1, "--size", 8, 8, "--meshes", tmp_path / "assets" / "objects")
    command(tmp_path / "whole", "--clips", 5, *options)
    command(tmp_path / "parts", "--clips", 2, *options)
    command(tmp_path / "parts", "--clips", 5, *options)
    contents = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "whole", tmp_path / "parts")
    ]
    assert contents[0] == contents[1] and Path("CREDITS.md") in contents[0]
    layouts = {json.loads((tmp_path / "whole" / f"{i:05d}" / "scene.json").read_text())["layout"] for i in range(5)}
    assert len(layouts) > 1
    with pytest.raises(InputError, match="clips made with another layouts"):
        command(tmp_path / "whole", "--clips", 6, *options, "--layouts", "air")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--clips", "0"], "--clips: expected 1 or more, got 0"),
        (["--clips", "1", "--size", "0", "64"], "--size: expected sides of 1 or more, got 0 64"),
        (["--clips", "1", "--meshes", "nowhere"], "nowhere: folder not found"),
        (["--clips", "1", "--environments", "."], "no environments found"),
    ],
)
def test_invalid_option_is_one_line_and_writes_nothing(command, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)):
        command("clips", *words)
    assert not list(tmp_path.iterdir())


def test_foreign_folders_and_unusable_meshes_are_rejected(command, tmp_path):
    pytest.importorskip("trimesh")
    (tmp_path / "meshes").mkdir()
    (tmp_path / "meshes" / "broken.obj").write_text("f 1 2 3\n")
    with pytest.raises(InputError, match="expected a new folder or one of synthetic clips"):
        command(tmp_path, "--clips", 1)
    with pytest.raises(InputError, match=r"broken\.obj: "):
        command(tmp_path / "clips", "--clips", 5, "--meshes", tmp_path / "meshes")
    command(tmp_path / "clips", "--clips", 1, "--frames", 1, "--size", 4, 4)  # nothing was made: other options will do


def test_suspicious_environments_are_warned_of_before_the_first_clip(command, tmp_path):
    write_hdr(tmp_path / "maps" / "square.exr", np.ones((8, 8, 3), np.float32))
    options = ("--environments", tmp_path / "maps", "--frames", 1, "--size", 4, 4)
    with pytest.raises(UserWarning, match=r"square\.exr is 8x8, not 2:1"):
        command(tmp_path / "clips", "--clips", 3, *options)
    assert not (tmp_path / "clips" / "00000").exists()


def test_every_map_of_a_texture_is_checked_before_the_first_clip(command, tmp_path):
    pictures = tmp_path / "pictures"
    write_png(pictures / "wood.png", np.full((8, 8, 3), 0.5, np.float32))
    (pictures / "wood_roughness.png").write_bytes(b"PNG")
    floors = ("--textures", pictures, "--layouts", "floor", "--frames", 1, "--size", 4, 4)
    with pytest.raises(InputError, match=r"wood_roughness\.png"):
        command(tmp_path / "clips", "--clips", 4, *floors)
    assert not (tmp_path / "clips" / "00000").exists()


def test_all_assets_are_checked_before_very_many_clips(command, tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "broken.png").write_bytes(b"PNG")
    solids = ("--textures", tmp_path / "pictures", "--layouts", "solids", "--frames", 1, "--size", 4, 4)
    with pytest.warns(UserWarning, match="--textures: scenes of solids have none; name other --layouts"):
        command(tmp_path / "clips", "--clips", 2, *solids)
    monkeypatch.setattr(generate, "MANY_JOBS", 3)
    with pytest.warns(UserWarning, match="--textures"), pytest.raises(InputError, match=r"broken\.png"):
        command(tmp_path / "clips", "--clips", 5, *solids)


@pytest.mark.slow
@with_mitsuba
def test_background_of_a_clip_matches_its_recorded_light(tmp_path):
    """From the command line to the pixels: the light's file, rotation, flip, strength, turn and the camera's poses."""
    words = [sys.executable, "-m", "drender.synthetic", tmp_path / "clips", "--clips", "1", "--first", "58"]
    words += ["--frames", "2", "--size", "24", "32", "--processes", "1", "--spp", "16"]
    result = subprocess.run([str(word) for word in words], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (clip,) = open_clips(tmp_path / "clips", ("rgb", "env_ldr"))
    fov = json.loads((clip.folder / "scene.json").read_text())["fov"]
    assert any(clip.light().angles) and clip.light().flip
    y, x = np.mgrid[:24, :32] + 0.5
    directions = np.stack([(x - 16) / 12 * np.tan(fov / 2), (12 - y) / 12 * np.tan(fov / 2), -np.ones_like(x)], axis=-1)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    height, width = 256, 512
    row = np.arccos(directions[..., 1]) / np.pi * height
    column = (np.arctan2(directions[..., 0], directions[..., 2]) / np.pi + 1) / 2 * width
    for frame in range(2):
        maps = clip.environment((height, width), [frame])["env_ldr"][0]
        expected = maps[row.astype(int), column.astype(int) % width]
        rgb = clip.read("rgb", [frame], (24, 32))[0]
        mask = read_image(clip.folder / f"0000.{frame:04d}.mask.png")
        visible = (mask.max(axis=-1) == 0) & (rgb.max(axis=-1) < 0.98)
        assert visible.sum() > 50
        shown = np.asarray(ldr_curve(jnp.asarray(srgb_to_linear(rgb))))
        assert np.abs(shown - expected)[visible].mean() < 0.01
        assert expected[visible].std() > 0.03


def test_credits_of_any_encoding_are_copied(tmp_path):
    (tmp_path / "meshes").mkdir()
    (tmp_path / "meshes" / "CREDITS.md").write_bytes(b"Caf\xe9 by Ann\r\n")  # Latin-1, as old editors write it
    generate.write_credits(tmp_path, [tmp_path / "meshes"])
    assert (tmp_path / "CREDITS.md").read_text("utf-8") == "Caf\ufffd by Ann\n"
