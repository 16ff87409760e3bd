"""`sample.py inverse`: what it writes for images, videos, folders and chunks."""

import jax
import numpy as np
import pytest
from helpers.pages import Page
from helpers.runs import (
    PASSES,
    contents,
    frames,
    labels,
    pictures,
    write_frames,
)

from drender.media.images import read_image, write_png
from drender.media.video import find_clips, write_video
from drender.renderers.inverse import InverseRenderer


def test_inverse_writes_frames_video_and_record_of_a_folder(inverse, tmp_path):
    code, out, err = inverse("--input", write_frames(tmp_path / "walk", 2), "--output", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "walk: done" in out
    assert labels(tmp_path / "out/walk") == {"rgb", *PASSES}
    assert frames(tmp_path / "out/walk", "normal") == ["0000.0000", "0000.0001"]
    (clip,) = find_clips(tmp_path / "out/walk.viz.mp4")
    assert clip.num_frames == 2 and next(clip.frames()).shape == (64, 192, 3)  # rgb and two passes side by side
    np.testing.assert_array_equal(
        read_image(tmp_path / "out/walk/0000.0001.rgb.png"), read_image(tmp_path / "walk/001.png")
    )


@pytest.mark.slow
def test_inverse_equals_the_python_interface(networks, inverse, models, tmp_path):
    write_frames(tmp_path / "walk", 2)
    inverse("--input", tmp_path / "walk", "--output", tmp_path / "out", "--seed", 3, "--bits", 16, "--no-video")
    rgb = np.stack(list(find_clips(tmp_path / "walk")[0].frames()))[None]
    buffers = InverseRenderer.load(str(models["inverse"]), None, jax.devices()[0])(rgb, PASSES, num_steps=1, seed=3)
    for name in PASSES:
        found = np.stack([read_image(tmp_path / f"out/walk/0000.{i:04d}.{name}.png") for i in range(2)])
        np.testing.assert_allclose(found, buffers[name][0], rtol=0, atol=0.6 / 65535)
    assert not list(tmp_path.rglob("*.mp4"))


def test_a_video_is_one_chunk_by_default(inverse, tmp_path):
    write_video(tmp_path / "pan.mp4", pictures(10, 48, 80), 5.0)
    code, out, _ = inverse("--input", tmp_path / "pan.mp4", "--output", tmp_path / "out")
    assert code == 0 and out.startswith("pan: rgb, frames 0 to 9, written\npan: basecolor,")
    for label in ("rgb", *PASSES):
        assert frames(tmp_path / "out/pan", label) == [f"0000.{frame:04d}" for frame in range(10)]
    (clip,) = find_clips(tmp_path / "out/pan.viz.mp4")
    assert (clip.num_frames, clip.fps) == (10, 5.0)


def test_chunks_overlap_and_the_video_shows_each_frame_once(inverse, tmp_path):
    write_video(tmp_path / "pan.mp4", pictures(4, 48, 80), 5.0)
    assert inverse("--input", tmp_path / "pan.mp4", "--output", tmp_path / "out", "--chunks", "all")[0] == 0
    assert frames(tmp_path / "out/pan", "rgb") == [f"{chunk:04d}.{frame:04d}" for chunk in range(3) for frame in (0, 1)]
    same = [read_image(tmp_path / f"out/pan/{name}.rgb.png") for name in ("0000.0001", "0001.0000")]
    np.testing.assert_array_equal(*same)
    assert same[0].shape == (64, 128, 3)  # covers 64×64, then rounded up
    (clip,) = find_clips(tmp_path / "out/pan.viz.mp4")
    assert (clip.num_frames, clip.fps) == (4, 5.0)


@pytest.mark.parametrize(
    ("options", "written"),
    [
        (("--chunks", "first"), ["0000.0000", "0000.0001"]),
        (("--chunks", "drop-last", "--overlap", 0), ["0000.0000", "0000.0001"]),
        (("--chunks", "all", "--overlap", 0), ["0000.0000", "0000.0001", "0001.0000"]),  # without the repeated frame
        ((), ["0000.0000", "0000.0001", "0000.0002"]),
    ],
)
def test_chunk_modes_select_frames(inverse, tmp_path, options, written):
    code, *_ = inverse("--input", write_frames(tmp_path / "a", 3), "--output", tmp_path / "out", *options)
    assert code == 0 and frames(tmp_path / "out/a", "normal") == written


def test_default_overlap_is_at_most_half_a_chunk(run, models, tmp_path):
    arguments = ("--checkpoint", models["inverse"], "--size", 64, 64, "--steps", 1, "--passes", "normal", "--frames", 2)
    arguments += ("--chunks", "all")
    code, *_ = run("inverse", *arguments, "--input", write_frames(tmp_path / "a", 3), "--output", tmp_path / "out")
    assert code == 0 and frames(tmp_path / "out/a", "normal") == ["0000.0000", "0000.0001", "0001.0000", "0001.0001"]


def test_contact_sheet_shows_first_middle_and_last_frame(inverse, tmp_path):
    write_frames(tmp_path / "walk", 5)
    assert inverse("--input", tmp_path / "walk", "--output", tmp_path / "out")[0] == 0
    sheet = read_image(tmp_path / "out/walk.contact.png")
    for row, (chunk, frame) in enumerate([(0, 0), (0, 2), (0, 4)]):
        for column, label in enumerate(("rgb", *PASSES)):
            tile = sheet[row * 128 : row * 128 + 128, column * 128 : column * 128 + 128]
            image = read_image(tmp_path / f"out/walk/{chunk:04d}.{frame:04d}.{label}.png")
            np.testing.assert_array_equal(tile, image.repeat(2, 0).repeat(2, 1))


def test_a_folder_may_mix_frames_videos_and_images(inverse, tmp_path):
    write_frames(tmp_path / "in/walk", 2)
    write_video(tmp_path / "in/pan.mp4", pictures(2), 5.0)
    write_png(tmp_path / "in/cat.v2.png", pictures(1)[0])
    assert inverse("--input", tmp_path / "in", "--output", tmp_path / "out")[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {"walk", "pan", "cat.v2"}
    assert frames(tmp_path / "out/cat.v2", "normal") == ["0000.0000"]
    assert (tmp_path / "out/cat.v2.viz.mp4").is_file()


@pytest.mark.parametrize("kind", ["P", "L", "LA", "RGBA", "I;16"])
def test_images_of_other_color_modes(inverse, tmp_path, kind):
    image = pytest.importorskip("PIL.Image").fromarray((pictures(1)[0] * 255).astype(np.uint8))
    image = image.convert("L").convert("I").convert("I;16") if kind == "I;16" else image.convert(kind)
    image.save(tmp_path / "a.png")
    code, _, err = inverse("--input", tmp_path / "a.png", "--output", tmp_path / "out")
    assert (code, err) == (0, "")


def test_an_image_of_one_pixel(inverse, tmp_path):
    write_png(tmp_path / "a.png", pictures(1, 1, 1)[0])
    assert inverse("--input", tmp_path / "a.png", "--output", tmp_path / "out")[0] == 0
    assert read_image(tmp_path / "out/a/0000.0000.normal.png").shape == (64, 64, 3)


@pytest.mark.slow
def test_two_devices_share_the_clips_bit_for_bit(networks, inverse, tmp_path):
    for i in range(3):
        write_frames(tmp_path / f"in/clip{i}", 2, seed=i)
    for count in (1, 2):
        code, out, _ = inverse("--input", tmp_path / "in", "--output", tmp_path / f"out{count}", "--devices", count)
        assert code == 0 and out.count("done in") == 3
    one, two = (
        {name: data for name, data in contents(tmp_path / f"out{i}").items() if not name.endswith(".json")}
        for i in (1, 2)
    )
    assert one == two


@pytest.mark.slow
def test_two_devices_share_one_clip(networks, inverse, tmp_path):
    write_frames(tmp_path / "in/clip", 2)
    for count in (1, 2):
        code, _, _ = inverse("--input", tmp_path / "in", "--output", tmp_path / f"out{count}", "--devices", count)
        assert code == 0
    images = sorted(path.relative_to(tmp_path / "out1") for path in (tmp_path / "out1").rglob("*.normal.png"))
    assert len(images) == 2
    for image in images:
        one, two = (read_image(tmp_path / f"out{i}" / image) for i in (1, 2))
        assert np.abs(one - two).max() < 1.01 / 255  # another order of sums, and then rounded


def test_processes_share_the_clips(inverse, tmp_path):
    for i in range(3):
        write_frames(tmp_path / f"in/clip{i}", 2, seed=i)
    arguments = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--html")
    code, out, _ = inverse(*arguments, "--process", 1, 2)
    assert code == 0 and "clip1: done" in out and out.count("done in") == 1
    code, out, _ = inverse(*arguments, "--process", 0, 2)
    assert code == 0 and "clip0: done" in out and "clip2: done" in out and "clip1" not in out.split("index.html")[0]
    assert len(Page(tmp_path / "out/index.html").data["clip"]) == 3
