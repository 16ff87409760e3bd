"""Find and read clips (videos, folders of images, single images), and write videos.

Frames are float32 `h w 3` in [0, 1], sRGB-encoded.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float32

from drender.errors import InputError
from drender.files import atomic_write, list_dir, map_collecting_errors, require_file
from drender.media.animation import is_animated, probe_animation, read_animation
from drender.media.decoding import DEFAULT_FPS, decode, probe
from drender.media.encodings import DEFAULT, InputEncoding, read_labeled
from drender.media.images import HDR_SUFFIXES, IMAGE_SUFFIXES, image_size, to_integers

SUFFIXES = IMAGE_SUFFIXES + HDR_SUFFIXES
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts")
SUMMARIES = ("contact.png", ".viz.mp4")  # endings of files that show G-buffers, beside their folders


# --- writing ---


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float, quality: float = 7.0) -> None:
    """Write an H.264 video (yuv420p, BT.709). On any error, including one of `frames`, no file is left.

    Args:
      frames: `h w 3`, floats in [0, 1] or uint8, taken one by one. Odd sides are padded by one repeated pixel.
      fps: frames per second.
      quality: 0 to 10; x264's CRF is 39 − 3·quality: 18, visually lossless, at 7, and 9 at 10.
    Raises:
      InputError: no frames, or the file cannot be written.
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
            picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709")  # as the stream is tagged
            picture.pts, picture.time_base = index, 1 / rate
            container.mux(stream.encode(picture))
        if stream is None:
            raise InputError(f"{path}: a video needs at least one frame")
        container.mux(stream.encode())


def _h264_stream(
    container: av.container.OutputContainer, height: int, width: int, rate: Fraction, crf: float
) -> av.VideoStream:
    # x264's macroblock tree (core 165, AVX-512) is not deterministic, so disable it.
    options = {"crf": f"{crf:g}", "x264-params": "mbtree=0"}
    stream = container.add_stream("libx264", rate=rate, options=options)
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    codec = stream.codec_context
    codec.colorspace = codec.color_primaries = codec.color_trc = 1  # BT.709; without tags, players guess by the size
    codec.color_range = 1  # limited
    return stream


# --- reading ---


@dataclass(frozen=True)
class Clip:
    """A sequence of frames on disk, from `find_clips`: a video or animation, a folder of images, or one image.

    Attributes:
      name: stem of the image or video, or name of the folder.
      fps: frame rate of the video or animation, or DEFAULT_FPS.
      num_frames: number of frames.
      paths: the images in order, or the one video or animation.
      label: of the images, which decides on their encoding (see `read_labeled`).
      assumed: encoding of images without metadata.
    """

    name: str
    fps: float
    num_frames: int
    paths: tuple[Path, ...]
    label: str = "rgb"
    assumed: InputEncoding = DEFAULT

    @property
    def size(self) -> tuple[int, int]:
        """Return (height, width) by reading the first frame."""
        return next(self.frames(0, 1)).shape[:2]

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[Float32[np.ndarray, "h w 3"]]:
        """Yield frames start to stop − 1 (by default to the end), each in [0, 1].

        Every call decodes a video from its beginning, so read a long one through a single iterator.

        Raises:
          InputError: a file is damaged.
        """
        stop = self.num_frames if stop is None else min(stop, self.num_frames)
        if start >= stop:
            return iter(())
        if self.paths[0].suffix.lower() in VIDEO_SUFFIXES:
            return decode(self.paths[0], start, stop)
        if len(self.paths) < self.num_frames:
            return read_animation(self.paths[0], start, stop, self.label, self.assumed)
        return (read_labeled(path, self.label, self.assumed) for path in self.paths[start:stop])


def find_clips(
    path: str | Path,
    failed: Callable[[InputError], None] | None = None,
    label: str = "rgb",
    assumed: InputEncoding = DEFAULT,
) -> list[Clip]:
    """Return the clips at `path` in natural order: an image, a video, a folder of frames, or a folder of these.

    Animated GIF, WebP and PNG files, and TIFF files of several pages, count as videos.

    A folder that holds only images is one clip. In a folder of G-buffers the `*.rgb.*` files are the frames, and
    contact sheets and `*.viz.mp4` next to such folders are skipped. Next to videos or folders with clips, each image is
    a clip of its own. EXR and Radiance files are frames only if the folder holds nothing else to read. Hidden files and
    files of other kinds are ignored; folders are searched to any depth.

    Args:
      failed: receives the InputErrors of single clips among several; None: raise them.
      label, assumed: of the clips' images, see `Clip`.
    Raises:
      InputError: nothing to read, two clips of one name, an unreadable clip, or frames of different size.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            require_file(path)
        found = _clips_at(path)
        if not found:
            raise InputError(f"{path}: no images or videos found; known: {' '.join(SUFFIXES + VIDEO_SUFFIXES)}")
        named = {}
        for name, paths in found:
            if (first := named.setdefault(name, paths)) is not paths:
                raise InputError(f"two clips are named {name!r}: {first[0]} and {paths[0]}; rename one")
        return map_collecting_errors(_open_clip, [(*clip, label, assumed) for clip in found], failed)
    except OSError as error:
        raise InputError(f"cannot read {error.filename or path}: {error.strerror}") from error


def _clips_at(path: Path) -> list[tuple[str, list[Path]]]:
    """Return (name, files) of every clip in a file or folder."""
    if not path.is_dir():
        return [(path.stem, [path])] if path.suffix.lower() in SUFFIXES + VIDEO_SUFFIXES else []
    found = {entry: _clips_at(entry) for entry in list_dir(path)}
    images = [
        entry for entry in found if entry.suffix.lower() in SUFFIXES and entry.is_file() and not is_animated(entry)
    ]
    if not all(entry.suffix.lower() in HDR_SUFFIXES for entry, clips in found.items() if clips):
        images = [image for image in images if image.suffix.lower() not in HDR_SUFFIXES]
        found = {entry: clips for entry, clips in found.items() if entry.suffix.lower() not in HDR_SUFFIXES}
    if rgb_frames := [image for image in images if image.stem.endswith(".rgb")]:
        return [(path.resolve().name, rgb_frames)]
    if any(entry.is_dir() and files[0].stem.endswith(".rgb") for entry, clips in found.items() for _, files in clips):
        found = {entry: clips for entry, clips in found.items() if not entry.name.endswith(SUMMARIES)}
    if images and all(entry in images for entry, clips in found.items() if clips):
        return [(path.resolve().name, images)]
    return [clip for clips in found.values() for clip in clips]


def _open_clip(name: str, paths: list[Path], label: str, assumed: InputEncoding) -> Clip:
    """Return the clip of these files after checking the headers of all images or the packets of the video."""
    if paths[0].suffix.lower() in VIDEO_SUFFIXES:
        return Clip(name, *probe(paths[0]), (paths[0],), label, assumed)
    if len(paths) == 1 and is_animated(paths[0]):
        fps, num_frames = probe_animation(paths[0])
        return Clip(name, fps or DEFAULT_FPS, num_frames, (paths[0],), label, assumed)
    size = image_size(paths[0])
    for path in paths[1:]:
        if (other := image_size(path)) != size:
            actual, expected = (f"{width}x{height}" for height, width in (other, size))
            raise InputError(
                f"{path} has {actual} pixels, {paths[0].name} {expected}; the frames of a clip need one size"
            )
    return Clip(name, DEFAULT_FPS, len(paths), tuple(paths), label, assumed)
