"""Synthetic clips: shapes, materials, skies and scenes by themselves; traced frames against our conventions."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from drender import assets
from drender.data.clips import open_clips
from drender.errors import InputError
from drender.lighting.environment import load_environment
from drender.lighting.latlong import load_latlong
from drender.lighting.projection import ldr_curve, project
from drender.media.color import LUMINANCE, srgb_to_linear
from drender.media.images import read_hdr, read_image
from drender.synthetic import environments, generate, materials, meshes, pool, shapes
from drender.synthetic import scene as scenes
from drender.synthetic.scene import Camera
from drender.synthetic.tracer import BUFFERS, TILE, Frame, Tracer

ROOT = Path(__file__).parents[2]
EVERYTHING = scenes.catalogue("all", (), tuple(environments.find_environments()), bundled=True)


# ---- Shapes ----


@pytest.mark.parametrize("family", shapes.FAMILIES)
def test_every_member_of_a_family_is_a_closed_surface_in_the_unit_ball(family):
    for seed in range(6):
        mesh = shapes.parametric(family, seed)
        corners = mesh.positions.reshape(-1, 3, 3).astype(np.float64)
        areas = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        assert np.linalg.norm(mesh.positions, axis=-1).max() == pytest.approx(1, abs=1e-5)
        assert np.abs(areas.sum(axis=0)).max() < 1e-5  # closed: what looks left is as large as what looks right
        assert np.einsum("fi,fi->", corners[:, 0], areas) > 0  # six times its volume: not inside out
        np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=-1), 1, atol=1e-5)
        outward = np.einsum(
            "fki,fi->fk", mesh.normals.reshape(-1, 3, 3), areas / np.linalg.norm(areas, axis=-1)[:, None]
        )
        assert outward.min() > 0.7  # no smoothing over creases
        assert mesh.uv.min() >= 0 and mesh.uv.max() <= 1


def test_normals_are_those_of_the_shape():
    ball = shapes._turned(shapes._ring(), shapes._arch(1.0))
    np.testing.assert_allclose(
        ball.normals, ball.positions / np.linalg.norm(ball.positions, axis=-1)[:, None], atol=0.04
    )
    cube = shapes.parametric("cube", 0)
    np.testing.assert_allclose(
        np.sort(np.abs(cube.normals), axis=-1), np.tile([0, 0, 1], (len(cube.normals), 1)), atol=1e-6
    )
    for round_ in (False, True):
        ground = shapes.plane(2.0, round_)
        assert (ground.normals == [0, 1, 0]).all() and np.abs(ground.positions).max() == pytest.approx(2, abs=0.01)


def test_families_are_the_same_for_the_same_seed_and_unknown_ones_are_named():
    first, second, other = (shapes.parametric("pebble", seed) for seed in (1, 1, 2))
    assert (first.positions == second.positions).all() and (first.positions[:9] != other.positions[:9]).any()
    with pytest.raises(InputError, match="unknown shape 'sfere'; did you mean 'sphere'"):
        shapes.parametric("sfere", 0)


def test_mesh_files_of_every_kind_are_read(tmp_path, monkeypatch):
    trimesh = pytest.importorskip("trimesh")
    box = trimesh.creation.box((2, 4, 4)).apply_translation((5, 0, 0))
    for suffix in (".ply", ".obj", ".glb"):
        box.export(str(tmp_path / f"{suffix[1:]}{suffix}"))
    for name, data in trimesh.exchange.gltf.export_gltf(trimesh.Scene(box)).items():
        (tmp_path / name.replace("model", "gltf")).write_bytes(data)
    (tmp_path / "notes.txt").write_text("no mesh")
    found = meshes.find_meshes(tmp_path)
    assert [Path(path).suffix for path in found] == [".glb", ".gltf", ".obj", ".ply"]
    for path in found:
        mesh = meshes.read_mesh(path)
        np.testing.assert_allclose(np.abs(mesh.positions), np.tile([1 / 3, 2 / 3, 2 / 3], (36, 1)), atol=1e-5)
        assert set(np.abs(mesh.normals).round(4).sum(axis=-1)) == {1.0}  # every corner has its face's normal
        assert mesh.uv.min() >= 0 and mesh.uv.max() <= 1
    monkeypatch.setattr(meshes, "MAX_FACES", 5)
    with pytest.raises(InputError, match=r"has 12 triangles, the limit is 5; simplify it"):
        meshes.read_mesh(found[0])


def test_meshes_that_will_not_do_are_named(tmp_path):
    pytest.importorskip("trimesh")
    with pytest.raises(InputError, match=r"nowhere does not exist"):
        meshes.find_meshes(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no meshes there; known: \.ply"):
        meshes.find_meshes(tmp_path)
    (tmp_path / "broken.ply").write_text("ply\nnonsense")
    with pytest.raises(InputError, match=r"broken\.ply: not a readable mesh"):
        meshes.read_mesh(tmp_path / "broken.ply")
    (tmp_path / "flat.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    with pytest.raises(InputError, match=r"flat\.obj: has no triangles with an area"):
        meshes.read_mesh(tmp_path / "flat.obj")


# ---- Materials ----


@pytest.mark.parametrize("kind", materials.PATTERNS)
def test_patterns_fill_zero_to_one_and_have_no_seam(kind):
    for seed in range(4):
        image = materials.pattern(kind, 128, 4, np.random.default_rng(seed))
        assert 0 <= image.min() < 0.3 and 0.6 < image.max() <= 1
        steps = np.abs(np.diff(image, axis=0)).mean(axis=1)
        assert np.abs(image[0] - image[-1]).mean() < 1.2 * steps.max() + 0.01


def test_a_checker_has_squares():
    image = materials.pattern("checker", 64, 2, np.random.default_rng(0))
    assert image[8, 8] == image[24, 24] == 1 and image[8, 24] == image[24, 8] == 0


def test_a_material_mixes_its_two_substances():
    red, blue = materials.Material((1.0, 0.0, 0.0), 0.2, 0.0), materials.Material((0.0, 0.0, 1.0), 0.8, 1.0)
    maps = materials.MaterialMix(red, blue, "checker", 2, 0, 0.0).maps(64)
    np.testing.assert_allclose(maps[8, 24], [1, 0, 0, 0.2, 0], atol=1e-6)
    np.testing.assert_allclose(maps[8, 8], [0, 0, 1, 0.8, 1], atol=1e-6)


def test_materials_vary():
    drawn = [materials.random_material(np.random.default_rng(seed)) for seed in range(400)]
    assert 0.22 < np.mean([x.first.metallic for x in drawn]) < 0.38
    luminance = np.array([x.first.basecolor for x in drawn]) @ LUMINANCE
    assert np.percentile(luminance, 10) < 0.05 and np.percentile(luminance, 90) > 0.5
    assert min(x.first.roughness for x in drawn) >= 0.05 and max(x.first.roughness for x in drawn) > 0.95
    assert {x.pattern for x in drawn} == {"uniform", *materials.PATTERNS}
    with pytest.raises(InputError, match="unknown pattern 'dotts'; did you mean 'dots'"):
        materials.pattern("dotts", 8, 1, np.random.default_rng(0))


# ---- Skies ----


def test_bundled_environments_light_and_come_without_suns_of_negative_light():
    found = environments.find_environments()
    assert len(found) == 18 and set(environments.HELD_OUT) < set(found)
    for path in found.values():
        image = read_hdr(path)
        assert image.shape == (64, 128, 3) and np.isfinite(image).all() and image.min() >= 0 and image.mean() > 0.01
    assert "CC0" in (assets.ENVIRONMENTS / "README.md").read_text()


def test_procedural_environments_are_bright_above_and_differ():
    images = [environments.procedural(seed) for seed in range(30)]
    for image in images:
        assert image.shape == (64, 128, 3) and np.isfinite(image).all() and image.min() >= 0
        assert image.mean() == pytest.approx(1, rel=0.02)
    assert (environments.procedural(3) == images[3]).all()
    assert np.mean([image[:32].mean() > image[32:].mean() for image in images]) > 0.8
    assert np.mean([image.max() > 20 for image in images]) > 0.4  # suns and lamps


def test_copies_of_environments_are_small_averages_with_the_same_bytes(tmp_path):
    image = np.random.default_rng(0).random((512, 1024, 3)).astype(np.float32) * 10
    image[:2, :2], image[100, 100] = [[-50.0]], np.nan
    for name in ("a", "b"):
        environments.write_exr(tmp_path / f"{name}.exr", image)
        environments.small_copy(tmp_path / f"{name}.exr", tmp_path / "copies" / f"{name}.exr")
    assert len({path.read_bytes() for path in (tmp_path / "copies").iterdir()}) == 1
    clean = np.nan_to_num(image.astype(np.float16).astype(np.float32)).clip(0)
    expected = clean.reshape(256, 2, 512, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(read_hdr(tmp_path / "copies" / "a.exr"), expected, rtol=1e-3, atol=1e-3)


def test_environments_that_will_not_do_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no environments there; known: \.hdr \.exr"):
        environments.find_environments(tmp_path)
    environments.write_exr(tmp_path / "night.exr", np.zeros((4, 8, 3), np.float32))
    with pytest.raises(InputError, match=r"night\.exr: is black"):
        environments.small_copy(tmp_path / "night.exr", tmp_path / "copy.exr")
    (tmp_path / "night.hdr").write_bytes(b"")
    with pytest.raises(InputError, match=r"night\.exr and night\.hdr have the same name"):
        environments.find_environments(tmp_path)


# ---- Scenes ----


@settings(max_examples=60)
@given(st.integers(0, 2**31))
def test_bodies_never_meet_and_the_camera_stays_outside(index):
    scene = scenes.random_scene(0, "all", index, EVERYTHING)
    assert 1 <= len(scene.bodies) <= 6
    for time in np.linspace(0, 1, 9):
        centres = np.stack([body.centre(time) for body in scene.bodies])
        radii = np.array([body.radius for body in scene.bodies])
        gaps = np.linalg.norm(centres[:, None] - centres, axis=-1) - radii[:, None] - radii
        assert (gaps[~np.eye(len(radii), dtype=bool)] > 0.99 * scenes.GAP).all()
        pose = scene.camera.pose(float(time))
        eye = pose[:3, 3]
        if scene.plane is None:
            assert (np.linalg.norm(centres - eye, axis=-1) > radii).all()
        else:
            assert eye[1] > 0 and (centres[:, 1] == 0).all()
            assert (np.linalg.norm((centres - eye)[:, [0, 2]], axis=-1) > radii).all() or eye[1] > 2 * radii.max()
            assert (np.abs(centres) + radii[:, None] <= scene.plane.half).all()
        rotation = pose[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
        assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-5) and rotation[1, 1] > 0  # upright
        np.testing.assert_allclose((scene.camera.target - eye) @ rotation, [0, 0, -scene.camera.distance], atol=1e-3)


def test_one_thing_moves_in_every_clip():
    seen = set()
    for index in range(60):
        scene = scenes.random_scene(0, "all", index, EVERYTHING)
        moving = {
            "orbit": scene.camera.sweep != 0,
            "oscillation": scene.camera.swing[0] > 0,
            "light": all(light.spin != 0 for light in scene.lights),
            "rotation": all(body.spin != 0 for body in scene.bodies),
            "translation": all(np.any(body.shift) for body in scene.bodies),
        }
        assert [name for name, moves in moving.items() if moves] == [scene.motion]
        seen.add(scene.motion)
    assert seen == set(scenes.MOTIONS)


def test_scenes_depend_on_seed_split_and_number_alone():
    scene = scenes.random_scene(0, "all", 7, EVERYTHING)
    assert scene == scenes.random_scene(0, "all", 7, EVERYTHING)
    others = [(1, "all", 7), (0, "train", 7), (0, "all", 8)]
    assert all(scene != scenes.random_scene(*other, EVERYTHING) for other in others)


def test_splits_have_no_shape_and_no_map_in_common():
    files = tuple(f"mesh{i}.ply" for i in range(200))
    train, test = (scenes.catalogue(split, files, EVERYTHING.environments, True) for split in ("train", "test"))
    for name in ("families", "meshes", "environments"):
        ours, held_out = set(getattr(train, name)), set(getattr(test, name))
        assert ours and held_out and not ours & held_out
    assert set(train.families) | set(test.families) == set(shapes.FAMILIES) and set(test.families) == set(
        shapes.HELD_OUT
    )
    assert 5 < len(test.meshes) < 40
    moved = tuple(f"elsewhere/{path}" for path in files)
    assert len(scenes.catalogue("test", moved, (), False).meshes) == len(test.meshes)
    shown = {body.shape for i in range(40) for body in scenes.random_scene(0, "test", i, test).bodies}
    assert shown <= set(test.families) | set(test.meshes)
    with pytest.raises(InputError, match="unknown split 'tset'; did you mean 'test'"):
        scenes.catalogue("tset", (), (), True)


# ---- The command, with a tracer that is none ----


class GreyTracer(Tracer):
    def __init__(self, size, spp):
        self.size = size

    def set_materials(self, maps):
        assert all(image.shape == (TILE, TILE, 5) for image in maps)

    def set_bodies(self, meshes):
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

        def here(start, jobs, processes):
            do = start()
            for job in jobs:
                do(job)
                done.append(job)
                yield job

        monkeypatch.setattr(generate, "Tracer", GreyTracer)
        monkeypatch.setattr(pool, "run", here)
        monkeypatch.setattr(sys, "argv", ["synthetic", *map(str, words)])
        generate.main()
        return done

    return run


def test_a_run_goes_on_and_grows_but_mixes_nothing(command, tmp_path):
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


def test_clips_have_the_projects_layout_and_conventions(command, tmp_path):
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


@pytest.mark.parametrize(
    "words, message",
    [
        (["--clips", "0"], "--clips is 0; it must be 1 or more"),
        (["--clips", "1", "--size", "0", "64"], "--size is 0 64; both sides must be 1 or more"),
        (["--clips", "1", "--meshes", "nowhere"], "nowhere does not exist"),
        (["--clips", "1", "--environments", "."], "no environments there"),
    ],
)
def test_a_bad_option_is_one_line_and_leaves_nothing(command, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)):
        command("clips", *words)
    assert not list(tmp_path.iterdir())


def test_other_folders_and_unusable_meshes_are_refused(command, tmp_path):
    pytest.importorskip("trimesh")
    (tmp_path / "meshes").mkdir()
    (tmp_path / "meshes" / "broken.obj").write_text("f 1 2 3\n")
    with pytest.raises(InputError, match="exists, and is no folder of synthetic clips"):
        command(tmp_path, "--clips", 1)
    with pytest.raises(InputError, match=r"broken\.obj: "):
        command(tmp_path / "clips", "--clips", 5, "--meshes", tmp_path / "meshes")
    command(tmp_path / "clips", "--clips", 1, "--frames", 1, "--size", 4, 4)  # nothing was made: other options will do


# ---- Workers ----


def start_worker():
    def do(job):
        if job == 3:
            raise InputError("three will not do")
        if job == 4:
            os._exit(7)

    return do


def test_workers_do_their_jobs_and_tell_what_went_wrong():
    assert sorted(pool.run(start_worker, [0, 1, 2], 2)) == [0, 1, 2]
    with pytest.raises(InputError, match="three will not do"):
        list(pool.run(start_worker, [3], 1))
    with pytest.raises(InputError, match=r"a process died \(exit code 7"):
        list(pool.run(start_worker, [4], 1))


# ---- Traced ----


# Not imported here, for that would choose LLVM before the tracer does.
with_mitsuba = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("mitsuba", "mitsuba_oidn")), reason="Mitsuba is not installed"
)


@pytest.fixture(scope="module")
def tracer():
    return Tracer((32, 32), 64)


def test_what_is_not_installed_is_named(monkeypatch, tmp_path):
    for name in ("mitsuba", "drjit", "trimesh"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r'path tracing needs Mitsuba 3 .*; pip install "drender\[data\]"'):
        Tracer((8, 8), 4)
    with pytest.raises(InputError, match=r'meshes need trimesh; pip install "drender\[data\]"'):
        meshes.read_mesh(tmp_path / "a.ply")


def texture(basecolor, roughness, metallic):
    return np.full((TILE, TILE, 5), [*basecolor, roughness, metallic], np.float32)


def coloured_light(height=32):
    """Smooth, and of another colour in every direction."""
    polar = np.pi * (np.arange(height) + 0.5)[:, None] / height
    azimuth = 2 * np.pi * (np.arange(2 * height) + 0.5) / (2 * height) - np.pi
    x, y, z = np.sin(polar) * np.sin(azimuth), np.cos(polar) + 0 * azimuth, -np.sin(polar) * np.cos(azimuth)
    return np.stack([np.exp(x), np.exp(y), 1 + 0.8 * z], axis=-1).astype(np.float32)


@with_mitsuba
@pytest.mark.parametrize(
    "rotation, flip, azimuth, elevation, angle",
    [
        (180, False, 0, 0, 0),
        (75, False, 0, 0, 0),
        (75, True, 0, 0, 0),
        (180, False, 0.7, 0.9, 0),
        (30, True, 2, 0.5, 1.2),
    ],
)
def test_a_mirror_ball_shows_what_the_environment_maps_say(tracer, rotation, flip, azimuth, elevation, angle):
    image = coloured_light()
    camera = Camera(
        2 * np.arctan(1 / 90), (0.0, 0.0, 0.0), 90.0, float(azimuth), float(elevation), 0.0, (0.0, 0.0, 0.0)
    )
    pose = camera.pose(0.0)
    tracer.set_materials([texture((1, 1, 1), 0, 1)])
    tracer.set_bodies([shapes._turned(shapes._ring(256), shapes._arch(1.0, points=129))])
    tracer.set_light(load_latlong(image, float(rotation), flip, 0.5), float(angle))
    traced = np.asarray(ldr_curve(jnp.asarray(tracer.trace(pose, camera.fov, 0).rgb)))
    cube = load_environment(image, float(rotation), flip, 0.5)
    # Pixel centres of 32 pixels are among 129 points from −1 to 1, which "ball" has.
    ball = np.asarray(
        project(cube, (129, 129), pose[None, :3, :3], np.array([angle], np.float32), "ball")["env_ldr"][0]
    )
    ball = ball[2:-2:4, 2:-2:4]
    y, x = np.mgrid[:32, :32] / 16 - 31 / 32
    inside = np.hypot(x, y) < 0.9
    assert np.abs(traced - ball)[inside].mean() < 0.003
    assert np.abs(traced - ball[:, ::-1])[inside].mean() > 0.03 and np.abs(traced - ball[::-1])[inside].mean() > 0.03


@with_mitsuba
def test_buffers_follow_the_conventions(tracer):
    ball, ground = shapes._turned(shapes._ring(256), shapes._arch(1.0, points=129)), shapes.plane(3.0, False)
    tracer.set_materials([texture((0.2, 0.4, 0.6), 0.3, 0.0), texture((0.9, 0.1, 0.1), 0.7, 1.0)])
    tracer.set_bodies([ball, ground.placed(np.eye(3), 1.0, np.array([0.0, -1.0, 0.0]))])
    tracer.set_light(np.ones((8, 16, 3), np.float32), 0.0)
    pose = np.eye(4, dtype=np.float32)
    pose[2, 3] = 5
    frame = tracer.trace(pose, 0.6, 0)
    at = lambda row, column: {name: value[row, column] for name, value in vars(frame).items() if np.ndim(value)}
    centre, right, above = at(16, 16), at(16, 22), at(10, 16)
    np.testing.assert_allclose(centre["normal"], [0, 0, 1], atol=0.1)
    assert centre["normal"][0] > 0.01 and centre["normal"][1] < -0.01  # half a pixel right of the middle and below
    assert right["normal"][0] > 0.4 and above["normal"][1] > 0.4
    np.testing.assert_allclose(centre["depth"], 4, atol=0.01)
    np.testing.assert_allclose([*centre["basecolor"], *centre["roughness"]], [0.2, 0.4, 0.6, 0.3], atol=1e-5)
    floor = at(-1, 16)
    np.testing.assert_allclose(floor["normal"], [0, 1, 0], atol=1e-5)
    np.testing.assert_allclose(floor["basecolor"], [0.9, 0.1, 0.1], atol=1e-5)
    # A ray at t below the middle, where the lower edge is 1, meets y = −1 at depth 1 / (t tan ½fov).
    rows = 1 - (np.arange(BUFFERS) + 0.5) / (BUFFERS * 16)
    np.testing.assert_allclose(floor["depth"], (1 / (rows * np.tan(0.3))).mean(), rtol=1e-4)
    assert frame.near == pytest.approx(1 / (rows[0] * np.tan(0.3)), rel=1e-4)
    assert (frame.coverage[:4] == 0).all() and frame.coverage[16, 16] == 1
    np.testing.assert_allclose(frame.rgb[:4], 1, atol=0.06)  # the light itself, denoised
    assert frame.rgb[:4].mean() == pytest.approx(1, abs=0.01)


@with_mitsuba
def test_a_frame_depends_on_nothing_before_it(tracer):
    def trace(seed):
        tracer.set_materials([texture((0.5, 0.5, 0.5), 0.5, 0.0)])
        tracer.set_bodies([shapes.parametric("knot", 1)])
        tracer.set_light(coloured_light(), 0.3)
        return tracer.trace(Camera(0.6, (0.0, 0.0, 0.0), 4.0, 0.5, 0.4, 0.0, (0.0, 0.0, 0.0)).pose(0.0), 0.6, seed).rgb

    first, other = trace(1), trace(2)
    tracer.set_bodies([shapes.plane(40.0, True)])
    tracer.set_light(np.ones((8, 16, 3), np.float32), 0.0)
    tracer.trace(np.eye(4, dtype=np.float32), 1.0, 5)
    assert (trace(1) == first).all() and (first != other).any()


@with_mitsuba
def test_the_background_of_a_clip_is_the_light_that_it_says(tmp_path):
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
