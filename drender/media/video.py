"""Find and read clips (videos, folders of images, single images), and write videos.

Frames are float32 `h w 3` in [0, 1], sRGB-encoded.
"""

import collections
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from drender.config import DOMAINS
from drender.errors import InputError, OnFailure, extent
from drender.files import atomic_write, folder_name, list_dir, map_collecting_errors, readable, require_file
from drender.media.animation import TIFF_SUFFIXES, is_animated, probe_animation, read_animation
from drender.media.color import Pixels
from drender.media.decoding import DEFAULT_FPS, decode, probe
from drender.media.encodings import DEFAULT, InputEncoding, read_labeled
from drender.media.images import HDR_SUFFIXES, IMAGE_SUFFIXES, image_size, stated_rate, to_integers
from drender.media.sequences import split_sequences, without_overlaps

SUFFIXES = IMAGE_SUFFIXES + HDR_SUFFIXES
# Pictures and videos that are not read; other files, such as text, are ignored without a word.
UNREAD_SUFFIXES = (
    ".heic", ".heif", ".avif", ".bmp", ".tga", ".dpx", ".cin", ".jxl", ".jp2", ".psd", ".dng", ".cr2", ".cr3", ".nef",
    ".arw", ".raf", ".mxf", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv", ".y4m", ".braw", ".r3d",
)  # fmt: skip
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts")
MAX_DEPTH, MAX_FOLDERS = 64, 100_000  # of a search for clips, which links may make endless
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
    """A sequence of frames on disk, from `find_clips`: a video or animation, a folder of images, or one image."""

    name: str  # stem of the image or video, or name of the folder or sequence
    fps: float  # that the video, animation or first EXR states, or DEFAULT_FPS
    num_frames: int
    paths: tuple[Path, ...]  # the images in order, or the one video or animation
    label: str = "rgb"  # of the images, which decides on their encoding (see `read_labeled`)
    assumed: InputEncoding = DEFAULT  # encoding of images without metadata

    @property
    def size(self) -> tuple[int, int]:
        """Return (height, width) by reading the first frame."""
        return next(self.frames(0, 1)).shape[:2]

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[Pixels]:
        """Yield frames start to stop − 1 (by default to the end), each in [0, 1]; InputError if a file is damaged.

        Every call decodes a video from its beginning, so read a long one through a single iterator.
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
    path: str | Path, failed: OnFailure | None = None, label: str = "rgb", assumed: InputEncoding = DEFAULT
) -> list[Clip]:
    """Return the clips at `path` in natural order: an image, a video, a folder of frames, or a folder of these.

    Animated GIF, WebP and PNG files, and TIFF files of several pages, count as videos.

    The images of a folder are clips by their names, see `split_sequences`; a single one has the folder's name. In a
    folder of G-buffers the `*.rgb.*` files are the frames, each once if chunks share it, and contact sheets,
    `*.viz.mp4`, folders of EXR or Radiance maps, and folders named like G-buffers beside `rgb` are skipped. EXR and
    Radiance files are frames only if the folder holds nothing else to read. Hidden files and files of other kinds are
    ignored; folders are searched to a depth of MAX_DEPTH, links to folders above are not. Clips of one name get their
    suffixes behind it (`a_gif`, `a_webp`) in one folder, and the names of their parent folders in front otherwise.

    Warns of missing frame numbers, and of pictures and videos that are not read.

    Args:
      failed: receives the InputErrors of single clips among several; None: raise them.
      label, assumed: of the clips' images, see `Clip`.
    Raises:
      InputError: nothing to read, an unreadable clip, or frames of different size.
    """
    path = Path(path)
    with readable(path):
        if not path.exists() and set(path.name) & set("%#*?"):
            raise InputError(f"{path} does not exist; give the folder of the frames, not a pattern of their names")
        if not path.is_dir():
            require_file(path)
        found = _clips_at(path, (), itertools.count(1))
        if not found:
            raise InputError(f"{path}: no images or videos found; known: {' '.join(SUFFIXES + VIDEO_SUFFIXES)}")
        clips = _with_unique_names(found)
        return map_collecting_errors(lambda clip: _open_clip(*clip, label, assumed), clips, failed)


def _clips_at(path: Path, parents: tuple[Path, ...], counter: Iterator[int]) -> list[tuple[str, list[Path]]]:
    """Return (name, files) of every clip in a file or folder.

    `parents` are the folders that lead there, resolved; a link to one of these is passed over. `counter` counts.
    """
    if not path.is_dir():
        return [(path.stem, [path])] if path.suffix.lower() in SUFFIXES + VIDEO_SUFFIXES else []
    real = path.resolve()
    if real in parents:
        return []
    if len(parents) == MAX_DEPTH or next(counter) > MAX_FOLDERS:
        raise InputError(f"{path}: more than {MAX_DEPTH} folders deep or {MAX_FOLDERS} in all; give one of its folders")
    entries = list_dir(path)
    found = {entry: clips for entry in entries if (clips := _clips_at(entry, (*parents, real), counter))}
    unread = [entry for entry in entries if entry.suffix.lower() in UNREAD_SUFFIXES]
    _warn_of_skipped(path, unread, "convert them to PNG, EXR or mp4")
    if path / "rgb" in found:
        found = {entry: clips for entry, clips in found.items() if entry.name not in DOMAINS}
    maps = [entry for entry in found if entry.suffix.lower() in HDR_SUFFIXES]
    if are_light := len(maps) < len(found):  # beside other images
        found = {entry: clips for entry, clips in found.items() if entry not in maps}
    images = [file for file in found if file.suffix.lower() in SUFFIXES and file.is_file() and not is_animated(file)]
    if rgb_frames := [image for image in images if image.stem.endswith(".rgb")]:
        return _image_clips(path, rgb_frames, alone=True)
    if are_light and any(len(sequence.stems) > 2 for sequence in split_sequences([entry.stem for entry in maps])):
        _warn_of_skipped(path, maps, "beside other images they count as light; move frames to a folder of their own")
    if any(entry.is_dir() and files[0].stem.endswith(".rgb") for entry, clips in found.items() for _, files in clips):
        # EXR and Radiance files beside clips of G-buffers are light, as in the `environments` of synthetic clips.
        is_map = lambda path: path.suffix.lower() in HDR_SUFFIXES and not path.stem.endswith(".rgb")
        found = {
            entry: clips
            for entry, clips in found.items()
            if not entry.name.endswith(SUMMARIES) and not all(is_map(files[0]) for _, files in clips)
        }
        images = [image for image in images if image in found]
    clips = _image_clips(path, images, alone=len(images) == len(found))
    # In place of their first images, so that the clips stay in natural order.
    found |= {image: [] for image in images} | {files[0]: [(name, files)] for name, files in clips}
    return [clip for clips in found.values() for clip in clips]


def _warn_of_skipped(folder: Path, files: list[Path], remedy: str) -> None:
    if files:
        number = f"{files[0].name} is" if len(files) == 1 else f"{len(files)} files such as {files[0].name} are"
        warnings.warn(f"{folder}: {number} not read; {remedy}", stacklevel=4)


def _image_clips(folder: Path, images: list[Path], alone: bool) -> list[tuple[str, list[Path]]]:
    """Return (name, files) of the sequences among the images of a folder, which may hold them `alone`."""
    stems = [image.stem.removesuffix(".rgb") for image in images]
    by_suffix = {}  # one group, unless stems repeat, as in a.jpg and a.png
    for stem, image in zip(stems, images, strict=True):
        by_suffix.setdefault("" if len({*stems}) == len(stems) else image.suffix, {})[stem] = image
    sequences = [(files, sequence) for files in by_suffix.values() for sequence in split_sequences(list(files))]
    clips, name = [], folder_name(folder)
    for files, sequence in sequences:
        frames = [files[stem] for stem in sequence.stems]
        if len(frames) > 1 or (alone and len(sequences) == 1):
            sequence.warn_of_gaps(folder)
            several = len(sequences) > 1 and sequence.name
            clips.append((f"{name}_{sequence.name}" if several else name, without_overlaps(frames)))
        else:
            clips.append((sequence.name, frames))
    return clips


def _with_unique_names(clips: list[tuple[str, list[Path]]]) -> list[tuple[str, list[Path]]]:
    """Tell clips of one name apart: by their files' suffix in one folder, else by the names of folders in front."""
    count = collections.Counter((name, files[0].parent) for name, files in clips)
    suffix = lambda name, file: f"_{file.suffix[1:].lower()}" if count[name, file.parent] > 1 else ""
    names = [name + suffix(name, files[0]) for name, files in clips]
    parents_of = [[parent.name for parent in Path(os.path.abspath(files[0])).parents] for _, files in clips]
    for depth in range(max(map(len, parents_of))):
        count = collections.Counter(names)
        for index, ((name, _), folders) in enumerate(zip(clips, parents_of, strict=True)):
            parents = folders[name == folders[0] :]
            if count[names[index]] > 1 and depth < len(parents):
                names[index] = f"{parents[depth]}_{names[index]}"
    named = {}
    for name, (_, files) in zip(names, clips, strict=True):
        if (other := named.setdefault(name, files)) is not files:
            raise InputError(f"two clips are named {name!r}: {other[0]} and {files[0]}; rename one")
    return list(named.items())


def _open_clip(name: str, paths: list[Path], label: str, assumed: InputEncoding) -> Clip:
    """Return the clip of these files after checking the headers of all images or the packets of the video."""
    first, suffix = paths[0], paths[0].suffix.lower()
    animated = len(paths) == 1 and is_animated(first)
    is_encoded = suffix in VIDEO_SUFFIXES or (animated and suffix not in TIFF_SUFFIXES)
    if is_encoded and (assumed.transfer or assumed.layer(label)):
        problem = "--input-transfer and --input-layers are not for videos; convert it to frames"
        warnings.warn(f"{first}: {problem}", stacklevel=2)
    if suffix in VIDEO_SUFFIXES:
        fps, num_frames = probe(first)
    elif animated:
        fps, num_frames = probe_animation(first)
    else:
        size = image_size(first)
        for path in paths[1:]:
            if (other := image_size(path)) != size:
                problem = f"{path} has {extent(other)} pixels, {first.name} {extent(size)}"
                raise InputError(f"{problem}; the frames of a clip need one size")
        fps, num_frames = stated_rate(first), len(paths)
    return Clip(name, fps or DEFAULT_FPS, num_frames, tuple(paths), label, assumed)
