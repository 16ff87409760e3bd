"""Traced frames against the conventions of the environment maps and G-buffers."""

import importlib.util
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.textured import QUARTERS, write_glb, write_obj

from drender.errors import InputError
from drender.lighting.environment import load_environment
from drender.lighting.latlong import load_latlong
from drender.lighting.projection import ldr_curve, project
from drender.synthetic import mesh_files, shapes
from drender.synthetic.atlas import TILE
from drender.synthetic.scene import Camera
from drender.synthetic.tracer import BUFFERS, Tracer

# Not imported here, for that would choose LLVM before the tracer does.
with_mitsuba = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("mitsuba", "mitsuba_oidn")), reason="Mitsuba is not installed"
)


@pytest.fixture(scope="module")
def tracer():
    return Tracer((32, 32), 64)


def test_missing_packages_are_named(monkeypatch, tmp_path):
    for name in ("mitsuba", "drjit", "trimesh"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r'path tracing needs Mitsuba 3 .*; pip install "drender\[data\]"'):
        Tracer((8, 8), 4)
    with pytest.raises(InputError, match=r'reading meshes needs trimesh; pip install "drender\[data\]"'):
        mesh_files.read_mesh(tmp_path / "a.ply")


def texture(basecolor, roughness, metallic):
    return np.full((TILE, TILE, 5), [*basecolor, roughness, metallic], np.float32)


def colored_light(height=32):
    """Smooth, and with another color in every direction."""
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
def test_mirror_ball_matches_environment_maps(tracer, rotation, flip, azimuth, elevation, angle):
    image = colored_light()
    camera = Camera(
        2 * np.arctan(1 / 90), (0.0, 0.0, 0.0), 90.0, float(azimuth), float(elevation), 0.0, (0.0, 0.0, 0.0)
    )
    pose = camera.pose(0.0)
    tracer.set_materials([texture((1, 1, 1), 0, 1)])
    tracer.set_objects([shapes.lathe(shapes.superellipse(256), shapes.arch(1.0, points=129))])
    tracer.set_light(load_latlong(image, float(rotation), flip, 0.5), float(angle))
    traced = np.asarray(ldr_curve(jnp.asarray(tracer.trace(pose, camera.fov, 0).rgb)))
    cube = load_environment(image, float(rotation), flip, 0.5)
    # Pixel centers of 32 pixels are among 129 points from −1 to 1, which "ball" has.
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
    ball, ground = shapes.lathe(shapes.superellipse(256), shapes.arch(1.0, points=129)), shapes.plane(3.0, False)
    tracer.set_materials([texture((0.2, 0.4, 0.6), 0.3, 0.0), texture((0.9, 0.1, 0.1), 0.7, 1.0)])
    tracer.set_objects([ball, ground.placed(np.eye(3), 1.0, np.array([0.0, -1.0, 0.0]))])
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
def test_frame_is_independent_of_earlier_frames(tracer):
    def trace(seed):
        tracer.set_materials([texture((0.5, 0.5, 0.5), 0.5, 0.0)])
        tracer.set_objects([shapes.parametric("knot", 1)])
        tracer.set_light(colored_light(), 0.3)
        return tracer.trace(Camera(0.6, (0.0, 0.0, 0.0), 4.0, 0.5, 0.4, 0.0, (0.0, 0.0, 0.0)).pose(0.0), 0.6, seed).rgb

    first, other = trace(1), trace(2)
    tracer.set_objects([shapes.plane(40.0, True)])
    tracer.set_light(np.ones((8, 16, 3), np.float32), 0.0)
    tracer.trace(np.eye(4, dtype=np.float32), 1.0, 5)
    assert (trace(1) == first).all() and (first != other).any()


@with_mitsuba
@pytest.mark.parametrize("write", [write_obj, write_glb])
def test_textured_files_appear_as_they_are_drawn(tracer, tmp_path, write):
    """The square fills the frame: its quarters are those of the picture."""
    file = mesh_files.read_mesh(write(tmp_path))
    tracer.set_materials(mesh_files.part_surfaces(file.parts, seed=0))
    tracer.set_objects([file.mesh])
    pose = np.eye(4, dtype=np.float32)
    pose[2, 3] = 2
    frame = tracer.surfaces(pose, float(2 * np.arctan(0.5**0.5 / 2)))  # the square has a half-diagonal of 1
    quarters = frame.basecolor.reshape(2, 16, 2, 16, 3)[:, 4:12, :, 4:12].mean(axis=(1, 3))
    np.testing.assert_allclose(quarters, QUARTERS / 255, atol=1e-3)
    np.testing.assert_allclose(frame.normal[8, 8], [0, 0, 1], atol=1e-5)
    if write is write_glb:
        np.testing.assert_allclose(frame.roughness[:, [6, 26], 0], np.tile([0.1, 0.4], (32, 1)), atol=1e-3)
        np.testing.assert_allclose(frame.metallic[[6, 26], :, 0], np.repeat([[1], [0]], 32, axis=1), atol=1e-3)


@with_mitsuba
def test_textures_repeat_beyond_their_edges(tracer, tmp_path):
    file = mesh_files.read_mesh(write_obj(tmp_path, repeat=2))
    tracer.set_materials(mesh_files.part_surfaces(file.parts, seed=0))
    tracer.set_objects([file.mesh])
    pose = np.eye(4, dtype=np.float32)
    pose[2, 3] = 2
    frame = tracer.surfaces(pose, float(2 * np.arctan(0.5**0.5 / 2)))
    tiles = frame.basecolor.reshape(4, 8, 4, 8, 3)[:, 2:6, :, 2:6].mean(axis=(1, 3))
    np.testing.assert_allclose(tiles, np.tile(QUARTERS / 255, (2, 2, 1)), atol=1e-3)
