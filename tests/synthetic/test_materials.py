"""Patterns and materials."""

import numpy as np
import pytest

from drender.media.color import LUMINANCE
from drender.synthetic import materials


@pytest.mark.parametrize("kind", materials.PATTERNS)
def test_patterns_span_unit_range_and_tile(kind):
    for seed in range(4):
        image = materials.pattern(kind, 128, 4, np.random.default_rng(seed))
        assert 0 <= image.min() < 0.3 and 0.6 < image.max() <= 1
        steps = np.abs(np.diff(image, axis=0)).mean(axis=1)
        assert np.abs(image[0] - image[-1]).mean() < 1.2 * steps.max() + 0.01


def test_checker_has_squares():
    image = materials.pattern("checker", 64, 2, np.random.default_rng(0))
    assert image[8, 8] == image[24, 24] == 1 and image[8, 24] == image[24, 8] == 0


def test_mix_interpolates_its_two_materials():
    red, blue = materials.Material((1.0, 0.0, 0.0), 0.2, 0.0), materials.Material((0.0, 0.0, 1.0), 0.8, 1.0)
    maps = materials.MaterialMix(red, blue, "checker", 2, 0, 0.0).maps(64)
    np.testing.assert_allclose(maps[8, 24], [1, 0, 0, 0.2, 0], atol=1e-6)
    np.testing.assert_allclose(maps[8, 8], [0, 0, 1, 0.8, 1], atol=1e-6)


def test_random_materials_cover_their_ranges():
    drawn = [materials.random_material(np.random.default_rng(seed)) for seed in range(400)]
    assert 0.22 < np.mean([x.first.metallic for x in drawn]) < 0.38
    luminance = np.array([x.first.basecolor for x in drawn]) @ LUMINANCE
    assert np.percentile(luminance, 10) < 0.05 and np.percentile(luminance, 90) > 0.5
    assert min(x.first.roughness for x in drawn) >= 0.05 and max(x.first.roughness for x in drawn) > 0.95
    assert {x.pattern for x in drawn} == {"uniform", *materials.PATTERNS}
