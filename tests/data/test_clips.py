"""Clips for training: frames, windows, light, and errors."""

import json

import numpy as np
import pytest
from helpers.tiny_clips import LABELS, colour, light_with_poses, random_poses, write_clip

from drender.data.augment import Augmentation
from drender.data.clips import open_clips
from drender.errors import InputError
from drender.lighting.camera import camera_rotations
from drender.lighting.environment import load_environment
from drender.lighting.light_file import Light, write_light
from drender.lighting.projection import project
from drender.media.encodings import encode_normal
from drender.media.gbuffers import frame_path
from drender.media.images import read_image, write_png

RNG = np.random.default_rng(0)
SIZE = (8, 16)  # of environment images; one size, so that the projection compiles once


# --- frames -----------------------------------------------------------------------------------------------------------


def test_frames_are_numbered_through_the_chunks(tmp_path):
    (clip,) = open_clips(write_clip(tmp_path / "walk", clip=4, chunks=(3, 5)), LABELS)
    assert (clip.name, clip.num_frames, clip.longest) == ("walk", 8, 5)
    for frames, expected in ((slice(None), range(8)), (slice(2, 5), (2, 3, 4)), ([6, 0, 3], (6, 0, 3))):
        found = clip.read("normal", frames, (2, 2))
        assert found.dtype == np.float32
        wanted = np.float32([colour("normal", 4, i) for i in expected])
        np.testing.assert_allclose(found, np.broadcast_to(wanted[:, None, None], found.shape), atol=1e-6)


def test_no_window_spans_two_chunks(tmp_path):
    (clip,) = open_clips(write_clip(tmp_path / "walk", chunks=(3, 5)), ("rgb",))
    assert clip.windows(1) == [range(0, 3), range(3, 8)]
    assert clip.windows(3) == [range(0, 1), range(3, 6)]
    assert clip.windows(4) == [range(3, 5)]
    assert clip.windows(6) == []


def test_frames_cover_the_size_and_are_center_cropped(tmp_path):
    # A ramp from left to right stays one when its size is halved.
    ramp = np.broadcast_to((np.arange(16, dtype=np.float32)[:, None] + 0.5) / 16, (8, 16, 3))
    write_png(frame_path(tmp_path / "ramp", 0, 0, "rgb"), ramp, bits=16)
    (clip,) = open_clips(tmp_path / "ramp", ("rgb",))
    found = clip.read("rgb", slice(None), (4, 4))
    expected = np.broadcast_to(np.array([5, 7, 9, 11])[:, None] / 16, (1, 4, 4, 3))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_resized_normals_are_unit_vectors(tmp_path):
    normals = RNG.normal(size=(12, 16, 3)).astype(np.float32)
    normals[..., 2] = np.abs(normals[..., 2])  # toward the camera
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals[..., 2] = np.abs(normals[..., 2])  # visible surfaces face the camera
    write_png(frame_path(tmp_path / "n", 0, 0, "normal"), encode_normal(normals), bits=16)
    (clip,) = open_clips(tmp_path / "n", ("normal",))
    small, same = (clip.read("normal", slice(None), size) for size in ((6, 8), (12, 16)))
    np.testing.assert_allclose(np.linalg.norm(small * 2 - 1, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(same[0], encode_normal(normals), atol=1e-5)


def test_other_layouts_have_their_light_in_the_clip_folder(tmp_path, sky):
    for frame in range(2):
        for label in ("rgb", "depth"):
            write_png(tmp_path / "tree" / label / f"{frame}.png", np.full((2, 2, 3), 0.5, np.float32))
            write_png(tmp_path / "flat" / f"walk-{frame}.{label}.png", np.full((2, 2, 3), 0.5, np.float32))
    for name in ("tree", "flat"):
        write_light(tmp_path / name, Light("../sky.hdr"))
        (clip,) = open_clips(tmp_path / name, ("depth", "rgb", "env_ldr"))
        assert clip.folder == tmp_path / name
        assert clip.light() == Light("../sky.hdr")


# --- light ------------------------------------------------------------------------------------------------------------


def test_environment_is_that_of_light_json(tmp_path, sky):
    matrices, angles = random_poses(3), (0.1, 1.0, 2.0)
    light = light_with_poses(matrices, rotation=90.0, flip=True, strength=2.5, angles=angles)
    (clip,) = open_clips(write_clip(tmp_path / "a", chunks=(2, 1), light=light), ("env_ldr",))
    expected = project(
        load_environment(sky, 90.0, True, 2.5), SIZE, camera_rotations(3, poses=matrices), np.float32(angles)
    )
    for frames in (slice(None), slice(1, 3), [2, 0]):
        found = clip.environment(SIZE, frames)
        for name, images in expected.items():
            np.testing.assert_allclose(found[name], np.asarray(images)[frames], atol=1e-6)


def test_a_static_light_is_equal_in_all_frames(tmp_path, sky):
    (clip,) = open_clips(write_clip(tmp_path / "a", light=Light(str(sky))), ("env_ldr",))  # an absolute path
    expected = project(load_environment(sky), SIZE, camera_rotations(1), np.zeros(1, np.float32))
    for name, images in clip.environment(SIZE).items():
        np.testing.assert_array_equal(images, np.broadcast_to(expected[name], (3, *SIZE, 3)))


def test_exposure_and_turn_of_the_light(tmp_path, sky):
    (clip,) = open_clips(write_clip(tmp_path / "a", light=Light("../sky.hdr", strength=2.0)), ("env_ldr",))
    rotations, still = camera_rotations(3), np.zeros(3, np.float32)
    brighter = clip.environment(SIZE, augmentation=Augmentation(exposure=1.5))
    expected = project(load_environment(sky, strength=3.0), SIZE, rotations, still)
    np.testing.assert_allclose(brighter["env_log"], expected["env_log"], atol=1e-6)
    # A turn by whole columns is the same as rolling the lat-long image.
    turned = clip.environment(SIZE, augmentation=Augmentation(light_turn=45.0))
    expected = project(load_environment(sky, rotation=180.0 + 45, strength=2.0), SIZE, rotations, still)
    np.testing.assert_allclose(turned["env_ldr"], expected["env_ldr"], atol=2e-3)
    assert np.abs(turned["env_ldr"] - clip.environment(SIZE)["env_ldr"]).max() > 0.1


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "clip 'a' has no light.json, which names its environment"),
        ("{", "light.json: unreadable"),
        ({"environment": "../moon.hdr"}, "its environment ../moon.hdr does not exist"),
        ({"environment": "../sky.hdr", "strenght": 1}, "did you mean 'strength'"),
        ({"environment": "../sky.hdr", "angles": [0, 1]}, "2 angles for 3 frames"),
        ({"environment": "../sky.hdr", "poses": [[[1, 0], [0, 1]]] * 3}, "every pose must be 4x4"),
        ({"environment": "../sky.hdr", "poses": [[[1, 0], [0]]] * 3}, "every pose must be 4x4"),
        (
            {"environment": "../sky.hdr", "poses": np.eye(4)[None].tolist()},
            "expected 3 finite 4x4 matrices, one per frame",
        ),
        ({"environment": "../sky.hdr", "strength": -1}, "light.json: strength: expected at least 0, got -1.0"),
        (
            {"environment": "../sky.hdr", "rotation": float("inf")},
            "light.json: unreadable (Infinity is not a finite number)",
        ),
        ({"rotation": 0}, "missing key 'environment'"),
    ],
)
def test_bad_lights(tmp_path, sky, values, message):
    folder = write_clip(tmp_path / "a")
    if values is not None:
        (folder / "light.json").write_text(values if isinstance(values, str) else json.dumps(values))
    with pytest.raises(InputError) as error:
        open_clips(folder, ("env_ldr",))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert len(open_clips(folder, ("rgb",))) == 1  # who wants no light needs none


def test_unrelated_stills_are_not_the_frames_of_a_clip(tmp_path):
    for stem in ("kitchen", "garden"):
        write_png(tmp_path / "stills" / f"{stem}.rgb.png", np.zeros((2, 2, 3), np.float32))
    clips = open_clips(tmp_path / "stills", ("rgb",))
    assert [(clip.name, clip.num_frames) for clip in clips] == [("stills_garden", 1), ("stills_kitchen", 1)]
    for stem in ("walk_9_left", "walk_10_left", "walk_11_left"):
        write_png(tmp_path / "walk" / f"{stem}.rgb.png", np.zeros((2, 2, 3), np.float32))
    (clip,) = open_clips(tmp_path / "walk", ("rgb",))
    assert clip.num_frames == 3


def test_labels_of_a_clip_have_one_size(tmp_path):
    write_clip(tmp_path / "a", labels=("rgb",), size=(4, 4))
    write_clip(tmp_path / "a", labels=("depth",), size=(2, 4))
    (clip,) = open_clips(tmp_path / "a", ("rgb", "depth"))
    with pytest.raises(InputError, match="clip 'a': its 'depth' has 2x4 pixels, other images 4x4; give all images"):
        clip.images(("rgb", "depth"), slice(0, 1), (2, 2), (2, 2))


def test_frames_of_a_clip_have_one_size(tmp_path):
    write_clip(tmp_path / "a", labels=("rgb", "depth"), size=(4, 4))
    write_png(frame_path(tmp_path / "a", 0, 2, "depth"), np.zeros((6, 4, 3), np.float32))
    (clip,) = open_clips(tmp_path / "a", ("rgb", "depth"))
    with pytest.raises(InputError, match="clip 'a': its 'depth' has 6x4 pixels, other images 4x4; give all images"):
        clip.images(("rgb", "depth"), slice(0, 3), (2, 2), (2, 2))


def test_the_folder_states_the_encoding_of_other_programs(tmp_path):
    stored, world = np.float32([0.1, 0.2, 0.3]), np.float32([2, 3, 6]) / 7
    poses = random_poses(2)
    for frame in range(2):
        file = frame_path(tmp_path / "clips" / "a", 0, frame, "basecolor")
        write_png(file, np.broadcast_to(stored, (2, 2, 3)), bits=16)
        write_png(file.with_name(f"0000.000{frame}.normal.png"), np.broadcast_to(world / 2 + 0.5, (2, 2, 3)), bits=16)
        write_png(file.with_name(f"0000.000{frame}.depth.png"), np.full((2, 2, 3), (1 + frame) / 100), bits=16)
    values = {"transfer": "linear", "normals": "world", "depth": "metric"}
    (tmp_path / "clips" / "encoding.json").write_text(json.dumps(values))
    frames = [{"file_path": f"{i}", "transform_matrix": pose.tolist()} for i, pose in enumerate(poses)]
    (tmp_path / "clips" / "a" / "transforms.json").write_text(json.dumps({"frames": frames}))
    (clip,) = open_clips(tmp_path / "clips", ("basecolor", "normal", "depth"))
    read = lambda label: clip.read(label, slice(None), (2, 2))[:, 0, 0]
    np.testing.assert_allclose(read("basecolor")[0], [0.349, 0.485, 0.584], atol=1e-3)  # sRGB of 0.1, 0.2, 0.3
    np.testing.assert_allclose(read("normal"), world @ poses[:, :3, :3] / 2 + 0.5, atol=1e-4)
    np.testing.assert_allclose(read("depth"), [[0] * 3, [1] * 3], atol=1e-6)
    (tmp_path / "clips" / "encoding.json").write_text('{"normals": "directX"}')
    with pytest.raises(InputError, match=r"encoding\.json: normals: expected one of 'opengl', 'directx', 'world', got"):
        open_clips(tmp_path / "clips", ("basecolor",))


def test_files_in_folders_of_a_label_may_name_it_too(tmp_path):
    for label, value in {"rgb": 0.2, "normal": 0.8}.items():
        for frame in (8, 9, 10):
            write_png(tmp_path / "a" / label / f"{label}{frame}.png", np.full((2, 2, 3), value))
    (clip,) = open_clips(tmp_path, ("rgb", "normal"))
    assert (clip.name, clip.num_frames, clip.folder) == ("a", 3, tmp_path / "a")
    assert [path.name for path in clip.paths["normal"]] == ["normal8.png", "normal9.png", "normal10.png"]


def test_a_home_directory_is_found(tmp_path, monkeypatch):
    write_clip(tmp_path / "clips" / "a")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [clip.name for clip in open_clips("~/clips", ("rgb",))] == ["a"]


def test_bad_clips(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no G-buffers found"):
        open_clips(tmp_path / "empty", ("rgb",))
    write_clip(tmp_path / "set" / "good")
    write_clip(tmp_path / "set" / "bad", labels=("rgb", "depth"))
    with pytest.raises(InputError, match=r"clip 'bad' has no 'normal' \(frame 0000.0000 and 2 more\)"):
        open_clips(tmp_path / "set", ("rgb", "normal"))
    clips = open_clips(tmp_path / "set", ("rgb", "depth"))
    file = frame_path(tmp_path / "set" / "bad", 0, 1, "depth")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match=f"{file}: truncated or damaged"):
        clips[0].read("depth", slice(None), (2, 2))


def test_light_round_trip(tmp_path, sky):
    light = light_with_poses(random_poses(3), angles=(0.0, 0.5, 1.0), strength=0.25)
    folder = write_clip(tmp_path / "a", light=light)
    assert open_clips(folder, ("env_log",))[0].light() == light
    write_light(folder, Light("../sky.hdr"))
    assert "poses" not in json.loads((folder / "light.json").read_text())
    assert read_image(frame_path(folder, 0, 0, "rgb")).shape == (2, 2, 3)
