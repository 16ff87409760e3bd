"""Chunks are cut as the released scripts cut them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drender.errors import InputError
from drender.sampling.inputs import plan_chunks

frame_counts, lengths = st.integers(1, 400), st.integers(1, 48)


@given(num_frames=frame_counts, length=lengths, data=st.data())
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


def test_chunk_modes():
    spans = lambda mode: [(chunk.start, chunk.stop) for chunk in plan_chunks(50, 24, 6, mode)]
    assert spans("blend") == [(0, 50)]
    assert spans("all") == [(0, 24), (18, 42), (36, 50)]
    assert spans("first") == [(0, 24)]
    assert spans("drop-last") == [(0, 24), (18, 42)]


@pytest.mark.parametrize(("length", "overlap"), [(0, 0), (-1, 0), (24, 24), (24, -1), (1, 1)])
def test_impossible_chunks_are_errors(length, overlap):
    with pytest.raises(InputError):
        plan_chunks(50, length, overlap)


def test_a_mistyped_mode_is_an_error_with_a_hint():
    with pytest.raises(InputError, match="did you mean 'drop-last'"):
        plan_chunks(50, mode="drop_last")
