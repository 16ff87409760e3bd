"""Animated images and TIFF pages are clips."""

import numpy as np
import OpenImageIO as oiio
import pytest
from helpers.refusals import broken
from PIL import Image

from drender.media.images import write_png
from drender.media.video import find_clips

FRAMES = np.zeros((5, 24, 32, 3), np.uint8)
for k, frame in enumerate(FRAMES):  # few colors, so that GIF holds them exactly
    frame[:, : 6 * (k + 1)] = (200, 40, 40)


def save(path, frames=FRAMES, **options):
    path.parent.mkdir(exist_ok=True)
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(path, save_all=True, append_images=images[1:], **options)
    return path


def write_pages(path, pages):
    """Write float TIFF pages, with a thumbnail at the end as cameras write it."""
    output = oiio.ImageOutput.create(str(path))
    specs = tuple(oiio.ImageSpec(page.shape[1], page.shape[0], 3, "float") for page in (*pages, pages[0][::4, ::4]))
    assert output.open(str(path), specs)
    for index, page in enumerate((*pages, pages[0][::4, ::4])):
        assert not index or output.open(str(path), specs[index], "AppendSubimage")
        assert output.write_image(np.ascontiguousarray(page, np.float32))
    output.close()


@pytest.mark.parametrize(
    ("suffix", "options"), [("gif", {}), ("webp", {"lossless": True}), ("png", {}), ("GIF", {"disposal": 2})]
)
def test_animated_image_is_a_clip(tmp_path, suffix, options):
    path = save(tmp_path / f"a.{suffix}", duration=40, **options)
    (clip,) = find_clips(path)
    assert (clip.name, clip.num_frames, clip.size) == ("a", 5, (24, 32))
    assert clip.fps == pytest.approx(25)
    np.testing.assert_allclose(np.stack(list(clip.frames())), FRAMES / 255, atol=1e-6)
    np.testing.assert_allclose(np.stack(list(clip.frames(2, 4))), FRAMES[2:4] / 255, atol=1e-6)


def test_alpha_of_an_animation_is_composited_on_black(tmp_path):
    rgba = np.concatenate([FRAMES, np.full((5, 24, 32, 1), 128, np.uint8)], axis=-1)
    (clip,) = find_clips(save(tmp_path / "a.png", rgba, duration=100))
    np.testing.assert_allclose(next(clip.frames(3)), FRAMES[3] / 255 * 128 / 255, atol=1e-6)


@pytest.mark.parametrize("suffix", ["webp", "png"])
def test_animation_is_turned_upright(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x112] = 6  # stored turned left
    stored = np.rot90(FRAMES, axes=(1, 2))
    (clip,) = find_clips(save(tmp_path / f"a.{suffix}", np.ascontiguousarray(stored), exif=exif, lossless=True))
    np.testing.assert_allclose(np.stack(list(clip.frames())), FRAMES / 255, atol=1e-6)


def test_poster_of_a_png_is_no_frame(tmp_path):
    (clip,) = find_clips(save(tmp_path / "a.png", duration=100, default_image=True))
    assert (clip.num_frames, clip.fps) == (4, pytest.approx(10))
    np.testing.assert_allclose(np.stack(list(clip.frames())), FRAMES[1:] / 255, atol=1e-6)


def test_tiff_pages_are_a_clip_without_thumbnails(tmp_path):
    linear = np.random.default_rng(0).random((3, 8, 12, 3)).astype(np.float32)
    write_pages(tmp_path / "a.tif", linear)
    (clip,) = find_clips(tmp_path / "a.tif")
    assert (clip.num_frames, clip.fps) == (3, 7.0)
    expected = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(np.stack(list(clip.frames())), expected, atol=1e-5)


def test_animations_in_a_folder_are_clips_beside_images(tmp_path):
    save(tmp_path / "in" / "a.gif", duration=100)
    write_png(tmp_path / "in" / "b.png", FRAMES[0])
    Image.fromarray(FRAMES[0]).save(tmp_path / "in" / "c.gif")  # of a single frame
    assert {clip.name: clip.num_frames for clip in find_clips(tmp_path)} == {"a": 5, "b": 1, "c": 1}


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_damaged_animations_are_input_errors(tmp_path, suffix):
    data = save(tmp_path / f"whole.{suffix}", duration=40).read_bytes()
    path = tmp_path / f"a.{suffix}"

    def read_all(path):
        return [frame for clip in find_clips(path) for frame in clip.frames()]

    for size in (0, 20, len(data) // 2):
        path.write_bytes(data[:size])
        assert f"a.{suffix}" in broken(read_all, path)
