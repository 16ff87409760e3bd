"""Light orientation against rotation matrices, rolled maps and inversely rotated cameras."""

import json

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from drender.errors import InputError
from drender.lighting.camera import camera_rotations, light_angles, light_orientation, read_poses
from drender.lighting.environment import environment_maps

pytestmark = pytest.mark.usefixtures("small_cubes")
ANGLES = st.floats(-720, 720)
RIGHT, UP, AHEAD = np.array([1, 0, 0]), np.array([0, 1, 0]), np.array([0, 0, -1])


def rotation_about(axis, degrees):
    """Rodrigues' formula: right-handed, counter-clockwise as seen from the tip of the axis."""
    (x, y, z), a = axis, np.deg2rad(degrees)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(a) * cross + (1 - np.cos(a)) * cross @ cross


def smooth_light(rng, height=64):
    """Few waves, so that lookups in between do not show."""
    polar = ((np.arange(height) + 0.5) / height * np.pi)[:, None, None]
    azimuth = ((np.arange(2 * height) + 0.5) / height * np.pi)[None, :, None]
    a, b, c = rng.uniform(0.2, 0.5, (3, 3))
    sides = np.sin(polar) * (a * np.sin(azimuth) + b * np.sin(2 * azimuth + 1) * np.sin(polar))
    return (1.5 + sides + c * np.cos(polar)).astype(np.float32)


def as_poses(rotations):
    poses = np.tile(np.eye(4), (len(rotations), 1, 1))
    poses[:, :3, :3] = rotations
    return poses


def same_light(found, expected, tolerance):
    for label in ("env_ldr", "env_log", "env_nrm"):
        np.testing.assert_allclose(found[label], expected[label], atol=tolerance, err_msg=label)


# --- Turns ---


def test_signs_of_yaw_pitch_and_roll():
    close = lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6)
    close(light_orientation(yaw=90.0) @ AHEAD, RIGHT)
    close(light_orientation(pitch=90.0) @ AHEAD, UP)
    close(light_orientation(roll=90.0) @ UP, RIGHT)
    close(light_orientation(), np.eye(3))
    assert (light_orientation() == np.eye(3)).all()  # exactly: the released result


@given(ANGLES, ANGLES, ANGLES)
def test_yaw_pitch_roll_compose_as_matrices(yaw, pitch, roll):
    expected = rotation_about(-UP, yaw) @ rotation_about(RIGHT, pitch) @ rotation_about(AHEAD, roll)
    np.testing.assert_allclose(light_orientation(yaw, pitch, roll), expected, atol=1e-5)


@settings(deadline=None, max_examples=15)
@given(ANGLES, ANGLES, ANGLES, st.integers(0, 9))
def test_turned_light_equals_inversely_turned_camera(yaw, pitch, roll, seed):
    image = smooth_light(np.random.default_rng(seed))
    light = rotation_about(-UP, yaw) @ rotation_about(RIGHT, pitch) @ rotation_about(AHEAD, roll)
    found = environment_maps(image, 1, (12, 12), yaw=yaw, pitch=pitch, roll=roll)
    same_light(
        found, environment_maps(image, 1, (12, 12), poses=as_poses([light.T])), 2e-3
    )  # both interpolate, differently


@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
def test_quarter_turns_of_yaw_roll_the_map(quarters):
    image = np.exp(np.random.default_rng(0).normal(0, 2, (16, 32, 3))).astype(np.float32)
    found = environment_maps(image, 1, (24, 24), yaw=90.0 * quarters)
    same_light(found, environment_maps(np.roll(image, 8 * quarters, axis=1), 1, (24, 24)), 1e-5)
    same_light(found, environment_maps(image, 1, (24, 24), rotation=180.0 + 90 * quarters), 1e-5)


def test_turning_cameras_equal_inversely_turning_light(tmp_path):
    image = np.exp(np.random.default_rng(1).normal(0, 2, (16, 32, 3))).astype(np.float32)
    start = rotation_about(np.array([2, 3, 6]) / 7, 70.0)  # of the first camera in the file's world
    # The light turns to the right and round to the back; these cameras turn to the left.
    turns = [start @ rotation_about(UP, 90.0 * i) for i in range(5)]
    frames = [{"transform_matrix": pose.tolist()} for pose in as_poses(turns)]
    (tmp_path / "transforms.json").write_text(json.dumps({"frames": frames}))
    poses = read_poses(tmp_path / "transforms.json", relative=True)
    turning = environment_maps(image, 5, (24, 24), rotate_light=True)
    same_light(environment_maps(image, 5, (24, 24), poses=poses), turning, 2e-5)
    steps = [environment_maps(image, 1, (24, 24), yaw=float(np.rad2deg(angle))) for angle in light_angles(5, True)]
    same_light({label: np.concatenate([step[label] for step in steps]) for label in steps[0]}, turning, 2e-5)


def test_tilted_light_rotates_about_the_vertical():
    image = smooth_light(np.random.default_rng(2))
    found = environment_maps(image, 5, (12, 12), pitch=40.0, roll=25.0, rotate_light=True)
    for i, yaw in enumerate((0, 90, 180, 270, 360)):
        expected = environment_maps(image, 1, (12, 12), yaw=float(yaw), pitch=40.0, roll=25.0)
        same_light({label: images[i : i + 1] for label, images in found.items()}, expected, 1e-3)


# --- Elevation ---


def test_raised_camera_looks_down():
    rotation = camera_rotations(1, 30.0, elevation_sign="up")[0]
    backward = rotation @ -AHEAD  # toward the camera from the origin that it looks at
    np.testing.assert_allclose(backward, [0, np.sin(np.deg2rad(30)), np.cos(np.deg2rad(30))], atol=1e-6)
    np.testing.assert_allclose(camera_rotations(1, -30.0)[0], rotation, atol=1e-7)


@pytest.mark.parametrize(("sign", "pitch"), [("up", 30.0), ("released", -30.0)])
def test_elevation_equals_pitch_of_the_light(sign, pitch):
    image = smooth_light(np.random.default_rng(3))
    found = environment_maps(image, 2, (12, 12), elevation=30.0, elevation_sign=sign)
    same_light(found, environment_maps(image, 2, (12, 12), pitch=pitch), 1e-3)


# --- Inputs ---


def test_poses_are_ordered_by_file_path(tmp_path):
    poses = as_poses([rotation_about(UP, 10.0 * i) for i in range(3)])
    frames = [{"file_path": f"images/{i}.png", "transform_matrix": poses[i % 3].tolist()} for i in (10, 0, 2)]
    file = tmp_path / "transforms.json"
    file.write_text(json.dumps({"frames": frames}))
    np.testing.assert_allclose(read_poses(file), poses[[0, 2, 1]], rtol=1e-6)  # 0.png, 2.png, 10.png
    del frames[1]["file_path"]
    file.write_text(json.dumps({"frames": frames}))
    np.testing.assert_allclose(read_poses(file), poses[[1, 0, 2]], rtol=1e-6)


@pytest.mark.parametrize("damage", ["zero", "mirrored", "sheared", "transposed"])
def test_non_rigid_matrix_is_an_input_error(tmp_path, damage):
    good, bad = as_poses([np.eye(3)] * 2)
    good[:3] *= 2  # a scene of another scale
    bad[:3, 3] = 1, 2, 3
    if damage == "transposed":
        bad = bad.T
    else:
        bad[:3, :3] = {"zero": np.zeros((3, 3)), "mirrored": np.diag([1, 1, -1]), "sheared": np.tri(3)}[damage]
    file = tmp_path / "transforms.json"
    file.write_text(json.dumps({"frames": [{"transform_matrix": pose.tolist()} for pose in (good, bad)]}))
    with pytest.raises(InputError, match=r"transforms\.json: transform_matrix 1 is not a camera pose"):
        read_poses(file, relative=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"yaw": float("nan")}, "environment yaw nan"),
        ({"pitch": float("inf")}, "environment pitch inf"),
        ({"roll": float("-inf")}, "environment roll -inf"),
        ({"elevation_sign": "dow"}, "unknown elevation sign 'dow'"),
        ({"exposure": "atuo"}, "exposure 'atuo' is neither"),
    ],
)
def test_invalid_options_are_input_errors(options, message):
    with pytest.raises(InputError, match=message):
        environment_maps(np.ones((4, 8, 3), np.float32), 1, (8, 8), **options)


def test_light_angles_include_both_ends():
    np.testing.assert_allclose(light_angles(3, True), [0, np.pi, 2 * np.pi], rtol=1e-6)
    assert light_angles(1, True).tolist() == [0] and light_angles(2, False).tolist() == [0, 0]


# --- files of poses ---


def test_read_poses_absolute_and_relative(tmp_path):
    rng = np.random.default_rng(0)
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, :3, :3] = [rotation_about(AHEAD, 10) @ rotation_about(UP, 30 * i) for i in range(1, 4)]
    poses[:, :3, 3] = rng.normal(size=(3, 3))
    file = tmp_path / "transforms.json"
    file.write_text(json.dumps({"fl_x": 1, "frames": [{"transform_matrix": pose.tolist()} for pose in poses]}))
    np.testing.assert_allclose(read_poses(file), poses, rtol=1e-6)
    scaled = poses @ np.diag([2.0, 2, 2, 1])
    (tmp_path / "scaled.json").write_text(json.dumps({"frames": [{"transform_matrix": x.tolist()} for x in scaled]}))
    np.testing.assert_allclose(read_poses(tmp_path / "scaled.json"), poses, rtol=1e-6, atol=1e-7)
    relative = read_poses(file, relative=True)
    np.testing.assert_allclose(relative[0], np.eye(4), atol=1e-6)
    np.testing.assert_allclose(poses[0] @ relative[2], poses[2], atol=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "transforms.json: unreadable"),
        ("[1]", "expected names and values, got list"),
        ('{"frame": []}', "lacks the key 'frames'"),
        ('{"frames": [{"pose": 1}]}', "lacks the key 'transform_matrix'"),
        ('{"frames": []}', "4x4"),
        ('{"frames": [{"transform_matrix": [[1, 2], [3, 4]]}]}', "4x4"),
        ('{"frames": [{"transform_matrix": [[1], [3, 4]]}]}', "no list of poses"),
        ('{"frames": [{"transform_matrix": "x"}]}', "no list of poses"),
    ],
)
def test_invalid_transforms_files_are_input_errors(tmp_path, text, message):
    file = tmp_path / "transforms.json"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_poses(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_missing_transforms_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: unreadable \(No such file"):
        read_poses(tmp_path / "none.json")
