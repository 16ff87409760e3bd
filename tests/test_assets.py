"""The built-in renderers on the built-in clip: they beat baselines that need no learning."""

import numpy as np
import pytest
import shading

from drender import ForwardRenderer, InverseRenderer, assets, environment_maps
from drender.config import DEFAULT_PASSES, ENVIRONMENT_LABELS
from drender.data.clips import open_clips
from drender.metrics import image as metrics

FRAMES = 4


@pytest.fixture(scope="module")
def truth() -> dict[str, np.ndarray]:
    """Return the first frames of the built-in clip, `1 f h w 3`, with the light that it was rendered under."""
    (clip,) = open_clips(assets.GBUFFERS, ("rgb", *DEFAULT_PASSES, *ENVIRONMENT_LABELS))
    images = clip.images(("rgb", *DEFAULT_PASSES, *ENVIRONMENT_LABELS), slice(0, FRAMES), (64, 64), (64, 64))
    return {label: np.array(frames[None]) for label, frames in images.items()}


@pytest.fixture(scope="module")
def inverse() -> InverseRenderer:
    return InverseRenderer.load()


@pytest.fixture(scope="module")
def forward() -> ForwardRenderer:
    return ForwardRenderer.load()


@pytest.fixture(scope="module")
def buffers(inverse, truth) -> dict[str, np.ndarray]:
    return inverse(truth["rgb"], progress=False)


def error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.square(a - b).mean())


def test_estimates_beat_untrained_baselines(buffers, truth):
    angles = lambda normals: float(metrics.angular_error(normals, truth["normal"]).mean())
    constant = np.broadcast_to(truth["normal"].mean((1, 2, 3), keepdims=True), truth["normal"].shape)
    assert angles(buffers["normal"]) < 0.75 * angles(constant)
    assert metrics.correlation(buffers["depth"][0], truth["depth"][0]) > 0.8
    assert error(buffers["basecolor"], truth["basecolor"]) < error(truth["rgb"], truth["basecolor"])


@pytest.mark.slow
def test_forward_reproduces_the_rgb_of_true_buffers(forward, truth):
    rendered = forward(truth, {label: truth[label] for label in ENVIRONMENT_LABELS}, progress=False)
    constant = np.broadcast_to(truth["rgb"].mean((1, 2, 3), keepdims=True), truth["rgb"].shape)
    assert error(rendered, truth["rgb"]) < 0.5 * error(constant, truth["rgb"])
    assert error(rendered, truth["rgb"]) < error(truth["basecolor"], truth["rgb"])


@pytest.mark.slow
def test_inverse_of_a_rendering_gives_its_buffers(inverse, forward, buffers, truth):
    rendered = forward(buffers, {label: truth[label] for label in ENVIRONMENT_LABELS}, progress=False)
    again = inverse(rendered, progress=False)
    assert metrics.correlation(again["depth"][0], buffers["depth"][0]) > 0.8
    assert error(again["basecolor"], buffers["basecolor"]) < error(again["basecolor"], truth["rgb"])


LIGHTS = [("sunset", 180.0), ("forest", 180.0), ("sunset", 90.0)]


@pytest.fixture(scope="module")
def renderings(forward, truth):
    """Return the true G-buffers under each of LIGHTS, rendered by the model and shaded analytically."""
    flat, rendered, shaded = {label: frames[0] for label, frames in truth.items()}, [], []
    for name, rotation in LIGHTS:
        maps = environment_maps(assets.environment(name), 1, forward.environment_size, rotation=rotation)
        light = {label: np.asarray(images) for label, images in maps.items()}
        rendered.append(forward(truth, light, progress=False)[0])
        shaded.append(shading.shade(flat, light, fov=0.7))
    return rendered, shaded


@pytest.mark.slow
@pytest.mark.parametrize(("light", "other"), [(0, 1), (1, 0), (0, 2), (2, 0)])
def test_renderings_show_their_own_light(renderings, light, other):
    rendered, shaded = renderings
    assert error(rendered[light], shaded[light]) < error(rendered[light], shaded[other])


@pytest.mark.slow
def test_a_sphere_is_brighter_on_the_side_of_the_light(forward):
    y, x = np.meshgrid(np.linspace(1.5, -1.5, 64), np.linspace(-1.5, 1.5, 64), indexing="ij")
    ball = x**2 + y**2 < 1
    height = np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))
    normal = np.where(ball[..., None], np.stack([x, y, height], -1), (0, 0, 1)) / 2 + 0.5
    gray = lambda inside, outside: np.repeat(np.where(ball, inside, outside)[..., None], 3, axis=-1)
    images = {"basecolor": gray(0.7, 0), "normal": normal, "depth": gray(0.6 - height / 2, 1)}
    images |= {"roughness": gray(0.4, 0.5), "metallic": gray(0, 0)}
    # As many frames as other tests have, so that nothing is compiled again.
    buffers = {label: np.tile(image, (1, FRAMES, 1, 1, 1)).astype(np.float32) for label, image in images.items()}
    centers = []
    for column in (16, 48):  # a quarter of the map right of straight ahead, and left
        sky = np.full((32, 64, 3), 0.1, np.float32)
        sky[10:16, column - 3 : column + 3] = 20
        maps = environment_maps(sky, 1, forward.environment_size, strength=0.5)
        light = {label: np.asarray(images) for label, images in maps.items()}
        rendered = forward(buffers, light, progress=False)[0, 0].mean(-1) * ball
        centers.append((rendered * x).sum() / rendered.sum())
    assert centers[0] > 0.02 and centers[1] < -0.02


@pytest.mark.slow
@pytest.mark.parametrize(("frames", "height", "width"), [(1, 64, 64), (3, 64, 128), (12, 64, 64), (2, 128, 128)])
def test_untrained_lengths_and_sizes_degrade_gracefully(inverse, truth, frames, height, width):
    tiled = np.tile(truth["rgb"], (1, 3, 1, 1, 1))[:, :frames]
    enlarged = tiled.repeat(height // 64, axis=2).repeat(width // 64, axis=3)
    estimated = inverse(enlarged, ("depth",), progress=False)["depth"]
    assert estimated.shape == enlarged.shape and np.isfinite(estimated).all()
    target = np.tile(truth["depth"], (1, 3, 1, 1, 1))[:, :frames].repeat(height // 64, 2).repeat(width // 64, 3)
    assert metrics.correlation(estimated[0], target[0]) > 0.5
