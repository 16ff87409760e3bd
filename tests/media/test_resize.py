"""Resizing: the released preprocessing and the other modes."""

from fractions import Fraction

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from drender.errors import InputError
from drender.media.encodings import decode_normal, encode_normal
from drender.media.resize import MAX_GROWTH, MODES, ResizeConfig, contain_size, cover_size

RNG = np.random.default_rng(0)

sides = st.integers(1, 5000)


def cover(frame, size=None):
    """Return a frame as the network gets it by default."""
    return ResizeConfig(size=size).place(frame.shape[:2]).fit(frame)


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


def test_frames_cover_the_size():
    frame = RNG.random((48, 64, 3)).astype(np.float32)
    found = cover(frame, (64, 64))
    expected = jax.image.resize(frame, (64, 128, 3), "linear", antialias=True)
    assert found.shape == (64, 128, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_cover_of_the_same_size_and_of_a_single_pixel():
    frame = RNG.random((64, 128, 3)).astype(np.float32)
    np.testing.assert_array_equal(cover(frame, (64, 128)), frame)
    assert cover(frame[:63, :65]).shape == (64, 128, 3)
    pixel = np.full((1, 1, 3), 0.3, np.float32)
    np.testing.assert_allclose(cover(pixel, (64, 64)), np.full((64, 64, 3), 0.3), atol=1e-6)


def test_shrinking_is_antialiased():
    checkers = np.indices((256, 256)).sum(axis=0) % 2
    found = cover(np.repeat(checkers[..., None], 3, axis=-1).astype(np.float32), (64, 64))
    np.testing.assert_allclose(found, 0.5, atol=0.02)


# --- Fit modes ---

SIZES = st.tuples(st.integers(1, 300), st.integers(1, 300))


@given(sides, sides, sides, sides)
@settings(max_examples=300)
def test_contain_size(h, w, height, width):
    found = contain_size((h, w), (height, width))
    scale = min(Fraction(height, h), Fraction(width, w))
    for side, source, target in zip(found, (h, w), (height, width), strict=True):
        assert 1 <= side <= target
        assert abs(side - source * scale) <= Fraction(1, 2) or side == 1
    assert found[0] == height or found[1] == width


def place(source, size, mode, output):
    """Return the sizes, unless covering would enlarge a strip too much."""
    assume(mode != "cover" or np.prod(cover_size(source, size)) <= MAX_GROWTH * np.prod(cover_size(size, size)))
    return ResizeConfig(mode, size, output).place(source)


@given(SIZES, SIZES, st.sampled_from(MODES), st.sampled_from(["model", "source"]))
@settings(max_examples=60)
def test_sizes_of_every_mode(source, size, mode, output):
    placement = place(source, size, mode, output)
    assert all(side % 64 == 0 for side in placement.outer)
    if mode == "contain":
        assert placement.inner == contain_size(source, size)
        assert all(0 <= outer - inner < 64 for outer, inner in zip(placement.outer, placement.inner, strict=True))
    else:
        assert placement.inner == placement.outer == cover_size(source if mode == "cover" else size, size)


# Every example compiles a resize of its own, so there are few.
@given(SIZES, SIZES, st.sampled_from(MODES), st.sampled_from(["model", "source"]))
@settings(max_examples=4)
def test_fit_and_restore_give_the_planned_sizes(source, size, mode, output):
    placement = place(source, size, mode, output)
    frame = np.full((*source, 3), 0.25, np.float32)
    fitted = placement.fit(frame)
    assert fitted.shape == (*placement.outer, 3) and fitted.dtype == np.float32
    np.testing.assert_allclose(fitted, 0.25, atol=4e-6)  # float32 weights sum to 1 to within 5e-6
    restored = placement.restore(fitted, "rgb")
    assert restored.shape == (*(source if output == "source" else placement.inner), 3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("source", [(90, 51), (37, 200), (5, 9), (64, 64), (1, 1)])
def test_smooth_image_survives_fit_and_restore(mode, source):
    y, x = (np.linspace(0.2, 0.8, side) if side > 1 else np.array([0.5]) for side in source)
    frame = np.stack(np.broadcast_arrays(y[:, None], x[None, :], 0.3), axis=-1).astype(np.float32)
    placement = ResizeConfig(mode, (128, 192), "source").place(source)
    restored = placement.restore(placement.fit(frame), "rgb")
    assert restored.shape == frame.shape
    np.testing.assert_allclose(restored, frame, atol=0.05 if min(source) < 10 else 0.02)


def test_padding_repeats_edge_and_is_cropped():
    frame = RNG.random((64, 100, 3)).astype(np.float32)
    for fit in (ResizeConfig("contain"), ResizeConfig("contain", (64, 100))):
        placement = fit.place((64, 100))
        fitted = placement.fit(frame)
        assert fitted.shape == (64, 128, 3)
        np.testing.assert_array_equal(fitted[:, 100:], np.repeat(frame[:, 99:], 28, axis=1))
        np.testing.assert_array_equal(placement.restore(fitted, "rgb"), frame)


def test_restored_normals_have_unit_length():
    normal = RNG.normal(size=(64, 64, 3)).astype(np.float32)
    stored = encode_normal(normal / np.linalg.norm(normal, axis=-1, keepdims=True))
    placement = ResizeConfig("stretch", (64, 64), "source").place((100, 33))
    restored = placement.restore(stored, "normal")
    np.testing.assert_allclose(np.linalg.norm(restored * 2 - 1, axis=-1), 1, atol=1e-5)
    expected = jax.image.resize(stored, (100, 33, 3), "linear", antialias=True)
    np.testing.assert_allclose(restored * 2 - 1, decode_normal(np.asarray(expected)), atol=1e-5)
    np.testing.assert_allclose(placement.restore(stored, "depth"), expected, atol=1e-6)


def test_strips_are_not_enlarged_without_limit():
    cover, contain = ResizeConfig(size=(512, 512)), ResizeConfig("contain", (512, 512))
    assert cover.place((100, 1600)).inner == (512, 8192)
    for source in ((10, 10_000), (10_000, 10)):
        with pytest.raises(InputError, match=r"to cover 512x512, too many; crop the images to a squarer shape"):
            cover.place(source)
        assert contain.place(source).outer in ((64, 512), (512, 64))
    assert ResizeConfig().place((64, 6400)).inner == (64, 6400)  # nothing is enlarged


def test_sizes_less_than_one_are_input_errors():
    with pytest.raises(InputError, match="size is 0 64; both sides must be 1 or more"):
        ResizeConfig("cover", (0, 64))
