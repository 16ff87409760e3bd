"""The estimated light of rendered clips whose light is known."""

import numpy as np
import pytest

from drender.errors import InputError
from drender.lighting import estimation
from drender.lighting.environment import environment_maps
from drender.lighting.estimation import estimate_environment
from drender.lighting.latlong import sphere_weights
from drender.lighting.latlong_grid import pixel_directions, pixel_index, resize_latlong
from drender.lighting.visibility import Frame, find_blockers, nearest_distance
from drender.media.color import LUMINANCE, linear_to_srgb, srgb_to_linear
from drender.media.encodings import decode_normal, encode_normal

SIDE, FOV = 32, 40.0
AHEAD = np.eye(3)  # camera to world


@pytest.fixture(autouse=True)
def quick(monkeypatch, small_cubes):
    """Fewer pixels and directions, smaller cube maps."""
    monkeypatch.setattr(estimation, "MAX_PIXELS", 800)
    monkeypatch.setattr(estimation, "GRIDS", ((8, 16), (16, 32)))
    monkeypatch.setattr(estimation, "ROUNDS", (3, 1))


def spheres(roughness=0.7, metallic=0.0) -> dict[str, np.ndarray]:
    """G-buffers of one frame: a gray sphere that fills most of the picture, before an empty background."""
    tangent = np.tan(np.deg2rad(FOV) / 2)
    y, x = np.meshgrid(
        (1 - (2 * np.arange(SIDE) + 1) / SIDE) * tangent,
        ((2 * np.arange(SIDE) + 1) / SIDE - 1) * tangent,
        indexing="ij",
    )
    rays = np.stack([x, y, -np.ones_like(x)], axis=-1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    center, radius = np.array([0, 0, -3.2]), 1.0
    along = rays @ center
    inside = along**2 - center @ center + radius**2
    hit = inside > 0
    distance = along - np.sqrt(np.maximum(inside, 0))
    points = rays * distance[..., None]
    normal = np.where(hit[..., None], points - center, [0, 0, 1])
    depth = np.where(hit, (-points[..., 2] - 2.2) / 1.0, 1).clip(0, 1)
    gray = lambda value: np.broadcast_to(np.float32(value), (1, SIDE, SIDE, 3))
    return {
        "basecolor": linear_to_srgb(np.where(hit[..., None], 0.6, 0)[None] * gray(1)),
        "normal": encode_normal(normal)[None].astype(np.float32),
        "roughness": gray(roughness),
        "metallic": gray(metallic),
        "depth": depth[None, ..., None].astype(np.float32) * gray(1),
    }


def lamp(direction, color=(1.0, 0.9, 0.8), size=(32, 64)) -> np.ndarray:
    """A map of one wide lamp in a dim surrounding, for the default rotation of 180°."""
    height, width = size
    polar, azimuth = np.pi * (np.arange(height) + 0.5) / height, 2 * np.pi * (np.arange(width) + 0.5) / width
    p, a = np.meshgrid(polar, azimuth, indexing="ij")
    towards = np.stack([np.sin(p) * np.sin(a), np.cos(p), -np.sin(p) * np.cos(a)], axis=-1)
    direction = np.array(direction) / np.linalg.norm(direction)
    return (0.1 + 6 * np.exp(20 * (towards @ direction - 1))[..., None] * np.array(color)).astype(np.float32)


def irradiance(buffers, latlong, rotation=AHEAD) -> np.ndarray:
    """Diffuse picture by the environment maps of the forward renderer, independent of the estimator's directions."""
    maps = environment_maps(latlong, 1, (32, 64))
    radiance = np.expm1(srgb_to_linear(np.asarray(maps["env_log"][0], np.float64)) * np.log1p(10_000))
    towards = decode_normal(np.asarray(maps["env_nrm"][0], np.float64))
    weight = np.repeat(sphere_weights(32, 64), 64, axis=1)[..., None] * 4 * np.pi
    normals = decode_normal(np.asarray(buffers["normal"][0], np.float64)) @ rotation.T
    cosine = np.maximum(normals.reshape(-1, 3) @ towards.reshape(-1, 3).T, 0)
    lit = (cosine @ (radiance * weight).reshape(-1, 3)).reshape(SIDE, SIDE, 3) / np.pi
    return lit * srgb_to_linear(np.asarray(buffers["basecolor"][0]))


def picture(buffers, latlong, exposure=0.5, rotation=AHEAD) -> np.ndarray:
    return linear_to_srgb(irradiance(buffers, latlong, rotation) * exposure)[None].astype(np.float32)


def main_direction(latlong) -> np.ndarray:
    directions, solid_angles = pixel_directions(*latlong.shape[:2])
    moment = (directions * ((latlong.reshape(-1, 3) @ LUMINANCE) * solid_angles)[:, None]).sum(0)
    return moment / np.linalg.norm(moment)


def degrees(a, b) -> float:
    return float(np.rad2deg(np.arccos(np.clip(a @ b, -1, 1))))


@pytest.mark.parametrize("direction", [(1, 0.5, 1), (-1, 0.3, 0.6), (0, 1, 0.5), (-0.2, -1, 1)])
def test_direction_of_a_lamp_is_found_in_the_axes_of_environment_maps(direction):
    buffers, truth = spheres(), lamp(direction)
    light = estimate_environment(picture(buffers, truth), buffers, FOV)
    assert light.shape == (32, 64, 3) and light.dtype == np.float32 and (light >= 0).all()
    assert degrees(main_direction(light), main_direction(truth)) < 10


def test_estimated_light_renders_the_clip_again():
    buffers, truth = spheres(), lamp((1, 0.5, 1))
    light = estimate_environment(picture(buffers, truth), buffers, FOV)
    lit = buffers["depth"][0, ..., 0] < 1
    error = (irradiance(buffers, light) - 0.5 * irradiance(buffers, truth))[lit]
    assert np.abs(error).mean() < 0.06 * (0.5 * irradiance(buffers, truth))[lit].mean()


def test_light_scales_with_the_radiance_of_the_clip():
    buffers, truth = spheres(), lamp((1, 0.5, 1))
    bright = estimate_environment(picture(buffers, truth, 0.5), buffers, FOV)
    dark = estimate_environment(picture(buffers, truth, 0.25), buffers, FOV)
    assert dark.mean() == pytest.approx(bright.mean() / 2, rel=0.05)


def test_poses_put_the_light_into_world_axes():
    buffers, truth = spheres(), lamp((1, 0.5, 1))
    turn = np.eye(4, dtype=np.float32)
    turn[:3, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]  # the camera looks along −x
    rgb = picture(buffers, truth, rotation=turn[:3, :3])
    light = estimate_environment(rgb, buffers, FOV, poses=turn[None])
    assert degrees(main_direction(light), main_direction(truth)) < 10


def test_background_shows_the_light_itself():
    buffers, truth = spheres(), lamp((1, 0.5, 1))
    rgb = picture(buffers, truth)
    empty = buffers["depth"][0, ..., 0] == 1
    rgb[0, empty] = linear_to_srgb(np.array([0.1, 0.2, 0.7], np.float32))
    light = estimate_environment(rgb, buffers, FOV)
    corner = light[16 - 3, 2]  # above the line of sight and right of it, beside the sphere
    np.testing.assert_allclose(corner, [0.1, 0.2, 0.7], atol=0.08)


def test_pixels_beside_the_background_do_not_count():
    buffers, truth = spheres(), lamp((1, 0.5, 1))
    rgb = picture(buffers, truth)
    lit = buffers["depth"][0, ..., 0] < 1
    inner = lit[1:-1, 1:-1] & lit[:-2, 1:-1] & lit[2:, 1:-1] & lit[1:-1, :-2] & lit[1:-1, 2:]
    mixed = rgb.copy()
    mixed[0, lit & ~np.pad(inner, 1)] = 0.9
    expected, found = (estimate_environment(images, buffers, FOV) for images in (rgb, mixed))
    np.testing.assert_allclose(found, expected, rtol=0.05, atol=0.01)


def test_saturated_pixels_are_lower_bounds():
    buffers, truth = spheres(), lamp((0.6, 0.4, 1))
    clipped = estimate_environment(picture(buffers, truth, 4.0), buffers, FOV)
    # The picture ends at 1, the light that explains its edges does not.
    assert irradiance(buffers, clipped).max() > 1.15
    assert degrees(main_direction(clipped), main_direction(truth)) < 15


def test_missing_roughness_metallic_and_depth_have_defaults():
    buffers, truth = spheres(), lamp((1, 0.5, 1))
    rgb = picture(buffers, truth)
    light = estimate_environment(rgb, {name: buffers[name] for name in ("basecolor", "normal")}, FOV, size=(8, 16))
    assert light.shape == (8, 16, 3) and np.isfinite(light).all()


@pytest.mark.parametrize("lacking", ["normal", "basecolor"])
def test_missing_buffer_is_named(lacking):
    buffers = spheres()
    rgb = buffers.pop(lacking)
    with pytest.raises(InputError, match=f"{lacking} is missing"):
        estimate_environment(rgb, buffers)


@pytest.mark.parametrize("size", [(1, 1), (1, 80), (8, 400), (400, 8)])
def test_frames_of_one_row_or_column_have_a_light(size):
    gray = np.full((1, *size, 3), 0.5, np.float32)
    ahead = np.broadcast_to(np.float32([0.5, 0.5, 1]), gray.shape)
    depth = np.random.default_rng(0).random((1, *size, 1)).astype(np.float32) * 0.1 * np.ones(3, np.float32)
    light = estimate_environment(gray, {"basecolor": gray, "normal": ahead, "depth": depth})
    assert np.isfinite(light).all() and light.max() > 0


def test_bad_input_is_one_line():
    buffers = spheres()
    rgb = np.full_like(buffers["normal"], 0.5)
    empty = buffers | {"depth": np.ones_like(rgb), "normal": np.broadcast_to(np.float32([0.5, 0.5, 1]), rgb.shape)}
    for images, kinds, options, message in (
        (rgb, empty, {}, "no pixel shows a surface"),
        (np.ones_like(rgb), buffers, {}, "saturated"),
        (np.zeros_like(rgb), buffers, {}, "black"),
        (rgb[:, :8], buffers, {}, "shape"),
        (rgb * 255, buffers, {}, "rgb: expected finite values"),
        (rgb * np.nan, buffers, {}, "got nan to nan"),
        (rgb, buffers | {"depth": buffers["depth"] + 2}, {}, "depth: expected finite values"),
        (rgb, buffers, {"fov": 180.0}, "field of view 180 must"),
        (rgb, buffers, {"size": (0, 64)}, "0x64"),
        (rgb, buffers, {"poses": np.zeros((2, 4, 4), np.float32)}, "poses"),
    ):
        with pytest.raises(InputError, match=message) as error:
            estimate_environment(images, kinds, **options)
        assert "\n" not in str(error.value)


def test_the_darkest_picture_has_a_dark_light():
    """One level of 255 is 0.0003 linear; a picture much darker is refused, for its light was infinite."""
    buffers = spheres()
    light = estimate_environment(np.full_like(buffers["basecolor"], 1 / 255), buffers, FOV)
    assert 0 < light.max() < 0.1


# --- maps ---


def test_every_direction_lies_in_its_own_pixel():
    directions, solid_angles = pixel_directions(8, 16)
    np.testing.assert_array_equal(pixel_index(directions, (8, 16)), np.arange(128))
    assert solid_angles.sum() == pytest.approx(4 * np.pi)


def test_resized_map_keeps_its_mean_and_wraps_around():
    image = np.random.default_rng(0).random((4, 8, 3)).astype(np.float32)
    larger = resize_latlong(image, (8, 16))
    np.testing.assert_allclose(larger.mean(axis=(1,)).mean(), image.mean(), rtol=1e-5)
    np.testing.assert_allclose(larger[0, 0], 0.25 * image[0, -1] + 0.75 * image[0, 0], rtol=1e-5)
    np.testing.assert_allclose(resize_latlong(larger, (4, 8)).shape, image.shape)


# --- visibility ---


def room() -> dict[str, np.ndarray]:
    """A floor at y = −1 and a wall at z = −4, seen from the origin; depth covers distances from 1.5 to 4."""
    rays = estimation.camera_rays(SIDE, SIDE, 60.0)
    floor = np.where(rays[..., 1] < 0, -1 / np.minimum(rays[..., 1], -1e-6), np.inf)
    distance = np.minimum(floor, 4)
    normals = np.where((floor < 4)[..., None], [0, 1, 0], [0, 0, 1])
    depth = ((distance - 1.5) / 2.5).astype(np.float32)
    return {"depth": depth, "normals": normals.astype(np.float32), "rays": rays, "empty": np.zeros(depth.shape, bool)}


def test_normals_reveal_the_distance_of_the_nearest_depth():
    assert distance_of(room()) == pytest.approx(1.5 / 2.5, rel=0.03)


def frame_of(scene, seen) -> Frame:
    """The frame of a scene, without what blocks no light."""
    return Frame(
        **scene,
        seen=seen,
        nearest=0.6,
        views=-scene["rays"],
        basecolor=seen,
        roughness=seen[..., :1],
        metallic=seen[..., :1],
        rotation=AHEAD,
    )


def distance_of(scene) -> float | None:
    stacked = {name: scene[name][None] for name in ("depth", "normals", "empty")}
    return nearest_distance(**stacked, rays=scene["rays"])


@pytest.mark.parametrize(("kind", "constant"), [("depth", 0.5), ("normals", [0, 0, 1])])
def test_flat_buffers_do_not_reveal_the_distance(kind, constant):
    scene = room()
    scene[kind] = np.broadcast_to(np.float32(constant), scene[kind].shape)
    assert distance_of(scene) is None


def test_wall_blocks_light_from_behind_it_and_shines_back():
    scene = room()
    seen = np.where((scene["normals"][..., 1:2] > 0), [0.1, 0.1, 0.1], [0.8, 0.2, 0.2]).astype(np.float32)
    rows, columns = np.array([SIDE - 8]), np.array([SIDE // 2])  # on the floor, in front of the wall
    directions = np.array([[0, 0.3, -1], [0, 1, 0.2], [0, 0.2, 1]], np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    free, blocker = find_blockers(frame_of(scene, seen), rows, columns, directions)
    np.testing.assert_array_equal(free, [[0, 1, 1]])
    np.testing.assert_allclose(blocker[0], [[0.8, 0.2, 0.2], [0, 0, 0], [0, 0, 0]])


def test_wall_continues_beyond_the_edge_of_the_picture():
    scene = room()
    seen = np.full((SIDE, SIDE, 3), 0.5, np.float32)
    rows, columns = np.array([SIDE - 7]), np.array([1])  # on the floor, at the left edge
    directions = np.array([[-1, 0.2, -0.8], [-1, 0.2, 0.8]], np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    free, blocker = find_blockers(frame_of(scene, seen), rows, columns, directions)
    np.testing.assert_array_equal(free, [[0, 1]])
    np.testing.assert_allclose(blocker[0], [[0.5, 0.5, 0.5], [0, 0, 0]])
