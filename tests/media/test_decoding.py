"""Videos as cameras, phones and editors write them: the reader returns what a player shows."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from helpers.refusals import broken

from drender.media import decoding
from drender.media.decoding import probe
from drender.media.video import find_clips, write_video

COLORS = np.array([[(200, 40, 40), (40, 200, 40)], [(40, 40, 200), (200, 200, 200)]])
QUADRANTS = COLORS.repeat(32, axis=0).repeat(32, axis=1) / 255  # sRGB
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
CONVERT = "convert the video to Rec. 709, HDR10 or HLG"


def encode(path, frames, codec="ffv1", pix_fmt="yuv444p", options=None, matrix=None, times=None, rate=24, **tags):
    """Write RGB(A) frames of uint8 or uint16; `tags` are attributes of the codec's context."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, channels = frames[0].shape
        stream.pix_fmt = pix_fmt
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for index, frame in enumerate(frames):
            name = {(3, 1): "rgb24", (4, 1): "rgba", (3, 2): "rgb48le", (4, 2): "rgba64le"}[channels, frame.itemsize]
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=name)
            picture = picture.reformat(format=pix_fmt, **({} if matrix is None else {"dst_colorspace": matrix}))
            picture.pts, picture.time_base = (times or range(len(frames)))[index], Fraction(1, 1000 if times else rate)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def read(path):
    (clip,) = find_clips(path)
    frames = list(clip.frames())
    assert len(frames) == clip.num_frames
    return clip, np.stack(frames)


def integers(image, dtype=np.uint8):
    return np.rint(np.asarray(image) * np.iinfo(dtype).max).astype(dtype)


def quadrant_levels(frame):
    """Return the colors in the centers of the quadrants, in 255ths."""
    h, w = frame.shape[:2]
    return 255 * frame[h // 4 :: h // 2, w // 4 :: w // 2]


# --- number of frames and frame rate ---


def cut_at_second_keyframe(source, path):
    """Copy the packets from the second keyframe on, as editors cut without re-encoding."""
    with av.open(str(source)) as read, av.open(str(path), "w") as write:
        stream, keyframes, packets = write.add_stream_from_template(read.streams.video[0]), 0, 0
        for packet in read.demux(video=0):
            keyframes += packet.is_keyframe
            if packet.size and keyframes > 1:
                packet.stream = stream
                write.mux(packet)
                packets += 1
    return packets


@pytest.mark.parametrize(
    ("codec", "options", "tags"),
    [
        ("libx264", {"x264-params": "open-gop=1:keyint=8:min-keyint=8:bframes=3:scenecut=0"}, {}),
        ("mpeg2video", {}, {"gop_size": 8, "max_b_frames": 2}),
    ],
)
def test_frames_of_a_cut_clip_are_those_that_can_be_shown(tmp_path, codec, options, tags):
    frames = [np.roll(NOISE, 2 * k, axis=1) for k in range(24)]
    encode(tmp_path / "a.mkv", frames, codec, "yuv420p", options, **tags)
    packets = cut_at_second_keyframe(tmp_path / "a.mkv", tmp_path / "b.mkv")
    clip, found = read(tmp_path / "b.mkv")
    assert 10 < clip.num_frames < packets
    _, whole = read(tmp_path / "a.mkv")
    np.testing.assert_array_equal(found, whole[-clip.num_frames :])


def test_an_ordinary_video_is_opened_once_to_be_probed(tmp_path, monkeypatch):
    path, opened = encode(tmp_path / "a.mkv", [NOISE] * 9, rate=25), []
    monkeypatch.setattr(decoding.av, "open", lambda *a, open=av.open, **k: opened.append(a) or open(*a, **k))
    assert probe(path) == (25, 9)
    assert len(opened) == 1


def test_faults_that_players_pass_over_are_not_refused(tmp_path):
    path = encode(tmp_path / "a.mp4", [NOISE] * 3, "libx264", "yuv420p")
    data, intact = path.read_bytes(), read(path)[1]
    start = data.index(b"\x06\x05\xff")  # a message of the encoder, and its size, which is now wrong
    path.write_bytes(data[: start + 2] + b"\xff" * 4 + data[start + 6 :])
    np.testing.assert_array_equal(read(path)[1], intact)


def test_hidden_frames_are_not_counted(tmp_path):
    frames = [np.roll(NOISE, 2 * k, axis=1) for k in range(24)]
    options = {"auto-alt-ref": "1", "lag-in-frames": "16", "crf": "30", "b": "200k"}
    encode(tmp_path / "a.webm", frames, "libvpx", "yuv420p", options)
    with av.open(str(tmp_path / "a.webm")) as container:
        expected = len(list(container.decode(video=0)))
    assert read(tmp_path / "a.webm")[0].num_frames == expected


def test_variable_frame_rate_gives_the_mean_rate(tmp_path):
    times = [0, 33, 67, 100, 500, 900, 1300]
    encode(tmp_path / "a.mkv", [NOISE] * 7, times=times, rate=30)
    assert probe(tmp_path / "a.mkv") == (pytest.approx(6 / 1.3), 7)


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), 25, 60])
def test_constant_frame_rate_is_the_declared_one(tmp_path, rate):
    write_video(tmp_path / "a.mp4", [QUADRANTS] * 3, float(rate))
    assert probe(tmp_path / "a.mp4") == (float(rate), 3)


# --- geometry ---


@pytest.mark.parametrize("turn", [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1)])
@pytest.mark.parametrize("transposed", [False, True])
def test_display_matrix_mirrors_and_rotates(tmp_path, turn, transposed):
    write_video(tmp_path / "a.mp4", [QUADRANTS[:, :48]] * 2, 7.0)
    data = (tmp_path / "a.mp4").read_bytes()
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = (turn[1], turn[0], turn[3], turn[2]) if transposed else turn
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    place = data.index(identity, data.index(b"tkhd"))
    (tmp_path / "b.mp4").write_bytes(data[:place] + matrix + data[place + 36 :])
    _, (plain, _) = read(tmp_path / "a.mp4")
    _, (found, _) = read(tmp_path / "b.mp4")
    assert found.shape == (plain.swapaxes(0, 1) if transposed else plain).shape
    y, x = np.indices(plain.shape[:2])
    across, down = a * x + c * y, b * x + d * y
    expected = np.empty(found.shape, np.float32)
    expected[down - down.min(), across - across.min()] = plain
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("aspect", "size"), [(Fraction(2), (64, 128)), (Fraction(1, 2), (128, 64)), (1, (64, 64))])
def test_anamorphic_pixels_become_square(tmp_path, aspect, size):
    image, options = integers(QUADRANTS), {"crf": "4"}
    encode(tmp_path / "a.mkv", [image] * 2, "libx264", "yuv420p", options, sample_aspect_ratio=aspect)
    clip, found = read(tmp_path / "a.mkv")
    assert clip.size == size
    np.testing.assert_allclose(quadrant_levels(found[0]), COLORS, atol=3)


def test_interlaced_video_is_deinterlaced(tmp_path):
    ramp = np.broadcast_to(np.linspace(0, 1, 64), (64, 64))
    frames = []
    for k in range(6):  # every second row is of a later time
        fields = [np.roll(ramp, 8 * k + shift, axis=1) for shift in (0, 4)]
        rows = np.where(np.arange(64)[:, None] % 2 == 0, *fields)
        frames.append(integers(np.repeat(rows[..., None], 3, axis=-1)))
    encode(tmp_path / "a.mkv", frames, "libx264", "yuv420p", {"x264-params": "tff=1", "crf": "10"})
    encode(tmp_path / "b.mkv", frames, "libx264", "yuv420p", {"crf": "10"})
    combing = [np.abs(np.diff(read(tmp_path / name)[1], axis=1)).mean() for name in ("a.mkv", "b.mkv")]
    assert combing[0] < 0.25 * combing[1]
    assert probe(tmp_path / "a.mkv") == (24.0, 6)


class Bits:
    """A bit string of H.264 (ITU-R H.264, 7.3 and 9.1)."""

    def __init__(self, *values):
        """Write (value, bits), or a value alone as an Exp-Golomb code."""
        self.text = ""
        for value in values:
            code = f"{value + 1:b}" if isinstance(value, int) else f"{value[0]:0{value[1]}b}"
            self.text += "0" * (len(code) - 1) + code if isinstance(value, int) else code

    def unit(self, kind, pixels=b""):
        """Return the NAL unit of a kind, with the raw pixels of a macroblock after the next whole byte."""
        text = self.text + "0" * (-len(self.text) % 8 if pixels else 0)
        text += "".join(f"{byte:08b}" for byte in pixels) + "1"
        return b"\0\0\0\1" + bytes([kind]) + int(text + "0" * (-len(text) % 8), 2).to_bytes(-(-len(text) // 8))


def test_two_packets_per_frame_of_camcorders_are_one_frame(tmp_path):
    """Field pictures of AVCHD, each a packet: 16x32 pixels, in one raw macroblock of each field."""
    bit = lambda value: (value, 1)
    headers = Bits((77, 8), (0, 8), (30, 8), 0, 0, 2, 1, bit(0), 0, 0, *map(bit, (0, 0, 1, 0, 0))).unit(0x67)
    headers += Bits(0, 0, (0, 2), 0, 0, 0, (0, 3), 0, 0, 0, (4, 3)).unit(0x68)
    fields = []
    for frame in range(6):
        for bottom in (0, 1):
            idr = (0, bit(0), bit(0)) if not bottom else (bit(0),)
            level = 40 + 20 * frame + 5 * bottom
            slice_header = Bits(0, 7, 0, (0, 4), bit(1), bit(bottom), *idr, 0, 1, 25)
            field = slice_header.unit(0x61 if bottom else 0x65, bytes([level] * 256 + [128] * 128))
            fields.append(b"\0\0\0\1\x09\x10" + (field if bottom else headers + field))
    (tmp_path / "a.h264").write_bytes(b"".join(fields))
    with av.open(str(tmp_path / "a.h264")) as read_from, av.open(str(tmp_path / "a.mts"), "w", "mpegts") as write:
        stream = write.add_stream_from_template(read_from.streams.video[0])
        for index, packet in enumerate(filter(lambda packet: packet.size, read_from.demux(video=0))):
            packet.pts = packet.dts = index
            packet.time_base, packet.stream = Fraction(1, 50), stream
            write.mux(packet)
    clip, found = read(tmp_path / "a.mts")
    assert (clip.num_frames, clip.fps) == (6, pytest.approx(25))
    levels = [(40 + 20 * frame + 2.5 - 16) / 219 for frame in range(6)]
    np.testing.assert_allclose(found.mean(axis=(1, 2, 3)), levels, atol=0.02)


# --- color ---

A, B, C = 0.17883277, 0.28466892, 0.55991073  # of HLG (ITU-R BT.2100)
TO_REC2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # BT.2087
TO_P3 = np.array([[0.8225, 0.1774, 0.0], [0.0332, 0.9669, 0.0], [0.0171, 0.0724, 0.9108]])


def linear(srgb):
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def hlg(scene):
    """Encode light relative to diffuse white: 0.265 of the scene's range, a signal of 75 %."""
    scene = scene * 0.265
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), A * np.log(np.maximum(12 * scene - B, 1e-9)) + C)


def pq(light):
    """Encode light relative to diffuse white of 203 nits (SMPTE ST 2084)."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    y = (light * 203 / 10000) ** m1
    return ((c1 + c2 * y) / (1 + c3 * y)) ** m2


@pytest.mark.parametrize(("curve", "trc"), [(hlg, 18), (pq, 16)])
@pytest.mark.parametrize(("primaries", "to_wide"), [(9, TO_REC2020), (12, TO_P3)])
def test_hdr_video_becomes_srgb(tmp_path, curve, trc, primaries, to_wide):
    signal = integers(curve(linear(QUADRANTS) @ to_wide.T), np.uint16)
    tags = {"color_trc": trc, "color_primaries": primaries, "colorspace": 9, "color_range": 1}
    encode(tmp_path / "a.mkv", [signal] * 2, pix_fmt="yuv444p10le", matrix="BT2020", **tags)
    _, found = read(tmp_path / "a.mkv")
    np.testing.assert_allclose(quadrant_levels(found[0]), COLORS, atol=3)


def test_hdr_highlights_roll_off_monotonically(tmp_path):
    light = np.repeat(np.geomspace(0.1, 20, 64)[None, :, None], 3, axis=-1).repeat(16, axis=0)
    tags = {"color_trc": 16, "color_primaries": 9, "colorspace": 9, "color_range": 1}
    encode(tmp_path / "a.mkv", [integers(pq(light), np.uint16)], pix_fmt="yuv444p10le", matrix="BT2020", **tags)
    found = read(tmp_path / "a.mkv")[1][0, 8, :, 1]
    assert (np.diff(found) >= -1e-3).all() and found[-1] == pytest.approx(1, abs=1e-3)
    white = found[np.argmin(np.abs(light[0, :, 0] - 1))]
    assert 0.9 < white < 0.99  # diffuse white leaves room for highlights


@pytest.mark.parametrize(("size", "matrix"), [((64, 1280), "ITU709"), ((640, 64), "ITU709"), ((64, 64), "ITU601")])
def test_untagged_video_is_decoded_by_its_size(tmp_path, size, matrix):
    image = COLORS.repeat(size[0] // 2, axis=0).repeat(size[1] // 2, axis=1)
    encode(tmp_path / "a.mkv", [image.astype(np.uint8)], matrix=matrix)
    np.testing.assert_allclose(quadrant_levels(read(tmp_path / "a.mkv")[1][0]), COLORS, atol=3)


def test_ten_bits_keep_their_gradation(tmp_path):
    ramp = np.repeat(np.linspace(0.4, 0.5, 64)[None, :, None], 3, axis=-1).repeat(16, axis=0)
    encode(tmp_path / "a.mkv", [integers(ramp, np.uint16)], pix_fmt="yuv444p10le", matrix="ITU709", colorspace=1)
    (found,) = read(tmp_path / "a.mkv")[1]
    np.testing.assert_allclose(found, ramp, atol=1e-3)
    assert len(np.unique(found[0, :, 0])) == 64  # of 26 in 8 bits


def test_wide_gamut_sdr_video_becomes_rec709(tmp_path):
    light = linear(QUADRANTS) @ TO_P3.T
    signal = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    tags = {"color_trc": 1, "color_primaries": 12, "colorspace": 1, "color_range": 1}
    encode(tmp_path / "a.mkv", [integers(signal)] * 2, matrix="ITU709", **tags)
    np.testing.assert_allclose(quadrant_levels(read(tmp_path / "a.mkv")[1][0]), COLORS, atol=3)


@pytest.mark.parametrize(("codec", "pix_fmt"), [("ffv1", "yuva444p"), ("ffv1", "bgra"), ("ffv1", "rgba64le")])
def test_alpha_is_composited_on_black(tmp_path, codec, pix_fmt):
    alpha = np.linspace(0, 1, 64)[None, :, None].repeat(64, axis=0)
    encode(tmp_path / "a.mkv", [integers(np.concatenate([QUADRANTS, alpha], axis=-1))] * 2, codec, pix_fmt)
    _, found = read(tmp_path / "a.mkv")
    np.testing.assert_allclose(found[1], QUADRANTS * alpha, atol=3 / 255)


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_alpha_of_webm_is_composited_on_black(tmp_path, codec, monkeypatch):
    rgba = np.concatenate([integers(QUADRANTS), np.full((64, 64, 1), 255, np.uint8)], axis=-1)
    rgba[:32, :, 3] = 0
    path = encode(tmp_path / "a.webm", [rgba] * 3, codec, "yuva420p", {"auto-alt-ref": "0", "crf": "4", "b": "4M"})
    clip, frames = read(path)
    assert clip.num_frames == 3
    np.testing.assert_allclose(quadrant_levels(frames[0])[1], COLORS[1], atol=8)
    np.testing.assert_array_equal(quadrant_levels(frames[0])[0], 0)
    monkeypatch.setattr("drender.media.decoding.ALPHA_DECODERS", {"vp8": "absent", "vp9": "absent"})
    with pytest.warns(UserWarning, match=r"a\.webm: its alpha is ignored; convert the video"):
        assert read(path)[1][0, :32].max() > 0.5


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"color_trc": 8}, "transfer LINEAR"),
        ({"color_trc": 9, "color_primaries": 8}, "transfer LOG, primaries FILM"),
        ({"color_trc": 1, "color_primaries": 1}, None),
    ],
)
def test_unknown_colors_are_named(tmp_path, tags, message, recwarn):
    path = encode(tmp_path / "a.mkv", [integers(QUADRANTS)], **tags)
    np.testing.assert_allclose(quadrant_levels(read(path)[1][0]), COLORS, atol=2)
    assert [str(w.message) for w in recwarn] == ([f"{path}: ignored: {message}; {CONVERT}"] if message else [])


def test_a_color_matrix_that_is_not_read_is_named(tmp_path):
    path = encode(tmp_path / "a.mkv", [integers(QUADRANTS)], colorspace=8)
    assert broken(read, path) == f"{path}: its color matrix (YCgCo) is not read; {CONVERT}"


def test_dolby_vision_without_a_base_layer_is_named(tmp_path):
    path = encode(tmp_path / "a.mp4", [integers(QUADRANTS)], "libx264", "yuv420p")
    path.write_bytes(path.read_bytes().replace(b"avc1\0", b"dva1\0"))
    with pytest.warns(UserWarning, match=r"a\.mp4: ignored: Dolby Vision metadata, .*; convert the video to Rec"):
        read(path)
