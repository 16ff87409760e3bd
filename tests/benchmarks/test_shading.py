"""The baseline of forward rendering: what is known of any shading holds for it."""

import jax.numpy as jnp
import numpy as np
import pytest
import shading

from drender.lighting.environment import environment_maps
from drender.media.color import linear_to_srgb_jnp
from drender.media.encodings import encode_normal

SIZE = (16, 16)


def buffers(basecolor=0.5, metallic=0.0, roughness=0.5, normal=(0, 0, 1), depth=0.5) -> dict[str, np.ndarray]:
    image = lambda value: np.broadcast_to(np.float32(value), (1, *SIZE, 3))
    values = {"basecolor": basecolor, "metallic": metallic, "roughness": roughness, "depth": depth}
    return {name: image(value) for name, value in values.items()} | {
        "normal": image(encode_normal(np.array(normal, np.float32)))
    }


def maps(image: np.ndarray) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in environment_maps(image, 1, (32, 64)).items()}


def sun(azimuth: float) -> np.ndarray:
    """A dim sky with one bright patch at the horizon, `azimuth` degrees to the right of straight ahead."""
    image = np.full((32, 64, 3), 0.05, np.float32)
    column = int(azimuth / 360 * 64)  # the default rotation of 180 brings the map's border to the front
    image[14:18, [column % 64, (column - 1) % 64]] = 20
    return image


@pytest.mark.parametrize(("metallic", "roughness"), [(1.0, 0.3), (1.0, 0.45), (0.0, 1.0)])
def test_a_white_thing_in_a_white_furnace_vanishes(metallic, roughness):
    light = maps(np.full((32, 64, 3), 0.5, np.float32))
    shaded = shading.shade(buffers(1.0, metallic, roughness), light, fov=0.1)
    background = shading.shade(buffers(depth=1.0), light, fov=0.1)
    np.testing.assert_allclose(background, np.asarray(linear_to_srgb_jnp(jnp.float32(0.5))), atol=0.01)
    np.testing.assert_allclose(shaded, background, atol=0.1)  # the analytic BRDF loses up to a quarter of the light


@pytest.mark.parametrize("metallic", [0.0, 1.0])
def test_what_faces_the_sun_is_brighter(metallic):
    for azimuth, side in ((90, 1), (270, -1)):
        light = maps(sun(azimuth))
        slanted = lambda x, light=light: shading.shade(
            buffers(0.8, metallic, 0.6, (x, 0, np.sqrt(1 - x**2))), light, fov=0.1
        ).mean()
        assert slanted(0.8 * side) > slanted(0.0) > slanted(-0.8 * side)


def test_a_rough_highlight_is_wider_and_dimmer():
    turned = lambda roughness, x: shading.shade(
        buffers(1.0, 1.0, roughness, (x, 0, np.sqrt(1 - x**2))), maps(sun(180)), fov=0.1
    ).mean()
    assert turned(0.15, 0.0) > turned(0.6, 0.0)
    assert turned(0.15, 0.5) < turned(0.6, 0.5)
