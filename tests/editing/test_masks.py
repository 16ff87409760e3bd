"""Companion images of clips: sizes, frames, names."""

import numpy as np
import pytest

from drender.editing.masks import Companion, mask_weights, same_aspect
from drender.errors import InputError
from drender.media.gbuffers import frame_path
from drender.media.images import write_png
from drender.media.resize import resize
from drender.media.video import write_video


def test_source_masks_match_rounded_up_buffers():
    assert (
        same_aspect((1080, 1920), (512, 960))
        and same_aspect((540, 960), (512, 960))
        and same_aspect((48, 64), (96, 128))
    )
    assert not same_aspect((1920, 1080), (512, 960)) and not same_aspect((100, 100), (512, 960))
    assert same_aspect((1080, 1920), (101, 180)) and not same_aspect((100, 100), (101, 180))


def test_frames_are_read_in_any_order_from_any_source(tmp_path):
    frames = [np.full((16, 16, 3), value, np.float32) for value in (0.2, 0.4, 0.6, 0.8)]
    write_video(tmp_path / "mask.mp4", frames, 8.0)
    for i, frame in enumerate(frames):
        write_png(tmp_path / "frames" / f"{i}.png", frame)
        write_png(frame_path(tmp_path / "clips" / "walk", 0, i, "mask"), frame)
        write_png(frame_path(tmp_path / "clips" / "walk", 0, i, "depth"), 1 - frame)
        write_png(frame_path(tmp_path / "clips" / "run", 0, i, "mask"), 1 - frame)
    for path in ("mask.mp4", "frames", "clips", "clips/walk"):
        found = Companion("--mask", tmp_path / path, "mask").of("walk", 4)
        seen = [float(found.at(index, (8, 8)).mean()) for index in (0, 1, 3, 2, 2, 0)]
        np.testing.assert_allclose(seen, [0.2, 0.4, 0.8, 0.6, 0.6, 0.2], atol=0.01)
    still = Companion("--mask", tmp_path / "frames/2.png", "mask").of("walk", 9)
    assert still.at(7, (16, 16)).mean() == pytest.approx(0.6, abs=0.01)
    with pytest.raises(InputError, match="expected 1 or 9 frames for clip 'walk', got 4; give one image"):
        Companion("--mask", tmp_path / "frames", "mask").of("walk", 9)
    with pytest.raises(InputError, match="none of its 2 clips is named 'jump'"):
        Companion("--mask", tmp_path / "clips", "mask").of("jump", 4)
    with pytest.raises(InputError, match="expected the aspect ratio of the 90x30 G-buffers, got 16x16 pixels"):
        still.at(0, (30, 90))
    assert still.at(0, (30, 90), crop=True).shape == (30, 90, 3)
    with pytest.raises(InputError, match=r"--mask: .*nothere\.png does not exist"):
        Companion("--mask", tmp_path / "nothere.png", "mask")


def test_masks_of_colors_and_of_labels_are_not_taken_for_weights():
    mask = np.zeros((4, 4, 3), np.float32)
    mask[:2] = 0.5
    np.testing.assert_array_equal(mask_weights("--mask m.png", mask), mask[..., :1])
    with pytest.warns(UserWarning, match=r"--mask m.png: its mask reaches only 0.00392, expected 1"):
        mask_weights("--mask m.png", mask / 127.5)
    mask[..., 1:] = 0  # as palettes of annotations have it
    with pytest.raises(InputError, match=r"--mask m.png: expected a mask, white inside, got colors; save"):
        mask_weights("--mask m.png", mask)


def test_resize_keeps_ends_of_a_ramp():
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[None, :, None].repeat(4, 0).repeat(3, -1)
    assert resize(ramp, (4, 64)) is ramp
    shrunk = resize(ramp, (8, 16))
    assert shrunk.shape == (8, 16, 3) and (np.diff(shrunk[0, :, 0]) > 0).all()
