"""Clips: videos, through PyAV, and folders of stills, read frame by frame; and videos out.

Frames are float32 `h w 3` in [0, 1], as `images` reads them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float32

from drender.errors import InputError
from drender.files import atomic_write, list_dir, map_collecting_errors, require_file
from drender.media.images import IMAGE_SUFFIXES, open_image, read_image, to_integers

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
# PyAV 18 raises UnicodeDecodeError on metadata that is not UTF-8 unless told otherwise; PyAV 19 replaces it by itself.
METADATA_ERRORS = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
SUMMARIES = ("contact.png", ".viz.mp4")  # endings of the files that show G-buffers and lie beside their folders
DEFAULT_FPS = 7.0  # for images, which have no speed: what the released models are sampled at


# ---- Video ----


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float, quality: float = 7.0) -> None:
    """Write an H.264 video (yuv420p, BT.709) of `frames`: `h w 3`, floats in [0, 1] or uint8, taken one by one.

    The quality goes from 0 to 10; x264's CRF is 39 − 3·quality: 18, where no loss is seen, at 7, and 9 at 10. Odd sides
    grow by one repeated pixel. InputError if there is no frame or if it cannot be written; then, as on any
    exception of the iterable, nothing is left behind.
    """
    if not 0 <= quality <= 10:
        raise InputError(f"quality is {quality:g}; it must be from 0 to 10")
    rate = Fraction(fps).limit_denominator(65535)
    faststart = {"movflags": "faststart"}
    with (
        atomic_write(path, (av.FFmpegError,)) as temporary,
        av.open(f"file:{temporary}", "w", options=faststart) as container,
    ):
        stream = None
        for index, frame in enumerate(frames):
            height, width, _ = frame.shape
            pixels = np.pad(to_integers(frame), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            stream = stream or _h264_stream(container, *pixels.shape[:2], rate, 39.0 - 3.0 * quality)
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709")  # as the stream's tags say
            picture.pts, picture.time_base = index, 1 / rate
            container.mux(stream.encode(picture))
        if stream is None:
            raise InputError(f"{path}: a video needs at least one frame")
        container.mux(stream.encode())


def _h264_stream(
    container: av.container.OutputContainer, height: int, width: int, rate: Fraction, crf: float
) -> av.VideoStream:
    # With its macroblock tree, x264 (core 165, AVX-512) makes other bytes of the same frames from time to time.
    options = {"crf": f"{crf:g}", "x264-params": "mbtree=0"}
    stream = container.add_stream("libx264", rate=rate, options=options)
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    codec = stream.codec_context
    codec.colorspace = codec.color_primaries = codec.color_trc = 1  # BT.709; without tags, players guess by the size
    codec.color_range = 1  # limited
    return stream


@contextmanager
def _open_video(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """A container and its video stream; what FFmpeg finds wrong with them while in use is an InputError."""
    try:
        # Without "file:", FFmpeg takes a name with a colon (12:30:45.mp4) for a protocol.
        with av.open(f"file:{path}", **METADATA_ERRORS) as container:
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None:
                raise InputError(f"{path}: no video that can be decoded in this file; encode it anew")
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"err_detect": "explode"}  # damage is an error, not a smear in the picture
            yield container, stream
    except av.FFmpegError as error:
        raise InputError(f"{path}: not a video, or truncated or damaged ({error.strerror}); encode it anew") from error


def _video_clip(path: Path) -> "Clip":
    """The clip of the video at `path`, its frames counted, for containers give no number (Matroska) or a wrong one."""
    require_file(path)
    with _open_video(path) as (container, stream):
        fps = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
        count = 0
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise InputError(f"{path}: truncated or damaged video; encode it anew")
            count += packet.size > 0 and not packet.is_discard
    if count == 0:
        raise InputError(f"{path}: a video without frames; encode it anew")
    return Clip(path.stem, fps, count, (path,))


def _video_frames(path: Path, start: int, stop: int) -> Iterator[Float32[np.ndarray, "h w 3"]]:
    """Frames start to stop − 1 of a video, turned upright, one decoded at a time."""
    decoded = 0
    with _open_video(path) as (container, stream):
        size = {"height": stream.height, "width": stream.width}  # of all frames, though a stream can change its size
        for frame in container.decode(stream):
            decoded += 1
            if decoded > start:
                pixels = frame.to_ndarray(format="rgb24", **size)
                yield np.rot90(pixels, round(frame.rotation / 90)).astype(np.float32) / 255
            if decoded == stop:
                return
    raise InputError(f"{path}: only {decoded} of its {stop} frames can be decoded; encode it anew")


# ---- Clips ----


@dataclass(frozen=True)
class Clip:
    """A sequence of RGB frames on disk, from `find_clips`: a video, a folder of images, or one image."""

    name: str  # stem of the image or video, or name of the folder
    fps: float  # the video's own, or DEFAULT_FPS
    num_frames: int
    paths: tuple[Path, ...]  # the images in order, or the one video

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its frames, of which the first is read for it."""
        return next(self.frames(0, 1)).shape[:2]

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[Float32[np.ndarray, "h w 3"]]:
        """Frames start to stop − 1 (by default to the end), each in [0, 1], read as they are asked for.

        Every call decodes a video from its beginning: read a long one through a single iterator. InputError where the
        file is damaged.
        """
        stop = self.num_frames if stop is None else min(stop, self.num_frames)
        if start >= stop or self.paths[0].suffix.lower() not in VIDEO_SUFFIXES:
            return map(read_image, self.paths[start:stop])
        return _video_frames(self.paths[0], start, stop)


def find_clips(path: str | Path, failed: Callable[[InputError], None] | None = None) -> list[Clip]:
    """The clips at `path`, in natural order: an image, a video, a folder of frames, or a folder of such things.

    A folder that holds only images is one clip. In a folder of G-buffers the `*.rgb.*` files are the frames, and
    contact sheets and `*.viz.mp4` beside such folders are skipped. Beside videos or folders with clips, each image is a
    clip of its own. Hidden files and files of other kinds are passed over; folders are searched to any depth.
    InputError if there is nothing to read, if two clips have the same name, or if a clip cannot be read or its frames
    differ in size; of many clips, `failed` takes these last errors, and the others are returned.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            require_file(path)
        found = _clips_at(path)
        if not found:
            raise InputError(f"{path}: no images or videos there; known: {' '.join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)}")
        named = {}
        for name, paths in found:
            if (first := named.setdefault(name, paths)) is not paths:
                raise InputError(f"two clips are named {name!r}: {first[0]} and {paths[0]}; rename one")
        return map_collecting_errors(_open_clip, found, failed)
    except OSError as error:
        raise InputError(f"cannot read {error.filename or path}: {error.strerror}") from error


def _clips_at(path: Path) -> list[tuple[str, list[Path]]]:
    """Names and files of the clips that a file or folder is; none if it is of another kind."""
    if not path.is_dir():
        return [(path.stem, [path])] if path.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES else []
    found = {entry: _clips_at(entry) for entry in list_dir(path)}
    images = [entry for entry in found if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.is_dir()]
    if rgb_frames := [image for image in images if image.stem.endswith(".rgb")]:
        return [(path.resolve().name, rgb_frames)]
    if any(entry.is_dir() and files[0].stem.endswith(".rgb") for entry, clips in found.items() for _, files in clips):
        found = {entry: clips for entry, clips in found.items() if not entry.name.endswith(SUMMARIES)}
    if images and all(entry in images for entry, clips in found.items() if clips):
        return [(path.resolve().name, images)]
    return [clip for clips in found.values() for clip in clips]


def _open_clip(name: str, paths: list[Path]) -> Clip:
    return _video_clip(paths[0]) if paths[0].suffix.lower() in VIDEO_SUFFIXES else _image_clip(name, paths)


def _image_clip(name: str, paths: list[Path]) -> Clip:
    """A clip of images, whose headers agree in the size that is shown."""
    sizes = []
    for path in paths:
        spec = open_image(path).spec()
        upright = spec.get_int_attribute("Orientation", 1) < 5
        sizes.append(f"{spec.width}x{spec.height}" if upright else f"{spec.height}x{spec.width}")
        if sizes[-1] != sizes[0]:
            found, first = f"{path} has {sizes[-1]} pixels", f"{paths[0].name} {sizes[0]}"
            raise InputError(f"{found}, {first}; the frames of a clip need one size")
    return Clip(name, DEFAULT_FPS, len(paths), tuple(paths))
