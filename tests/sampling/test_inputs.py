"""Chunks are cut as the released scripts cut them."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drender.errors import InputError
from drender.media.gbuffers import GBufferClip
from drender.media.images import write_png
from drender.media.video import find_clips
from drender.sampling.inputs import BufferChunks, ChunkConfig, RgbChunks
from drender.sampling.jobs import InverseJob
from drender.sampling.outputs import RunConfig

frame_counts, lengths = st.integers(1, 400), st.integers(1, 48)


@given(num_frames=frame_counts, length=lengths, data=st.data())
def test_chunks_cover_every_frame(num_frames, length, data):
    overlap = data.draw(st.integers(0, length - 1))
    chunks = ChunkConfig(length, overlap, "all").plan(num_frames)
    assert {i for chunk in chunks for i in range(chunk.start, chunk.stop)} == set(range(num_frames))
    for before, after in itertools.pairwise(chunks):
        assert before.stop - after.start == overlap
        assert after.stop > before.stop
    assert len({chunk.length for chunk in chunks}) == 1
    assert all(chunk.num_frames <= chunk.length for chunk in chunks)


@pytest.mark.parametrize("mode", ["blend", "all", "first", "drop-last"])
@pytest.mark.parametrize("num_frames", [1, 5, 6, 23, 24])
def test_a_short_clip_is_one_chunk_of_its_own_length(num_frames, mode):
    (chunk,) = ChunkConfig(24, 6, mode).plan(num_frames)
    assert (chunk.start, chunk.stop, chunk.length) == (0, num_frames, num_frames)


def test_chunk_modes():
    spans = lambda mode: [(chunk.start, chunk.stop) for chunk in ChunkConfig(24, 6, mode).plan(50)]
    assert spans("blend") == [(0, 50)]
    assert spans("all") == [(0, 24), (18, 42), (36, 50)]
    assert spans("first") == [(0, 24)]
    assert spans("drop-last") == [(0, 24), (18, 42)]


@pytest.mark.parametrize(("length", "overlap"), [(0, 0), (-1, 0), (24, 24), (24, -1), (1, 1)])
def test_impossible_chunks_are_errors(length, overlap):
    with pytest.raises(InputError):
        ChunkConfig(length, overlap)


@pytest.mark.parametrize("mode", ["blend", "all"])
def test_stored_chunks_that_share_frames_give_each_frame_once(mode):
    """The chunks are numbered 3 and 4, have 4 and 3 frames, and share one."""
    clip = GBufferClip("a", {"depth": tuple(Path(str(i)) for i in range(7))}, {3: 4, 4: 3})
    chunked = BufferChunks.plan(clip, ChunkConfig(24, 1, mode))
    assert [chunked.places[chunk][i] for chunk, i in chunked.frames] == [0, 1, 2, 3, 5, 6]
    assert chunked.num_frames == 6


@pytest.mark.parametrize(
    ("fixed_frame", "message"),
    [
        (None, "clip 'a' has 3 frames, but --poses only 2"),
        (2, "clip 'a' has 3 frames, but --poses only 2"),
        (5, "--fixed-frame 5: clip 'a' has frames 0 to 2"),
    ],
)
def test_every_frame_needs_a_camera(fixed_frame, message):
    clip = GBufferClip("a", {"normal": tuple(Path(str(i)) for i in range(3))}, {0: 3})
    cameras = np.tile(np.eye(3, dtype=np.float32), (2, 1, 1))
    with pytest.raises(InputError, match=message):
        BufferChunks.plan(clip, ChunkConfig(), fixed_frame, cameras)
    assert BufferChunks.plan(clip, ChunkConfig(), 1, cameras).cameras.shape == (24, 3, 3)


def test_a_long_name_does_not_stop_the_other_clips(tmp_path):
    for name in ("walk", "é" * 120):
        write_png(tmp_path / "in" / f"{name}.png", np.zeros((4, 4, 3), np.float32))
    failures = []
    clips = InverseJob(RunConfig(tmp_path / "in", tmp_path / "out", {}), ("normal",)).discover(failures.append)
    assert [clip.name for clip in clips] == ["walk"] and "its name has 240 bytes" in str(*failures)


def test_pictures_of_an_inverse_run_keep_its_frame_rate(tmp_path):
    for i in range(2):
        write_png(tmp_path / "walk" / f"0000.000{i}.rgb.png", np.zeros((8, 8, 3), np.float32))
    record = {"settings": {}, "labels": ["rgb"], "chunks": [0], "finished": True, "fps": 5.0}
    (clip,) = find_clips(tmp_path / "walk")
    assert RgbChunks.plan(clip, ChunkConfig()).fps == clip.fps
    (tmp_path / "walk" / "inverse.json").write_text(json.dumps(record))
    assert RgbChunks.plan(clip, ChunkConfig()).fps == 5.0
