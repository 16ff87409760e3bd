"""Stills against Pillow and OpenEXR, video against imageio, and files that are broken in every way."""

import struct
import zlib
from fractions import Fraction
from functools import partial

import av
import imageio.v3 as iio
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from drender.errors import InputError
from drender.media import cover_size, find_clips, fit_cover, read_hdr, read_image, write_png, write_video

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (20, 31, 4)).astype(np.uint8)
RGB, RGBA = COLOUR[..., :3], COLOUR
ramp = np.linspace(0, 1, 48)
SCENE = np.stack(np.broadcast_arrays(ramp[:32, None], ramp[None, :], 0.5), axis=-1).astype(np.float32)  # 32×48, smooth


def broken(function, *arguments):
    """The message of the InputError that a call raises, checked to be one line."""
    with pytest.raises(InputError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def movie(path, frames=6):
    write_video(path, (np.roll(SCENE, 4 * k, axis=1) for k in range(frames)), 5.0)
    return path


def radiance_header(height, width):
    return b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n" % (height, width)


def read_all(path):
    return [frame for clip in find_clips(path) for frame in clip.frames()]


# ---- Reading stills ----


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_lossless_formats(tmp_path, suffix):
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    for image in (RGB, RGBA):
        Image.fromarray(image).save(tmp_path / f"a.{suffix}", **options)
        found = read_image(tmp_path / f"a.{suffix}")
        alpha = image[..., 3:] / 255 if image.shape[2] == 4 else 1
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, image[..., :3] / 255 * alpha, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "I;16"])
def test_grey_palettes_and_single_bits(tmp_path, mode):
    if mode == "I;16":
        values = RNG.integers(0, 65536, (9, 7)).astype(np.uint16)
        image, expected = Image.fromarray(values), np.repeat(values[..., None] / 65535, 3, axis=-1)
    else:
        image = Image.fromarray(RGBA).convert("RGB" if mode == "P" else "RGBA").convert(mode)
        rgba = np.asarray(image.convert("RGBA")) / 255
        expected = rgba[..., :3] * rgba[..., 3:]
    image.save(tmp_path / "a.png")
    np.testing.assert_allclose(read_image(tmp_path / "a.png"), expected, atol=1e-6)


def test_palette_with_a_transparent_entry(tmp_path):
    Image.fromarray(RGB).quantize(8).save(tmp_path / "a.png", transparency=2)
    rgba = np.asarray(Image.open(tmp_path / "a.png").convert("RGBA")) / 255
    assert (rgba[..., 3] == 0).any()
    np.testing.assert_allclose(read_image(tmp_path / "a.png"), rgba[..., :3] * rgba[..., 3:], atol=1e-6)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray((SCENE * 255).astype(np.uint8)).save(tmp_path / f"a.{suffix}", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / f"a.{suffix}"))) / 255
    found = read_image(tmp_path / f"a.{suffix}")
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2 / 255)  # two JPEG decoders
    assert find_clips(tmp_path / f"a.{suffix}")[0].num_frames == 1


def test_content_counts_more_than_the_suffix(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg"), RGB / 255, atol=1e-6)


@pytest.mark.parametrize(("channels", "kind"), [("RGB", "f4"), ("RGB", "f2"), ("RGBA", "f4"), ("Y", "f2"), ("Z", "f4")])
def test_exr(tmp_path, channels, kind):
    OpenEXR = pytest.importorskip("OpenEXR")
    values = RNG.normal(0, 100, (8, 12, len(channels))).astype(kind)
    values[0, 0], values[1, 1] = np.inf, np.nan
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    pixels = values if len(channels) > 1 else values[..., 0].copy()
    OpenEXR.File(header, {channels: pixels}).write(str(tmp_path / "a.exr"))
    expected = values[..., :3].astype(np.float32) * np.ones(3, np.float32)  # alpha is multiplied in already
    np.testing.assert_array_equal(read_hdr(tmp_path / "a.exr"), expected)
    np.testing.assert_array_equal(read_image(tmp_path / "a.exr"), expected)


@pytest.mark.parametrize("compressed", [False, True])
def test_radiance(tmp_path, compressed):
    mantissas, exponents = RNG.integers(128, 256, (5, 16, 3)), RNG.integers(110, 150, (5, 16, 1))
    rgbe = np.concatenate([mantissas, exponents], axis=-1).astype(np.uint8)
    data = rgbe.tobytes()
    if compressed:  # every channel of a row as one literal run of 16
        data = b"".join(b"\x02\x02\x00\x10" + b"".join(b"\x10" + bytes(row[:, c]) for c in range(4)) for row in rgbe)
    (tmp_path / "a.hdr").write_bytes(radiance_header(5, 16) + data)
    np.testing.assert_allclose(read_hdr(tmp_path / "a.hdr"), mantissas * 2.0 ** (exponents - 136.0), rtol=0.005)


def test_an_ldr_environment_is_linearised_with_a_warning(tmp_path):
    write_png(tmp_path / "a.png", np.array([[[0, 0.04, 0.5], [1, 0.2, 0.8]]], np.float32), bits=16)
    with pytest.warns(UserWarning, match=r"a\.png is no HDR image"):
        found = read_hdr(tmp_path / "a.png")
    np.testing.assert_allclose(found[0], [[0, 0.0030960, 0.2140411], [1, 0.0331048, 0.6038274]], atol=2e-5)


# ---- Writing stills ----


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([8, 16]), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_png_round_trip_is_exact(tmp_path_factory, height, width, bits, seed):
    path = tmp_path_factory.getbasetemp() / "round.png"
    stored = np.random.default_rng(seed).integers(0, 2**bits, (height, width, 3))
    image = (stored / (2**bits - 1)).astype(np.float32)
    write_png(path, image, bits)
    found = read_image(path)
    np.testing.assert_array_equal(np.rint(found * (2**bits - 1)), stored)
    write_png(path, found, bits)
    np.testing.assert_array_equal(read_image(path), found)


def test_png_as_others_see_it(tmp_path):
    write_png(tmp_path / "sub" / "a.png", RGB)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "sub" / "a.png")), RGB)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.png"]


def test_png_rounds_to_nearest_and_clips(tmp_path):
    write_png(tmp_path / "a.png", np.array([[[-1, 0.49 / 255, 0.51 / 255], [254.6 / 255, 1.5, np.inf]]], np.float32))
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[[0, 0, 1], [255, 255, 255]]]


def test_writing_where_one_cannot(tmp_path):
    (tmp_path / "file").write_text("")
    for name, write, pixels in (("a.png", write_png, SCENE), ("a.mp4", partial(write_video, fps=7.0), [SCENE])):
        assert str(tmp_path / "file" / name) in broken(write, tmp_path / "file" / name, pixels)
        (tmp_path / name).mkdir()
        assert "cannot write" in broken(write, tmp_path / name, pixels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a.png", "file"]


@pytest.mark.parametrize("limit", [0, 100, 5000])
def test_a_full_disk(tmp_path, limit):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = RNG.random((64, 64, 3)).astype(np.float32)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        messages = [
            broken(write_png, tmp_path / "a.png", noise),
            broken(write_video, tmp_path / "a.mp4", [noise] * 9, 7.0),
        ]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert all("cannot write" in message for message in messages)
    assert not list(tmp_path.iterdir())


# ---- Broken stills ----


def png(width, height, data=b""):
    chunk = lambda kind, x: struct.pack(">I", len(x)) + kind + x + struct.pack(">I", zlib.crc32(kind + x))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "hdr", "exr"])
def test_broken_images_are_input_errors_without_noise(tmp_path, suffix, capfd):
    path = tmp_path / f"a.{suffix}"
    if suffix == "hdr":
        whole = radiance_header(20, 30) + bytes(RNG.integers(3, 256, 20 * 30 * 4).tolist())
    elif suffix == "exr":
        OpenEXR = pytest.importorskip("OpenEXR")
        OpenEXR.File({"type": OpenEXR.scanlineimage}, {"RGB": RNG.random((20, 30, 3), np.float32)}).write(str(path))
        whole = path.read_bytes()
    else:
        Image.fromarray(RGB).save(path)
        whole = path.read_bytes()
    contents = [b"", b"x", b"this is a text\n" * 20, *(whole[: len(whole) * k // 8] for k in range(1, 8)), whole[:-20]]
    for content in contents:
        path.write_bytes(content)
        assert str(path) in broken(read_image, path)
        if suffix not in ("hdr", "exr"):
            broken(read_all, path)
    path.write_bytes(whole)
    assert read_image(path).shape[2] == 3
    assert capfd.readouterr() == ("", "")


def test_damage_in_a_png_is_noticed(tmp_path, capfd):
    write_png(tmp_path / "a.png", RGB)
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[-200] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    assert "damaged" in broken(read_image, tmp_path / "a.png")
    assert capfd.readouterr() == ("", "")


def test_absurd_sizes_take_no_memory(tmp_path, capfd):
    for width, height in ((0, 5), (5, 0), (100_000, 100_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)):
        (tmp_path / "a.png").write_bytes(png(width, height))
        (tmp_path / "a.hdr").write_bytes(radiance_header(height, width) + b" " * 99)
        assert "a.png" in broken(read_image, tmp_path / "a.png")
        assert "a.hdr" in broken(read_hdr, tmp_path / "a.hdr")
    assert capfd.readouterr() == ("", "")


def test_paths_that_are_no_images(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "a.txt").write_text("")
    assert "is not a file" in broken(read_image, tmp_path / "folder.png")
    assert "does not exist" in broken(read_image, tmp_path / "none.png")
    assert "known: .png" in broken(read_image, tmp_path / "a.txt")


# ---- Video ----


def test_video_round_trip(tmp_path):
    (clip,) = find_clips(movie(tmp_path / "pan.mp4"))
    assert (clip.name, clip.fps, clip.num_frames) == ("pan", 5.0, 6)
    frames = np.stack(list(clip.frames()))
    assert np.abs(frames - [np.roll(SCENE, 4 * k, axis=1) for k in range(6)]).mean() < 0.01
    np.testing.assert_allclose(frames, iio.imread(tmp_path / "pan.mp4", plugin="pyav") / 255, atol=1e-6)
    np.testing.assert_array_equal(np.stack(list(clip.frames(2, 5))), frames[2:5])
    assert len(list(clip.frames(4))) == 2 and not list(clip.frames(6)) and len(list(clip.frames(0, 99))) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["pan.mp4"]


def test_video_of_odd_sides_and_uint8_grows_by_its_edge(tmp_path):
    write_video(tmp_path / "a.mp4", [(SCENE[:31, :47] * 255).astype(np.uint8)] * 3, 24000 / 1001)
    (clip,) = find_clips(tmp_path / "a.mp4")
    frame = next(clip.frames())
    assert frame.shape == (32, 48, 3) and clip.fps == pytest.approx(23.976, abs=1e-3)
    np.testing.assert_allclose(frame[:31, :47], SCENE[:31, :47], atol=0.06)
    np.testing.assert_allclose(frame[31, :47], SCENE[30, :47], atol=0.06)


def test_video_turned_by_its_display_matrix(tmp_path):
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


def test_frames_are_counted_where_the_container_gives_no_number(tmp_path):
    path = remux(movie(tmp_path / "a.mp4"), tmp_path / "b.mkv")
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    (clip,) = find_clips(path)
    assert (clip.num_frames, clip.fps) == (6, 5.0) and len(list(clip.frames())) == 6


def test_broken_videos_are_input_errors(tmp_path, capfd):
    data, path = movie(tmp_path / "a.mp4").read_bytes(), tmp_path / "b.mp4"
    for content in (b"", b"this is a text\n" * 20, *(data[: len(data) * k // 8] for k in range(1, 8)), data[:-5]):
        path.write_bytes(content)
        assert str(path) in broken(find_clips, path)
    start = data.index(b"mdat") + 4
    path.write_bytes(data[: start + 700] + b"\xff" * (len(data) - start - 700))  # no such lengths of packets
    assert str(path) in broken(read_all, path)
    assert capfd.readouterr() == ("", "")


def test_a_cut_matroska_file_is_an_error_or_shorter(tmp_path):
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


def test_sound_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.time_base = 44100, Fraction(1, 44100)
        container.mux([*stream.encode(frame), *stream.encode()])
    assert "no video" in broken(find_clips, tmp_path / "a.mp4")


def test_an_interrupted_video_leaves_nothing(tmp_path):
    def frames():
        yield SCENE
        raise RuntimeError("the model stopped")

    with pytest.raises(RuntimeError, match="the model stopped"):
        write_video(tmp_path / "a.mp4", frames(), 7.0)
    assert "at least one frame" in broken(write_video, tmp_path / "a.mp4", [], 7.0)
    assert not list(tmp_path.iterdir())


# ---- Finding clips ----


def test_an_image_is_a_clip_of_one_frame(tmp_path):
    write_png(tmp_path / "cat.v2.png", RGB)
    (clip,) = find_clips(str(tmp_path / "cat.v2.png"))
    assert (clip.name, clip.fps, clip.num_frames) == ("cat.v2", 7.0, 1)
    np.testing.assert_allclose(next(clip.frames()), RGB / 255, atol=1e-6)


def test_a_folder_of_frames_is_a_clip_in_natural_order(tmp_path):
    for number in (10, 9, 1, 2, 11):
        write_png(tmp_path / "walk" / f"frame{number}.PNG", np.full((2, 2, 3), number, np.uint8))
    (tmp_path / "walk" / ".hidden.png").write_text("")
    (tmp_path / "walk" / "notes.txt").write_text("")
    (clip,) = find_clips(tmp_path / "walk")
    assert (clip.name, clip.num_frames) == ("walk", 5)
    assert [round(255 * frame.max()) for frame in clip.frames()] == [1, 2, 9, 10, 11]
    assert [round(255 * frame.max()) for frame in clip.frames(1, 3)] == [2, 9]
    assert [found.name for found in find_clips(tmp_path)] == ["walk"]


def test_a_folder_of_many_clips(tmp_path):
    for name in ("clip10/0.png", "clip10/1.png", "clip2/0.png", "still.jpeg.png", "deep/er/clip3/a.png", "empty/x.txt"):
        write_png(tmp_path / name, RGB)
    (tmp_path / "empty" / "x.txt").rename(tmp_path / "empty" / "y.txt")
    movie(tmp_path / "film.mp4", frames=2)
    movie(tmp_path / ".hidden.mp4", frames=2)
    clips = {clip.name: clip.num_frames for clip in find_clips(tmp_path)}
    assert clips == {"clip2": 1, "clip10": 2, "clip3": 1, "film": 2, "still.jpeg": 1}
    assert list(clips) == ["clip2", "clip10", "clip3", "film", "still.jpeg"]


def test_frames_of_different_size(tmp_path):
    write_png(tmp_path / "clip" / "1.png", RGB)
    write_png(tmp_path / "clip" / "2.png", RGB[:, :30])
    message = broken(find_clips, tmp_path)
    assert "2.png has 30x20" in message and "1.png 31x20" in message


def test_nothing_to_read(tmp_path):
    assert "does not exist" in broken(find_clips, tmp_path / "none")
    assert "no images or videos" in broken(find_clips, tmp_path)
    (tmp_path / "a.txt").write_text("")
    assert "no images or videos" in broken(find_clips, tmp_path)
    assert ".png" in broken(find_clips, tmp_path / "a.txt")


def test_two_clips_of_one_name(tmp_path):
    write_png(tmp_path / "a.png", RGB)
    movie(tmp_path / "a.mp4", frames=2)
    message = broken(find_clips, tmp_path)
    assert "two clips are named 'a'" in message and "a.png" in message and "a.mp4" in message


# ---- Sizes ----

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
    frames = RNG.random((2, 48, 64, 3)).astype(np.float32)
    found = fit_cover(frames, (64, 64))
    expected = jax.image.resize(frames, (2, 64, 128, 3), "linear", antialias=True)
    assert found.shape == (2, 64, 128, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(fit_cover(frames[1], (64, 64)), found[1])


def test_fit_cover_keeps_what_fits_and_takes_one_pixel():
    frames = RNG.random((1, 64, 128, 3)).astype(np.float32)
    np.testing.assert_array_equal(fit_cover(frames, (64, 128)), frames)
    assert fit_cover(frames[0, :63, :65]).shape == (64, 128, 3)
    pixel = np.full((1, 1, 3), 0.3, np.float32)
    np.testing.assert_allclose(fit_cover(pixel, (64, 64)), np.full((64, 64, 3), 0.3), atol=1e-6)


def test_shrinking_is_antialiased():
    checkers = np.indices((256, 256)).sum(axis=0) % 2
    found = fit_cover(np.repeat(checkers[..., None], 3, axis=-1).astype(np.float32), (64, 64))
    np.testing.assert_allclose(found, 0.5, atol=0.02)
