"""Windows cover a clip and fade into one another; chunks are cut as the released scripts cut them."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drender.errors import InputError
from drender.renderers.windows import WindowedLatents, cross_fade, match_range, plan_windows
from drender.sampling.inputs import plan_chunks

numbers_of_frames, lengths = st.integers(1, 400), st.integers(1, 48)


# --- windows ---------------------------------------------------------------------------------------------------------


@given(num_frames=numbers_of_frames, length=lengths, data=st.data())
def test_windows_cover_every_frame_and_share_enough(num_frames, length, data):
    overlap = data.draw(st.integers(0, length - 1))
    windows = plan_windows(num_frames, length, overlap)
    assert windows[0].start == 0 and windows[-1].stop == num_frames
    assert {window.stop - window.start for window in windows} == {min(length, num_frames)}
    for before, after in itertools.pairwise(windows):
        assert before.stop - after.start >= overlap and after.start > before.start
    # One fewer would not do.
    assert len(windows) == 1 or (len(windows) - 1) * (length - overlap) + overlap < num_frames


@given(num_frames=numbers_of_frames, length=lengths, data=st.data())
def test_pieces_of_one_clip_fade_into_that_clip(num_frames, length, data):
    overlap = data.draw(st.integers(0, length - 1))
    windows = plan_windows(num_frames, length, overlap)
    clip = np.random.default_rng(0).random((2, num_frames, 1, 2, 3), np.float32)
    runs = list(cross_fade(windows, [clip[:, window] for window in windows]))
    np.testing.assert_allclose(np.concatenate(runs, axis=1), clip, rtol=1e-6)
    # Memory is flat: what is handed on is no longer than two windows.
    assert max(run.shape[1] for run in runs) <= 2 * length


def test_neighbours_fade_in_even_steps():
    windows = plan_windows(7, 5, 3)
    zeros, ones = np.zeros((1, 5, 1, 1, 1), np.float32), np.ones((1, 5, 1, 1, 1), np.float32)
    faded = WindowedLatents(windows, [zeros, ones]).blended().ravel()
    np.testing.assert_allclose(faded, [0, 0, 0.25, 0.5, 0.75, 1, 1])


@given(scale=st.floats(0.55, 1.9), shift=st.floats(-0.5, 0.5))
def test_a_window_of_another_range_is_brought_to_that_of_the_one_before(scale, shift):
    windows = plan_windows(20, 12, 4)
    depth = np.random.default_rng(0).random((1, 20, 4, 4, 3)).astype(np.float32)
    pieces = [depth[:, windows[0]], depth[:, windows[1]] / np.float32(scale) - np.float32(shift)]
    matched = np.concatenate(list(cross_fade(windows, pieces, match_range)), axis=1)
    np.testing.assert_allclose(matched, depth, atol=1e-4)


def test_a_flat_window_is_only_shifted_and_none_is_stretched_much():
    flat = np.full((1, 4, 2, 2, 1), 0.3, np.float32)
    np.testing.assert_allclose(match_range(flat[:, :2] + 0.5, flat), flat + 0.5, atol=1e-6)
    slope = np.linspace(0, 1, 16, dtype=np.float32).reshape(1, 4, 2, 2, 1)
    matched = match_range(100 * slope[:, :2], slope)
    assert matched.max() - matched.min() == pytest.approx(2.0)


# --- chunks ----------------------------------------------------------------------------------------------------------


@given(num_frames=numbers_of_frames, length=lengths, data=st.data())
def test_chunks_cover_every_frame(num_frames, length, data):
    overlap = data.draw(st.integers(0, length - 1))
    chunks = plan_chunks(num_frames, length, overlap, "all")
    assert {i for chunk in chunks for i in range(chunk.start, chunk.stop)} == set(range(num_frames))
    for before, after in itertools.pairwise(chunks):
        assert before.stop - after.start == overlap
        assert after.stop > before.stop
    assert len({chunk.length for chunk in chunks}) == 1
    assert all(chunk.num_frames <= chunk.length for chunk in chunks)


@pytest.mark.parametrize("mode", ["blend", "all", "first", "drop-last"])
@pytest.mark.parametrize("num_frames", [1, 5, 6, 23, 24])
def test_a_short_clip_is_one_chunk_of_its_own_length(num_frames, mode):
    (chunk,) = plan_chunks(num_frames, 24, 6, mode)
    assert (chunk.start, chunk.stop, chunk.length) == (0, num_frames, num_frames)


def test_modes():
    spans = lambda mode: [(chunk.start, chunk.stop) for chunk in plan_chunks(50, 24, 6, mode)]
    assert spans("blend") == [(0, 50)]
    assert spans("all") == [(0, 24), (18, 42), (36, 50)]
    assert spans("first") == [(0, 24)]
    assert spans("drop-last") == [(0, 24), (18, 42)]


@pytest.mark.parametrize(("length", "overlap"), [(0, 0), (-1, 0), (24, 24), (24, -1), (1, 1)])
def test_impossible_chunks(length, overlap):
    with pytest.raises(InputError):
        plan_chunks(50, length, overlap)


def test_mistyped_mode():
    with pytest.raises(InputError, match="did you mean 'drop-last'"):
        plan_chunks(50, mode="drop_last")
