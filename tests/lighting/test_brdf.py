"""The BRDF of the light's estimation against Mitsuba's principled material, and against hand-computed values."""

import numpy as np
import pytest

from drender.lighting.brdf import light_kernels

UP = np.array([[0, 0, 1]], np.float32)


def unit(*direction):
    return np.array([direction], np.float32) / np.linalg.norm(direction)


def kernel(view, light, basecolor=(0.5, 0.5, 0.5), roughness=0.5, metallic=0.0):
    number = lambda value: np.array([[value]], np.float32)
    basecolor = np.array([basecolor], np.float32)
    return light_kernels(UP, view, basecolor, number(roughness), number(metallic), light)[:, 0, 0]


def test_metal_seen_from_above_has_the_value_computed_by_hand():
    # Light and view along the normal: D = 1/(π α²), masking 1, Fresnel F0; over 4 cosines, times the cosine.
    alpha = 0.6**2
    expected = np.array([0.9, 0.6, 0.3]) / (np.pi * alpha**2) / 4
    np.testing.assert_allclose(kernel(UP, UP, (0.9, 0.6, 0.3), 0.6, 1.0), expected, rtol=1e-5)


def test_no_light_comes_from_below_the_surface():
    assert (kernel(unit(1, 0, 2), unit(0, 1, -0.01)) == 0).all()


# Values of Mitsuba 3.9's `principled` (scalar_rgb; base color 0.8, 0.4, 0.2; roughness 0.5), whose Fresnel is exact.
VIEWS = [(1, 0, 1), (0, 0, 1), (1, 0, 2), (2, 1, 1)]
LIGHTS = [(1, 0, 3), (1, 1, 1), (0, 1, 1), (0, 0, 1)]
MITSUBA = {
    0.0: [[0.2445, 0.1236, 0.0631], [0.1505, 0.0767, 0.0398], [0.1834, 0.0933, 0.0482], [0.2626, 0.1334, 0.0688]],
    0.5: [[0.149, 0.0752, 0.0383], [0.1037, 0.0526, 0.027], [0.1231, 0.0624, 0.032], [0.1706, 0.0863, 0.0442]],
    1.0: [[0.0535, 0.0267, 0.0134], [0.0569, 0.0284, 0.0142], [0.0629, 0.0314, 0.0157], [0.0786, 0.0393, 0.0197]],
}


@pytest.mark.parametrize("metallic", MITSUBA)
def test_kernels_agree_with_mitsuba(metallic):
    found = [
        kernel(unit(*view), unit(*light), (0.8, 0.4, 0.2), 0.5, metallic)
        for view, light in zip(VIEWS, LIGHTS, strict=True)
    ]
    np.testing.assert_allclose(found, MITSUBA[metallic], rtol=0.03, atol=1e-3)
