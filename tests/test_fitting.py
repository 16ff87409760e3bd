"""Sizes: what the released scripts do to a frame, and the other ways."""

from fractions import Fraction

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from drender.fitting import cover_size, fit_cover

RNG = np.random.default_rng(0)

sides = st.integers(1, 5000)


@given(sides, sides, sides, sides)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_cover_size(h, w, height, width):
    found = cover_size((h, w), (height, width))
    scale = max(Fraction(height, h), Fraction(width, w))
    for side, source, target in zip(found, (h, w), (height, width), strict=True):
        assert side % 64 == 0 and side >= target
        assert side - 64 < source * scale <= side  # no more than needed to cover


def test_known_cover_sizes():
    assert cover_size((512, 512), (512, 512)) == (512, 512)
    assert cover_size((1080, 1920), (512, 512)) == (512, 960)
    assert cover_size((1080, 1920), (512, 960)) == (576, 960)
    assert cover_size((1, 1), (64, 100)) == (128, 128)


def test_fit_cover():
    frame = RNG.random((48, 64, 3)).astype(np.float32)
    found = fit_cover(frame, (64, 64))
    expected = jax.image.resize(frame, (64, 128, 3), "linear", antialias=True)
    assert found.shape == (64, 128, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_fit_cover_keeps_what_fits_and_takes_one_pixel():
    frame = RNG.random((64, 128, 3)).astype(np.float32)
    np.testing.assert_array_equal(fit_cover(frame, (64, 128)), frame)
    assert fit_cover(frame[:63, :65]).shape == (64, 128, 3)
    pixel = np.full((1, 1, 3), 0.3, np.float32)
    np.testing.assert_allclose(fit_cover(pixel, (64, 64)), np.full((64, 64, 3), 0.3), atol=1e-6)


def test_shrinking_is_antialiased():
    checkers = np.indices((256, 256)).sum(axis=0) % 2
    found = fit_cover(np.repeat(checkers[..., None], 3, axis=-1).astype(np.float32), (64, 64))
    np.testing.assert_allclose(found, 0.5, atol=0.02)
