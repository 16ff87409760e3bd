"""Environment maps against a per-pixel numpy oracle of their definition, and against a golden result."""

import os
from itertools import permutations
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from drender.errors import InputError
from drender.lighting import projection
from drender.lighting.camera import camera_rotations, light_angles
from drender.lighting.environment import Environment, environment_maps, load_environment
from drender.lighting.projection import prefiltered, project
from drender.media import color
from drender.media.color import srgb_to_linear
from drender.media.images import write_png

GOLDEN = Path(__file__).parents[1] / "golden" / "env_sunny.npz"
HDR = os.environ.get("SUNNY_VONDELPARK_HDR")
BACKWARD = np.array([0.0, 0.0, 1.0])


# --- The oracle: loops and Python floats, written from the definition with its signs and flips ---


def rotation_about(axis, angle):
    (c, s), (i, j) = (np.cos(angle), np.sin(angle)), {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = c
    matrix[j, i], matrix[i, j] = s, -s
    return matrix


def latlong_value(image, direction):
    height, width, _ = image.shape
    x, y, z = direction / np.linalg.norm(direction)
    column = (np.arctan2(x, -z) / (2 * np.pi) + 0.5) * width - 0.5
    row = np.arccos(np.clip(y, -1, 1)) / np.pi * height - 0.5
    value = 0
    for i in (int(np.floor(row)), int(np.floor(row)) + 1):
        for j in (int(np.floor(column)), int(np.floor(column)) + 1):
            value = value + (1 - abs(row - i)) * (1 - abs(column - j)) * image[i % height, j % width]
    return value


def texel_direction(face, i, j, n):
    s, t = (2 * j + 1) / n - 1, (2 * i + 1) / n - 1
    return np.array([(1, -t, -s), (-1, -t, s), (s, 1, t), (s, -1, -t), (s, -t, 1), (-s, -t, -1)][face])


def face_and_place(direction):
    x, y, z = direction
    axis = int(np.argmax(np.abs(direction)))
    m = abs(direction[axis])
    face = 2 * axis + (direction[axis] < 0)
    s, t = [(-z, -y), (z, -y), (x, z), (x, -z), (x, -y), (-x, -y)][face]
    return face, s / m, t / m


def texel_value(cube, face, i, j):
    """A texel; beyond an edge, the one mirrored in the edge's diagonal plane; beyond a corner, the mean of three."""
    n = cube.shape[1]
    inside = texel_direction(face, min(max(i, 0), n - 1), min(max(j, 0), n - 1), n)
    outside = texel_direction(face, i, j, n)
    major, crossed = face // 2, [axis for axis in range(3) if abs(outside[axis]) > 1]
    if not crossed:
        return cube[face, i, j]
    values = []
    for order in permutations(range(3)):
        cycle = len(crossed) == 2 and all(order[axis] != axis for axis in range(3))  # the three texels of a corner
        swap = len(crossed) == 1 and order[major] == crossed[0] and order[crossed[0]] == major
        if cycle or swap or (len(crossed) == 2 and order == (0, 1, 2)):
            neighbour = np.sign(inside) * np.abs(inside)[list(order)]
            other, s, t = face_and_place(neighbour)
            values.append(cube[other, int((t + 1) * n / 2), int((s + 1) * n / 2)])
    return sum(values) / len(values)


def cube_value(cube, direction):
    n = cube.shape[1]
    face, s, t = face_and_place(direction)
    row, column = (t + 1) * n / 2 - 0.5, (s + 1) * n / 2 - 0.5
    value = 0
    for i in (int(np.floor(row)), int(np.floor(row)) + 1):
        for j in (int(np.floor(column)), int(np.floor(column)) + 1):
            value = value + (1 - abs(row - i)) * (1 - abs(column - j)) * texel_value(cube, face, i, j)
    return value


def grid(height, width):
    directions = np.zeros((height, width, 3))
    for i, gy in enumerate(np.linspace(1 / height, 1 - 1 / height, height)):
        for j, gx in enumerate(np.linspace(-1 + 1 / width, 1 - 1 / width, width)):
            p, a = np.pi * gy, np.pi * gx
            directions[i, j] = np.sin(p) * np.sin(a), np.cos(p), -np.sin(p) * np.cos(a)
    return directions


def srgb(x):
    return 12.92 * x if x <= 0.0031308 else 1.055 * x ** (1 / 2.4) - 0.055


def maps_of_light(light):
    ldr = np.vectorize(lambda x: srgb(min(x * (1 + x / 256) / (1 + x), 1)))(light)
    log = np.vectorize(lambda x: min(srgb(np.log(1 + x) / np.log(10001)), 1))(light)
    return ldr, log


def frame_oracle(value, size, rotation, angle):
    light = np.zeros((*size, 3))
    for index in np.ndindex(*size):
        q = (grid(*size)[index] @ rotation.T) @ rotation_about("y", angle).T
        light[index] = value(-q)
    return maps_of_light(light[::-1, ::-1])


def ball_oracle(value, n, rotation, angle):
    light = np.zeros((n, n, 3))
    for i, y in enumerate(np.linspace(1, -1, n)):
        for j, x in enumerate(np.linspace(-1, 1, n)):
            normal = np.array([x, y, np.sqrt(1 - x * x - y * y)]) if x * x + y * y <= 1 else np.zeros(3)
            reflected = 2 * (normal @ BACKWARD) * normal - BACKWARD
            light[i, j] = value(-((-reflected @ rotation.T) @ rotation_about("y", angle).T))
    return maps_of_light(light)


def random_rotation(rng):
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def random_light(rng, *shape):
    return np.exp(rng.normal(0, 2, shape)).astype(np.float32)


# --- Against the oracle ---


def test_cube_map_matches_resampled_latlong():
    rng = np.random.default_rng(0)
    image = random_light(rng, 12, 24, 3)
    cube = np.asarray(load_environment(image, rotation=0.0))
    corners_and_middle = [[0, 0], [0, 511], [511, 0], [511, 511], [255, 255], [256, 256]]
    places = rng.integers(0, 512, (200, 2)).tolist() + corners_and_middle
    for face in range(6):
        for i, j in places:
            expected = latlong_value(image, texel_direction(face, i, j, 512))
            np.testing.assert_allclose(cube[face, i, j], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_projection_matches_oracle_at_seams_and_corners(n):
    rng = np.random.default_rng(n)
    cube = random_light(rng, 6, n, n, 3)
    rotations = np.stack([np.eye(3), random_rotation(rng)]).astype(np.float32)
    angles = np.array([0.3, 2.0], np.float32)
    maps = project(jnp.asarray(cube), (6, 8), rotations, angles)
    ball = project(jnp.asarray(cube), (7, 7), rotations, angles, "ball")
    for k in range(2):
        look = (lambda direction: cube_value(cube, direction),)
        camera_and_light = rotations[k].astype(float), float(angles[k])
        oracles = frame_oracle(*look, (6, 8), *camera_and_light), ball_oracle(*look, 7, *camera_and_light)
        for found, (ldr, log) in zip((maps, ball), oracles, strict=True):
            np.testing.assert_allclose(found["env_ldr"][k], ldr, atol=2e-5)
            np.testing.assert_allclose(found["env_log"][k], log, atol=2e-5)


def test_environment_maps_match_oracle_with_all_options():
    rng = np.random.default_rng(3)
    image = rng.uniform(0, 2, (16, 32, 3)).astype(np.float32)
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, :3, :3] = [random_rotation(rng) for _ in range(3)]
    maps = environment_maps(
        image, 3, (5, 6), rotation=-100.0, flip=True, strength=2.5, rotate_light=True, poses=poses.astype(np.float32)
    )
    turned = np.roll(2.5 * image[:, ::-1], int(32 * -100 / 360), axis=1)
    for k, angle in enumerate((0, np.pi, 2 * np.pi)):
        ldr, log = frame_oracle(lambda d: latlong_value(turned, d), (5, 6), poses[k, :3, :3], angle)
        np.testing.assert_allclose(maps["env_ldr"][k], ldr, atol=2e-3)  # the oracle has no cube of 512² in between
        np.testing.assert_allclose(maps["env_log"][k], log, atol=2e-3)
        np.testing.assert_allclose(maps["env_nrm"][k], (0.5 - 0.5 * grid(5, 6))[::-1, ::-1], atol=1e-6)
    assert all(m.shape == (3, 5, 6, 3) and m.dtype == jnp.float32 for m in maps.values())


@pytest.mark.skipif(not HDR, reason="set SUNNY_VONDELPARK_HDR to the path of Poly Haven's sunny_vondelpark_1k.hdr")
def test_golden_maps_of_the_reference():
    golden = np.load(GOLDEN)
    with pytest.warns(UserWarning, match="exceeds radiance 10000, .* with 56% of its energy"):
        maps = environment_maps(HDR, num_frames=3, size=(128, 128), rotate_light=True)
    for name, found in maps.items():
        difference = np.abs(np.asarray(found) - golden[name].astype(np.float32))
        assert difference.mean() < 1e-4 and difference.max() < 5e-4, name  # stored in half floats: 2.4e-4 near 1


# --- Properties ---


def test_constant_environment_gives_constant_maps():
    maps = environment_maps(np.full((8, 16, 3), 0.75, np.float32), 2, (32, 64), rotate_light=True, elevation=20.0)
    ldr, log = maps_of_light(np.full((1,), 0.75))
    np.testing.assert_allclose(maps["env_ldr"], np.full((2, 32, 64, 3), ldr), atol=1e-6)
    np.testing.assert_allclose(maps["env_log"], np.full((2, 32, 64, 3), log), atol=1e-6)


def test_no_seams_between_cube_faces():
    rng = np.random.default_rng(0)
    cube = rng.uniform(0.2, 1, (6, 8, 8, 3)).astype(np.float32)
    rotations = np.stack([random_rotation(rng) for _ in range(8)]).astype(np.float32)
    # Rows of so many columns that one step is 1/200 of a texel; each row crosses four faces or more.
    rows = project(jnp.asarray(cube), (3, 8192), rotations, np.zeros(8, np.float32))["env_ldr"]
    steps = jnp.abs(rows - jnp.roll(rows, 1, axis=2))
    assert steps.max() < 0.01  # neighbouring texels differ by up to 0.3


def test_lamp_behind_camera_is_centered():
    image = np.zeros((64, 128, 3), np.float32)
    image[28:36, 60:68] = 1  # in the middle of the lat-long image, which the default rotation turns behind the camera
    maps = environment_maps(image, 1, (65, 65))
    lamp = np.argwhere(np.asarray(maps["env_ldr"][0, :, :, 0]) > 0.5).mean(axis=0)
    np.testing.assert_allclose(lamp, (32, 32), atol=0.6)
    np.testing.assert_allclose(maps["env_nrm"][0, 32, 32], (0.5, 0.5, 1), atol=1e-6)  # +z
    assert maps["env_nrm"][0, 0, 32, 1] > 0.99  # +y at the top
    assert maps["env_nrm"][0, 32, 48, 0] > 0.99  # +x to the right


def test_ball_shows_light_behind_camera_in_its_center():
    cube = jnp.stack([jnp.full((4, 4, 3), x) for x in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)])
    maps = project(cube, (65, 65), camera_rotations(1), light_angles(1, False), "ball")
    middle, right, top, left = ((32, 32), (32, 56), (8, 32), (32, 8))
    expected = projection.ldr_curve(jnp.array([0.5, 0.1, 0.3, 0.2]))
    found = jnp.array([maps["env_ldr"][0, i, j, 0] for i, j in (middle, right, top, left)])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_elevation_matches_released_look_at_matrix():
    expected = rotation_about("x", np.deg2rad(30))
    np.testing.assert_allclose(camera_rotations(2, 30.0), [expected] * 2, atol=1e-6)
    np.testing.assert_array_equal(camera_rotations(1), [np.eye(3)])
    # The look-at matrix of a camera raised by 30°, of which this is the inverse.
    backward = np.array([0, np.sin(np.deg2rad(30)), np.cos(np.deg2rad(30))])
    right = np.cross([0, 1, 0], backward) / np.linalg.norm(np.cross([0, 1, 0], backward))
    camera_to_world = np.stack([right, np.cross(backward, right), backward], axis=1)
    np.testing.assert_allclose(camera_rotations(1, 30.0)[0], np.linalg.inv(camera_to_world), atol=1e-6)


def test_tone_curves_at_known_values():
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
    x = jnp.array([0, 0.002, 0.0031308, 0.5, 1])
    close(color.linear_to_srgb_jnp(x), [0, 0.02584, 0.04044994, 0.7353569, 1])
    close(projection.ldr_curve(jnp.array([0.0, 1, 16, 65504])), [0, srgb(257 / 512), 1, 1])
    close(projection.log_curve(jnp.array([0.0, 100, 1e4, 65504])), [0, srgb(np.log(101) / np.log(10001)), 1, 1])


# --- Inputs ---


def test_radiance_is_clamped_and_nan_warns():
    image = np.ones((4, 8, 3), np.float32)
    image[0, 0], image[1, 1], image[2, 2], image[3, 3] = np.inf, -1e-3, 1e30, 0
    cube = load_environment(image, strength=1e20)  # without a warning: conversions of colors leave a little below 0
    image[1, 1] = -np.inf
    assert cube.min() >= 0 and cube.max() == pytest.approx(65504)
    image[3, 3] = np.nan
    with pytest.warns(UserWarning, match="NaN"):
        assert np.isfinite(load_environment(image)).all()


def test_warnings_for_black_shape_and_ldr(tmp_path):
    with pytest.warns(UserWarning, match="black"):
        load_environment(np.zeros((2, 4, 3), np.float32))
    with pytest.warns(UserWarning, match="negative light, taken as black"):
        load_environment(np.where(np.arange(8)[:, None] < 2, np.float32(-0.2), np.ones((4, 8, 3), np.float32)))
    with pytest.warns(UserWarning, match="5x4, not 2:1"):
        load_environment(np.ones((4, 5, 3), np.float32))
    write_png(tmp_path / "sky.png", np.ones((2, 4, 3), np.float32))
    with pytest.warns(UserWarning, match="not an HDR image"):
        load_environment(tmp_path / "sky.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projection": "bal"}, "did you mean 'ball'"),
        ({"projection": "ball", "size": (8, 16)}, "8x16 is not square"),
        ({"size": (0, 16)}, "0x16 is not positive"),
        ({"strength": -1.0}, "strength -1.0"),
        ({"strength": float("nan")}, "strength nan"),
        ({"rotation": float("inf")}, "rotation inf"),
        ({"elevation": float("nan")}, "elevation nan"),
        ({"num_frames": 0}, "frames 0"),
        ({"poses": np.zeros((3, 4, 4), np.float32)}, r"expected 2 finite .* got shape \(3, 4, 4\)"),
        ({"poses": np.full((2, 4, 4), np.nan, np.float32)}, "finite"),
        ({"poses": np.stack([np.eye(4), np.zeros((4, 4))])}, "pose 1 is not a camera pose"),
        ({"poses": np.tile(np.diag([-1, 1, 1, 1]), (2, 1, 1))}, "pose 0 is not a camera pose"),
        ({"poses": np.tile(np.eye(4), (2, 1, 1)), "elevation": 5.0}, "exclude each other"),
        ({"source": np.ones((4, 8), np.float32)}, r"\(4, 8\); it must be"),
        ({"source": "missing.hdr"}, "missing.hdr does not exist"),
    ],
)
def test_invalid_options_are_input_errors(options, message):
    arguments = {"source": np.ones((4, 8, 3), np.float32), "num_frames": 2, "size": (8, 8)} | options
    with pytest.raises(InputError, match=message):
        environment_maps(**arguments)


# --- prefilter ---


def test_prefilter_keeps_the_energy_of_a_turning_sun(small_cubes):
    sky = np.full((256, 512, 3), 0.1, np.float32)
    sky[100, 150] = 8000.0  # one of the 64 pixels that an image's pixel covers
    sun = {}
    for prefilter in (False, True):
        environment = Environment(sky, prefilter=prefilter)
        angles = np.linspace(0, 0.1, 12, dtype=np.float32)
        maps = environment.maps(np.arange(12), (32, 64), camera_rotations(12), angles)
        light = np.expm1(srgb_to_linear(np.asarray(maps["env_log"], np.float64)) * np.log1p(10000.0))
        sun[prefilter] = (light[..., 0] - 0.1).sum(axis=(1, 2))
    assert sun[False].max() > 10 * sun[False].mean()  # mostly between pixels
    assert np.ptp(sun[True]) < 0.1 * sun[True].mean()


def test_prefilter_leaves_coarse_maps_alone():
    sky = np.random.default_rng(0).random((16, 32, 3)).astype(np.float32)
    assert prefiltered(sky, (32, 64)) is sky
