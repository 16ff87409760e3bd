"""Video against imageio, clips in folders, and damaged files."""

import struct
from fractions import Fraction

import av
import imageio.v3 as iio
import numpy as np
import OpenImageIO as oiio
import pytest
from helpers.refusals import broken

from drender.errors import InputError
from drender.media import video
from drender.media.encodings import InputEncoding
from drender.media.images import write_exr, write_png
from drender.media.montage import side_by_side
from drender.media.video import find_clips, write_video

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 31, 3)).astype(np.uint8)
ramp = np.linspace(0, 1, 48)
SCENE = np.stack(np.broadcast_arrays(ramp[:32, None], ramp[None, :], 0.5), axis=-1).astype(np.float32)  # 32×48, smooth


def movie(path, frames=6):
    write_video(path, (np.roll(SCENE, 4 * k, axis=1) for k in range(frames)), 5.0)
    return path


def read_all(path):
    return [frame for clip in find_clips(path) for frame in clip.frames()]


# --- Video ---


def test_video_round_trip(tmp_path):
    (clip,) = find_clips(movie(tmp_path / "pan.mp4"))
    assert (clip.name, clip.fps, clip.num_frames) == ("pan", 5.0, 6)
    frames = np.stack(list(clip.frames()))
    assert np.abs(frames - [np.roll(SCENE, 4 * k, axis=1) for k in range(6)]).mean() < 0.01
    np.testing.assert_allclose(frames, iio.imread(tmp_path / "pan.mp4", plugin="pyav") / 255, atol=1e-6)
    np.testing.assert_array_equal(np.stack(list(clip.frames(2, 5))), frames[2:5])
    assert len(list(clip.frames(4))) == 2 and not list(clip.frames(6)) and len(list(clip.frames(0, 99))) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["pan.mp4"]


def test_a_colon_in_the_name_of_a_video_is_no_protocol(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    movie("12:30:45.mp4", frames=2)
    (clip,) = find_clips("12:30:45.mp4")
    assert (clip.name, clip.num_frames, len(list(clip.frames()))) == ("12:30:45", 2, 2)


def test_quality_and_frame_rate(tmp_path):
    frames = [np.random.default_rng(k).random((64, 64, 3), np.float32) for k in range(4)]
    sizes, errors = [], []
    for quality in (0.0, 7.0, 10.0):
        write_video(tmp_path / "a.mp4", frames, 24000 / 1001, quality)
        sizes.append((tmp_path / "a.mp4").stat().st_size)
        (clip,) = find_clips(tmp_path / "a.mp4")
        assert clip.fps == 24000 / 1001 and clip.size == (64, 64)
        errors.append(np.abs(np.stack(list(clip.frames())) - frames).mean())
    assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(24000, 1001)


def test_odd_sides_are_padded_by_the_edge(tmp_path):
    write_video(tmp_path / "a.mp4", [(SCENE[:31, :47] * 255).astype(np.uint8)] * 3, 24000 / 1001)
    (clip,) = find_clips(tmp_path / "a.mp4")
    frame = next(clip.frames())
    assert frame.shape == (32, 48, 3) and clip.fps == pytest.approx(23.976, abs=1e-3)
    np.testing.assert_allclose(frame[:31, :47], SCENE[:31, :47], atol=0.06)
    np.testing.assert_allclose(frame[31, :47], SCENE[30, :47], atol=0.06)


def test_display_matrix_rotation(tmp_path):
    data = movie(tmp_path / "a.mp4").read_bytes()
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    place = data.index(upright, data.index(b"tkhd"))
    clockwise = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    (tmp_path / "b.mp4").write_bytes(data[:place] + clockwise + data[place + 36 :])
    plain, turned = (next(find_clips(tmp_path / name)[0].frames()) for name in ("a.mp4", "b.mp4"))
    np.testing.assert_array_equal(turned, np.rot90(plain, -1))


def remux(source, path):
    with av.open(str(source)) as read, av.open(str(path), "w") as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.size:
                packet.stream = stream
                write.mux(packet)
    return path


def test_frames_are_counted_without_container_count(tmp_path):
    path = remux(movie(tmp_path / "a.mp4"), tmp_path / "b.mkv")
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    (clip,) = find_clips(path)
    assert (clip.num_frames, clip.fps) == (6, 5.0) and len(list(clip.frames())) == 6


def test_damaged_videos_are_input_errors(tmp_path, capfd):
    data, path = movie(tmp_path / "a.mp4").read_bytes(), tmp_path / "b.mp4"
    for content in (b"", b"this is a text\n" * 20, *(data[: len(data) * k // 8] for k in range(1, 8)), data[:-5]):
        path.write_bytes(content)
        assert str(path) in broken(find_clips, path)
    start = data.index(b"mdat") + 4
    path.write_bytes(data[: start + 700] + b"\xff" * (len(data) - start - 700))  # no such lengths of packets
    assert str(path) in broken(read_all, path)
    assert capfd.readouterr() == ("", "")


def test_cut_matroska_is_shorter_or_an_error(tmp_path):
    data = remux(movie(tmp_path / "a.mp4"), tmp_path / "b.mkv").read_bytes()
    lengths = set()
    for cut in range(700, len(data), 25):  # it has no table of its frames: between two of them nobody sees the cut
        (tmp_path / "b.mkv").write_bytes(data[:cut])
        try:
            (clip,) = find_clips(tmp_path / "b.mkv")
            assert len(list(clip.frames())) == clip.num_frames
            lengths.add(clip.num_frames)
        except InputError as error:
            assert "b.mkv" in str(error)
            lengths.add(None)
    assert lengths <= {None, 1, 2, 3, 4, 5, 6} and None in lengths


def test_audio_only_file_is_an_input_error(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.time_base = 44100, Fraction(1, 44100)
        container.mux([*stream.encode(frame), *stream.encode()])
    assert "no video" in broken(find_clips, tmp_path / "a.mp4")


def test_interrupted_write_leaves_nothing(tmp_path):
    def frames():
        yield SCENE
        raise RuntimeError("the model stopped")

    with pytest.raises(RuntimeError, match="the model stopped"):
        write_video(tmp_path / "a.mp4", frames(), 7.0)
    assert "at least one frame" in broken(write_video, tmp_path / "a.mp4", [], 7.0)
    assert not list(tmp_path.iterdir())


# --- Finding clips ---


def test_image_is_a_clip_of_one_frame(tmp_path):
    write_png(tmp_path / "cat.v2.png", RGB)
    (clip,) = find_clips(str(tmp_path / "cat.v2.png"))
    assert (clip.name, clip.fps, clip.num_frames) == ("cat.v2", 7.0, 1)
    np.testing.assert_allclose(next(clip.frames()), RGB / 255, atol=1e-6)


def test_frame_folder_is_a_clip_in_natural_order(tmp_path):
    for number in (10, 9, 8, 12, 11):
        write_png(tmp_path / "walk" / f"frame{number}.PNG", np.full((2, 2, 3), number, np.uint8))
    (tmp_path / "walk" / ".hidden.png").write_text("")
    (tmp_path / "walk" / "notes.txt").write_text("")
    (clip,) = find_clips(tmp_path / "walk")
    assert (clip.name, clip.num_frames) == ("walk", 5)
    assert [round(255 * frame.max()) for frame in clip.frames()] == [8, 9, 10, 11, 12]
    assert [round(255 * frame.max()) for frame in clip.frames(1, 3)] == [9, 10]
    assert [found.name for found in find_clips(tmp_path)] == ["walk"]


def test_folder_of_many_clips(tmp_path):
    for name in ("clip10/0.png", "clip10/1.png", "clip2/0.png", "still.jpeg.png", "deep/er/clip3/a.png", "empty/x.txt"):
        write_png(tmp_path / name, RGB)
    (tmp_path / "empty" / "x.txt").rename(tmp_path / "empty" / "y.txt")
    movie(tmp_path / "film.mp4", frames=2)
    movie(tmp_path / ".hidden.mp4", frames=2)
    clips = {clip.name: clip.num_frames for clip in find_clips(tmp_path)}
    assert clips == {"clip2": 1, "clip10": 2, "clip3": 1, "film": 2, "still.jpeg": 1}
    assert list(clips) == ["clip2", "clip10", "clip3", "film", "still.jpeg"]


def test_rgb_files_are_the_frames_of_a_folder_of_gbuffers(tmp_path):
    for name in ("walk/0000.0000", "walk/0000.0001", "run/0000.0000"):
        for label in ("rgb", "normal", "env0000"):
            write_png(tmp_path / "set" / f"{name}.{label}.png", RGB)
    write_png(tmp_path / "set" / "contact.png", RGB)
    write_png(tmp_path / "set" / "walk.contact.png", RGB)
    movie(tmp_path / "set" / "walk.viz.mp4", frames=2)
    movie(tmp_path / "set" / "film.mp4", frames=2)
    clips = {clip.name: [path.name for path in clip.paths] for clip in find_clips(tmp_path / "set")}
    walk = ["0000.0000.rgb.png", "0000.0001.rgb.png"]
    assert clips == {"film": ["film.mp4"], "run": walk[:1], "walk": walk}
    assert [path.name for path in find_clips(tmp_path / "set" / "walk")[0].paths] == walk


def test_frames_of_different_size_are_an_input_error(tmp_path):
    write_png(tmp_path / "clip" / "1.png", RGB)
    write_png(tmp_path / "clip" / "2.png", RGB[:, :30])
    message = broken(find_clips, tmp_path)
    assert "2.png has 30x20" in message and "1.png 31x20" in message


def test_no_clips_is_an_input_error(tmp_path):
    assert "does not exist" in broken(find_clips, tmp_path / "none")
    assert "no images or videos" in broken(find_clips, tmp_path)
    (tmp_path / "a.txt").write_text("")
    assert "no images or videos" in broken(find_clips, tmp_path)
    assert ".png" in broken(find_clips, tmp_path / "a.txt")


def test_clips_of_one_name_in_a_folder_get_their_suffixes(tmp_path):
    write_png(tmp_path / "a.png", RGB), write_png(tmp_path / "b.png", RGB)
    movie(tmp_path / "a.mp4", frames=2)
    assert [(clip.name, clip.num_frames) for clip in find_clips(tmp_path)] == [("a_mp4", 2), ("a_png", 1), ("b", 1)]
    write_png(tmp_path / "a.PNG", RGB)
    message = broken(find_clips, tmp_path)
    assert "_a_png'" in message and "a.PNG" in message and "a.png" in message and "rename one" in message


def test_sequences_of_a_folder_are_clips(tmp_path):
    names = ("0000", "0001", "0000_mask", "0001_mask", "poster")
    for name in names:
        write_png(tmp_path / "shot" / f"{name}.png", RGB)
    clips = {clip.name: [path.stem for path in clip.paths] for clip in find_clips(tmp_path / "shot")}
    assert clips == {"shot": [*names[:2]], "shot_mask": [*names[2:4]], "poster": ["poster"]}
    movie(tmp_path / "shot" / "film.mp4", frames=2)
    assert [clip.num_frames for clip in find_clips(tmp_path / "shot")] == [2, 2, 2, 1]


def test_missing_frames_are_named(tmp_path):
    for number in (1001, 1002, 1003, 1006, 1007, 1009):
        write_png(tmp_path / "walk" / f"p.{number}.png", RGB)
    with pytest.warns(UserWarning, match=r"walk: frames are missing .*: 1004 to 1005, 1008; the clip jumps there"):
        assert find_clips(tmp_path)[0].num_frames == 6


def test_files_that_are_not_read_are_named(tmp_path):
    write_png(tmp_path / "photos/IMG_1.png", RGB)
    for name in ("IMG_2.HEIC", "IMG_3.heic", "notes.txt"):
        (tmp_path / "photos" / name).touch()
    with pytest.warns(UserWarning, match=r"photos: 2 files such as IMG_2.HEIC are not read; convert them"):
        assert len(find_clips(tmp_path)) == 1
    for frame in range(3):
        write_exr(tmp_path / f"render/{frame}.exr", {c: np.zeros((4, 4)) for c in "RGB"})
    write_png(tmp_path / "render/preview.png", RGB)
    with pytest.warns(
        UserWarning, match=r"render: 3 files such as 0.exr are not read; beside .* a folder of their own"
    ):
        assert [clip.paths[0].name for clip in find_clips(tmp_path / "render")] == ["preview.png"]
    with pytest.raises(InputError, match=r"f.%04d.png does not exist; give the folder of the frames"):
        find_clips(tmp_path / "f.%04d.png")


@pytest.mark.parametrize(("rate", "expected"), [((24000, 1001), 24000 / 1001), ((0, 1), 7.0), (None, 7.0)])
def test_frame_rate_of_exr_sequences(tmp_path, rate, expected):
    for frame in range(2):
        spec, output = oiio.ImageSpec(4, 4, 3, "half"), oiio.ImageOutput.create("a.exr")
        if rate:
            spec.attribute("FramesPerSecond", "rational", rate)
        assert output.open(str(tmp_path / f"{frame}.exr"), spec)
        assert output.write_image(np.zeros((4, 4, 3), np.float32)) and output.close()
    assert find_clips(tmp_path)[0].fps == pytest.approx(expected)


def test_an_encoding_of_images_is_not_ignored_for_videos(tmp_path):
    with pytest.warns(UserWarning, match=r"a.mp4: --input-transfer and --input-layers are not for videos"):
        find_clips(movie(tmp_path / "a.mp4", frames=1), assumed=InputEncoding(transfer="linear"))


def test_clips_of_one_name_get_their_parents_names(tmp_path):
    for folder in ("a/cam/rgb", "b/cam/rgb", "b/other"):
        for label in ("rgb", "depth") if folder == "a/cam/rgb" else ("rgb",):
            write_png(tmp_path / folder.replace("rgb", label) / "0.png", RGB)
    movie(tmp_path / "a" / "take.mp4", frames=1)
    movie(tmp_path / "b" / "take.mp4", frames=1)
    names = [clip.name for clip in find_clips(tmp_path)]
    assert names == ["a_cam_rgb", "a_take", "b_cam_rgb", "other", "b_take"]


def test_links_have_names_of_their_own(tmp_path):
    (tmp_path / "clips" / "sub").mkdir(parents=True)
    for name in ("a", "b"):
        write_png(tmp_path / "store" / name / "frames" / "0.png", RGB)
        (tmp_path / "clips" / name).symlink_to(tmp_path / "store" / name / "frames")
    for folder, blob in (("clips", "x"), ("clips/sub", "y")):  # as Hugging Face's cache stores them
        movie(tmp_path / f"{blob}.mp4", frames=1)
        (tmp_path / folder / "take.mp4").symlink_to(tmp_path / f"{blob}.mp4")
    assert [clip.name for clip in find_clips(tmp_path / "clips")] == ["a", "b", "sub_take", "clips_take"]


def test_frames_that_chunks_share_are_read_once(tmp_path):
    frames = [np.full((2, 2, 3), value, np.uint8) for value in range(10)]
    for chunk, start in enumerate((0, 3, 6)):
        for i, frame in enumerate(frames[start : start + 5]):
            write_png(tmp_path / "walk" / f"{chunk:04d}.{i:04d}.rgb.png", frame)
    (clip,) = find_clips(tmp_path / "walk")
    assert [round(255 * frame.max()) for frame in clip.frames()] == [*range(10)]


def test_names_of_files_may_hold_colons(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    movie(tmp_path / "12:30:45.mp4", frames=2)
    write_png("a:b.png", RGB)
    assert {clip.name: len(list(clip.frames())) for clip in find_clips(".")} == {"12:30:45": 2, "a:b": 1}
    assert find_clips("12:30:45.mp4")[0].size == (32, 48) and find_clips("a:b.png")[0].size == (20, 31)


def test_equal_frames_give_equal_bytes(tmp_path):
    """x264's macroblock tree made eight different files of twelve of this."""
    noise = np.random.default_rng(0).random((10, 64, 64, 3)).astype(np.float32)
    flat = np.full((64, 64, 3), 0.5, np.float32)
    y, x = np.mgrid[0:64, 0:64].astype(np.float32) / 64
    soft = np.stack([y, x, 1 - y], axis=-1)
    changed = [np.clip(soft + 0.1 * (image.mean(-1, keepdims=True) - 0.5), 0, 1) for image in noise]
    flicker = [flat + 0.2 * (image[:1, :1] - 0.5) for image in noise]
    frames = [side_by_side([a, flat, b, c, soft, flat]) for a, b, c in zip(noise, changed, flicker, strict=True)]
    for i in range(12):
        write_video(tmp_path / f"{i}.mp4", iter(frames), 7.0)
    assert len({(tmp_path / f"{i}.mp4").read_bytes() for i in range(12)}) == 1


def test_links_to_folders_above_are_passed_over(tmp_path):
    write_png(tmp_path / "clips/a/0.png", SCENE)
    for name in ("b", "c", "d"):
        (tmp_path / "clips" / name).symlink_to(".")
        (tmp_path / "clips/a" / name).symlink_to("..")
    (tmp_path / "clips/e").symlink_to(tmp_path)
    (clip,) = find_clips(tmp_path / "clips")
    assert clip.name == "a" and clip.num_frames == 1


def test_search_is_bounded(tmp_path, monkeypatch):
    folder = tmp_path.joinpath(*"f" * 900)
    write_png(folder / "0.png", SCENE)
    assert "more than 64 folders deep" in broken(find_clips, tmp_path)
    assert sum(file.is_file() for file in tmp_path.rglob("*")) == 1
    monkeypatch.setattr(video, "MAX_FOLDERS", 50)
    for i in range(12):  # each folder holds the next one twice
        (tmp_path / f"links/{i}").mkdir(parents=True)
        for name in "ab":
            (tmp_path / f"links/{i}/{name}").symlink_to(f"../{i + 1}")
    assert "or 50 in all; give one of its folders" in broken(find_clips, tmp_path / "links/0")


def test_maps_beside_synthetic_clips_are_no_clips(tmp_path):
    for name in ("00000", "00001"):
        write_png(tmp_path / name / "0000.0000.rgb.png", np.zeros((8, 8, 3), np.float32))
    write_exr(tmp_path / "environments" / "sunrise.exr", dict.fromkeys("RGB", np.ones((8, 16), np.float32)))
    assert [clip.name for clip in find_clips(tmp_path)] == ["00000", "00001"]
