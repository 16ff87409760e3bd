"""Windows cover a clip, stack as rows and cross-fade into the whole clip."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drender.renderers.windows import (
    WindowedLatents,
    cross_fade,
    match_range,
    plan_windows,
    stack_windows,
    unstack_windows,
)

numbers_of_frames, lengths = st.integers(1, 400), st.integers(1, 48)


@given(num_frames=numbers_of_frames, length=lengths, data=st.data())
def test_windows_cover_every_frame_and_overlap_enough(num_frames, length, data):
    overlap = data.draw(st.integers(0, length - 1))
    windows = plan_windows(num_frames, length, overlap)
    assert windows[0].start == 0 and windows[-1].stop == num_frames
    assert {window.stop - window.start for window in windows} == {min(length, num_frames)}
    for before, after in itertools.pairwise(windows):
        assert before.stop - after.start >= overlap and after.start > before.start
    # One window fewer would not cover the clip.
    assert len(windows) == 1 or (len(windows) - 1) * (length - overlap) + overlap < num_frames


@given(num_frames=numbers_of_frames, length=lengths, data=st.data())
def test_cross_fading_windows_of_a_clip_gives_the_clip(num_frames, length, data):
    overlap = data.draw(st.integers(0, length - 1))
    windows = plan_windows(num_frames, length, overlap)
    clip = np.random.default_rng(0).random((2, num_frames, 1, 2, 3), np.float32)
    runs = list(cross_fade(windows, [clip[:, window] for window in windows]))
    np.testing.assert_allclose(np.concatenate(runs, axis=1), clip, rtol=1e-6)
    # Memory is bounded: no run is longer than two windows.
    assert max(run.shape[1] for run in runs) <= 2 * length


def test_cross_fade_weights_rise_in_even_steps():
    windows = plan_windows(7, 5, 3)
    zeros, ones = np.zeros((1, 5, 1, 1, 1), np.float32), np.ones((1, 5, 1, 1, 1), np.float32)
    faded = WindowedLatents(windows, [zeros, ones]).blended().ravel()
    np.testing.assert_allclose(faded, [0, 0, 0.25, 0.5, 0.75, 1, 1])


@given(scale=st.floats(0.55, 1.9), shift=st.floats(-0.5, 0.5))
def test_match_range_undoes_scale_and_shift(scale, shift):
    windows = plan_windows(20, 12, 4)
    depth = np.random.default_rng(0).random((1, 20, 4, 4, 3)).astype(np.float32)
    pieces = [depth[:, windows[0]], depth[:, windows[1]] / np.float32(scale) - np.float32(shift)]
    matched = np.concatenate(list(cross_fade(windows, pieces, match_range)), axis=1)
    np.testing.assert_allclose(matched, depth, atol=1e-4)


def test_match_range_bounds_the_scale():
    flat = np.full((1, 4, 2, 2, 1), 0.3, np.float32)
    np.testing.assert_allclose(match_range(flat[:, :2] + 0.5, flat), flat + 0.5, atol=1e-6)
    slope = np.linspace(0, 1, 16, dtype=np.float32).reshape(1, 4, 2, 2, 1)
    matched = match_range(100 * slope[:, :2], slope)
    assert matched.max() - matched.min() == pytest.approx(2.0)


@given(num_windows=st.integers(1, 4))
def test_unstacking_inverts_stacking(num_windows):
    clips = np.random.default_rng(0).random((2, 8, 3))
    windows = [slice(2 * i, 2 * i + 2) for i in range(num_windows)]
    pieces = unstack_windows(stack_windows(clips, windows), num_windows)
    for window, piece in zip(windows, pieces, strict=True):
        np.testing.assert_array_equal(piece, clips[:, window])
