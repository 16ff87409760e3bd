"""Decode videos through FFmpeg (PyAV) to upright RGB frames, as a player shows them.

Frames honor what the file declares: color matrix, primaries and HDR transfer, alpha (composited on black), rotation and
mirroring, pixel aspect ratio, and interlacing.
"""

import collections
import struct
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc
from jaxtyping import Float32, Shaped

from drender.errors import InputError
from drender.files import require_file
from drender.media.color import Pixels, hdr_to_srgb, to_srgb_gamut
from drender.media.geometry import square_size, turned

# PyAV 18 raises UnicodeDecodeError on metadata that are not UTF-8 unless it replaces them; PyAV 19 always does.
METADATA_ERRORS = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
DEFAULT_FPS = 7.0  # of images, which have no frame rate: the released models are sampled at it
# Codecs with packets whose frame is never shown, so that packets cannot be counted for frames.
CODECS_WITH_HIDDEN_FRAMES = ("vp8", "vp9")
HDR_TRANSFERS = {ColorTrc.SMPTE2084: "pq", ColorTrc.ARIB_STD_B67: "hlg"}
PRIMARIES = {ColorPrimaries.BT2020: "rec2020", ColorPrimaries.SMPTE431: "p3", ColorPrimaries.SMPTE432: "p3"}
# Log, linear and cinema curves and gamuts, which FFmpeg leaves as they are.
UNKNOWN = {
    "transfer": ("LINEAR", "LOG", "LOG_SQRT", "SMPTE428", "V_LOG"),
    "primaries": ("BT470M", "FILM", "SMPTE428", "V_GAMUT"),
}
DOLBY_TAGS = ("dvh1", "dvhe", "dva1", "dvav", "dav1")  # of Dolby Vision streams that are nothing else
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # instead of FFmpeg's own, which skip alpha
# Color matrices of ITU-T H.273 that FFmpeg's scaler refuses, with words that blame the file.
REFUSED_MATRICES = {8: "YCgCo", 10: "BT.2020 with constant luminance", 11: "SMPTE 2085", 12: "derived from primaries"}
REFUSED_MATRICES |= {13: "derived, with constant luminance", 14: "ICtCp", 15: "IPT-C2", 16: "YCgCo", 17: "YCgCo"}
CONVERT = "convert the video to Rec. 709, HDR10 or HLG"  # the remedy for colors that are not read
UNSPECIFIED = 2  # FFmpeg's number for an unspecified color matrix, transfer or primaries


def probe(path: Path) -> tuple[float, int]:
    """Return the frame rate of a video and the number of frames that can be shown.

    Counting packets is faster than decoding, but some packets have no frame that can be shown: hidden frames of some
    codecs, those at the start of a clip cut without re-encoding that refer to frames before it, and second fields of
    interlaced frames. Decode such files. InputError if the video is missing, damaged or without frames.
    """
    require_file(path)
    with open_video(path) as (container, stream):
        # PyAV 19 has rationals of its own, without the operators of fractions.
        time_base = Fraction(stream.time_base)
        rate = Fraction(stream.average_rate or stream.guessed_rate or 0) or None
        shown = []  # time stamp, and whether it is a keyframe, of every packet that should have a frame

        def packets() -> Iterator[av.Packet]:
            for packet in _packets(path, container, stream):
                if packet.size > 0 and not packet.is_discard:
                    shown.append((packet.pts, packet.is_keyframe))
                yield packet

        remaining = packets()
        frames = _decode(path, remaining, stream)
        first = next(frames, None)
        if first is None or first.interlaced_frame or stream.codec_context.name in CODECS_WITH_HIDDEN_FRAMES:
            times = [frame.pts for frame in (first, *frames) if frame is not None]
        else:
            collections.deque(remaining, maxlen=0)  # reads the rest without decoding it
            times = [time for time, _ in shown]
            in_order = None in times[:1] or all(time is None or time >= times[0] for time in times)
            if not (shown and shown[0][1] and in_order):
                with open_video(path) as (again, stream):
                    times = [frame.pts for frame in _decode(path, _packets(path, again, stream), stream)]
    if not times:
        raise InputError(f"{path}: no frame of this video can be decoded; encode it again")
    return _mean_rate(times, time_base, rate), len(times)


def _mean_rate(times: list[int | None], time_base: Fraction, rate: Fraction | None) -> float:
    """Return the declared frame rate, or the mean of the time stamps if they contradict it (variable frame rate)."""
    known = [time for time in times if time is not None]
    span = float((max(known) - min(known)) * time_base) if known else 0.0
    if span > 0 and len(known) == len(times):
        expected = (len(times) - 1) / rate if rate else 0
        if abs(span - expected) > 0.01 * span + 2 * time_base:  # time stamps are rounded to the time base
            return (len(times) - 1) / span
    return float(rate or DEFAULT_FPS)


def decode(path: Path, start: int, stop: int) -> Iterator[Pixels]:
    """Yield frames start to stop − 1 of a video, sRGB-encoded in [0, 1]; InputError if it is damaged or has fewer."""
    count, orientation = 0, None
    with open_video(path) as (container, stream):
        # Of all frames, though a stream may change its size.
        size = square_size(path, stream.height, stream.width, Fraction(stream.sample_aspect_ratio or 1))
        for frame in _deinterlace(_decode(path, _packets(path, container, stream), stream)):
            if orientation is None:
                orientation = _orientation(frame, path)
                _check_color(frame, stream, path)
            count += 1
            if count > start:
                yield turned(_to_rgb(frame, size), *orientation)
            if count == stop:
                return
    raise InputError(f"{path}: only {count} of its {stop} frames can be decoded; encode it again")


@contextmanager
def open_video(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a container and its video stream; FFmpeg's errors while it is open become InputErrors."""
    try:
        # Without a protocol, FFmpeg would take a name with a colon, such as 12:30.mp4, for one.
        with av.open(f"file:{path}", **METADATA_ERRORS) as container:
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None:
                raise InputError(f"{path}: no video that can be decoded in this file; encode it again")
            stream.thread_type = "AUTO"
            # Damage is an error, not a smeared frame. FFmpeg's H.264 decoder would refuse harmless faults too, such as
            # a first frame that some encoders mark wrongly, and finds hardly more damage.
            if stream.codec_context.name != "h264":
                stream.codec_context.options = {"err_detect": "explode"}
            yield container, stream
    except av.FFmpegError as error:
        raise InputError(f"{path}: not a video, or truncated or damaged ({error.strerror}); encode it again") from error


def _packets(path: Path, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise InputError(f"{path}: truncated or damaged video; encode it again")
        yield packet


def _decode(path: Path, packets: Iterable[av.Packet], stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Yield the frames that can be shown; packets before the first keyframe, as of a recording, may be undecodable."""
    begun, decoder = False, stream.codec_context
    if stream.metadata.get("alpha_mode") == "1" and decoder.name in ALPHA_DECODERS:
        try:
            decoder = av.codec.CodecContext.create(ALPHA_DECODERS[decoder.name], "r")
        except (av.FFmpegError, ValueError):
            warnings.warn(f"{path}: its alpha is ignored; convert the video to ProRes 4444 or PNG frames", stacklevel=2)
    for packet in packets:
        begun |= packet.is_keyframe
        try:
            frames = decoder.decode(packet if packet.size else None)
        except av.InvalidDataError:
            if begun:
                raise
            continue
        yield from frames


# --- geometry ---


def _deinterlace(frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Deinterlace with FFmpeg's bwdif, one frame per frame, from the first interlaced frame on."""
    graph = None
    for frame in frames:
        if graph is None and frame.interlaced_frame:
            graph = av.filter.Graph()
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
            )
            graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
            graph.configure()
        if graph is None:
            yield frame
        else:
            graph.vpush(frame)
            yield from _pull(graph)
    if graph is not None:
        graph.vpush(None)
        yield from _pull(graph)


def _pull(graph: av.filter.Graph) -> Iterator[av.VideoFrame]:
    """Yield the frames that a filter graph has ready."""
    while True:
        try:
            yield graph.vpull()
        except (BlockingIOError, EOFError):
            return


def _orientation(frame: av.VideoFrame, path: Path) -> tuple[bool, bool, bool]:
    """Return how a frame is stored by its display matrix, to the nearest quarter turn, as arguments of `turned`.

    The matrix (a, b, c, d) shows a pixel (x, y) at (a x + c y, b x + d y), up to a translation.

    Ask the first frame alone: PyAV keeps a frame in memory, in a reference cycle, once its side data are read.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    a, b, _, c, d, *_ = struct.unpack("9i", bytes(data)) if data is not None else (1, 0, 0, 0, 1)
    straight, quarter = abs(a) + abs(d), abs(b) + abs(c)
    if min(straight, quarter) > 0.02 * max(straight, quarter):
        problem = f"its rotation of {frame.rotation} degrees is rounded to quarter turns; rotate the video first"
        warnings.warn(f"{path}: {problem}", stacklevel=2)
    transposed = abs(b) > abs(a)
    across, down = (c, b) if transposed else (a, d)
    return transposed, down < 0, across < 0


# --- color ---


def _check_color(frame: av.VideoFrame, stream: av.VideoStream, path: Path) -> None:
    """Warn of colors that are declared but not honored; InputError for a color matrix that cannot be converted."""
    if matrix := REFUSED_MATRICES.get(int(frame.colorspace)):
        raise InputError(f"{path}: its color matrix ({matrix}) is not read; {CONVERT}")
    stated = {"transfer": _name(ColorTrc, frame.color_trc), "primaries": _name(ColorPrimaries, frame.color_primaries)}
    ignored = [f"{kind} {name}" for kind, name in stated.items() if name in UNKNOWN[kind]]
    if stream.codec_context.codec_tag in DOLBY_TAGS and frame.color_trc == UNSPECIFIED:
        ignored = ["Dolby Vision metadata, without which its colors are wrong"]
    if ignored:
        warnings.warn(f"{path}: ignored: {', '.join(ignored)}; {CONVERT}", stacklevel=3)


def _name(kind: type, number: int) -> str:
    return next((member.name for member in kind if member.value == int(number)), "")


def _to_rgb(frame: av.VideoFrame, size: tuple[int, int]) -> Pixels:
    """Convert a decoded frame to sRGB-encoded RGB at this size, composited on black."""
    options = {"height": size[0], "width": size[1]}
    transfer = HDR_TRANSFERS.get(frame.color_trc)
    if frame.colorspace == UNSPECIFIED and (transfer or frame.width >= 1280 or frame.height > 576):
        # As players do; FFmpeg's own default is BT.601.
        options["src_colorspace"] = Colorspace.BT2020 if transfer else Colorspace.ITU709
    primaries = PRIMARIES.get(frame.color_primaries)
    has_alpha = frame.format.has_palette or any(component.is_alpha for component in frame.format.components)
    is_deep = transfer or primaries or max(component.bits for component in frame.format.components) > 8
    pixels = frame.to_ndarray(format="rgba64le" if has_alpha else "rgb48le" if is_deep else "rgb24", **options)
    if transfer:
        image = hdr_to_srgb(pixels[..., :3], transfer, primaries or "rec2020")
    else:
        image = to_srgb_gamut(_as_float(pixels[..., :3]), primaries or "rec709")
    return image * _as_float(pixels[..., 3:]) if has_alpha else image


def _as_float(pixels: Shaped[np.ndarray, "*b"]) -> Float32[np.ndarray, "*b"]:
    """Return unsigned integers as floats in [0, 1]."""
    return np.divide(pixels, np.float32(np.iinfo(pixels.dtype).max), dtype=np.float32)
