"""Clips and images in and out: stills through OpenImageIO, video through PyAV.

Images are float32 `h w 3`, with the values of the file, integers mapped to [0, 1]: sRGB-encoded in PNG, JPEG, TIFF and
WebP, linear in Radiance .hdr and OpenEXR. A file that is written appears under its name only once it is complete.
"""

import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TypeVar

import av
import jax
import numpy as np
import OpenImageIO as oiio
from jaxtyping import Float, Float32, UInt8

from .errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
HDR_SUFFIXES = (".hdr", ".exr")
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
T = TypeVar("T")
DEFAULT_FPS = 7.0  # for images, which have no speed: what the released models are sampled at
MAX_PIXELS = 2**28  # of one still; a header that claims more is an error before any memory is taken


# ---- Stills ----


def read_image(path: str | Path) -> Float32[np.ndarray, "h w 3"]:
    """The still at `path` as stored, integers mapped to [0, 1] (sRGB-encoded, except .hdr and .exr, which are linear).

    Grey becomes three equal channels, alpha is composited on black, EXIF orientation is applied. InputError if the file
    is missing, no image, truncated, damaged or larger than MAX_PIXELS.
    """
    return _read_still(path)[0]


def read_hdr(path: str | Path, warn: bool = True) -> Float32[np.ndarray, "h w 3"]:
    """The still at `path` in linear light, unbounded; NaN and infinities are kept. InputError as in `read_image`.

    An image of integers (PNG, JPEG, …) is taken as sRGB and decoded, if it is to `warn` with a UserWarning: it holds no
    light above 1.
    """
    image, is_float = _read_still(path)
    if is_float:
        return image
    if warn:
        warnings.warn(f"{path} is no HDR image: its lights are cut off at 1; use a .hdr or .exr file", stacklevel=2)
    return srgb_to_linear(image)


def srgb_to_linear(image: Float32[np.ndarray, "*b"]) -> Float32[np.ndarray, "*b"]:
    """sRGB-encoded [0, 1] to linear [0, 1], the piecewise curve of IEC 61966-2-1."""
    return np.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4).astype(np.float32)


def write_png(path: str | Path, image: Float[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w 3"], bits: int = 8) -> None:
    """Write a PNG of 8 or 16 `bits`, making its folder: floats in [0, 1] (clipped, rounded to nearest) or plain uint8.

    InputError if it cannot be written, for example on a full disk; then nothing is left behind.
    """
    pixels = to_integers(image, bits)
    height, width, channels = pixels.shape
    with replacing(path) as temporary:
        output = oiio.ImageOutput.create("png")
        spec = oiio.ImageSpec(width, height, channels, str(pixels.dtype))
        done = output.open(str(temporary), spec) and output.write_image(pixels) and output.close()
        # A full disk shows in none of the returned values, only in a message or in the file.
        if (error := output.geterror()) or not done or not _is_whole_png(temporary):
            raise OSError(_first_line(error) or "the file is incomplete; is the disk full?")


def to_integers(image: np.ndarray, bits: int = 8) -> np.ndarray:
    """Floats in [0, 1] as unsigned integers of `bits`, halves rounded up; uint8 as it is."""
    if image.dtype != np.uint8:
        image = np.floor(np.clip(image, 0, 1).astype(np.float32) * (2**bits - 1) + 0.5).astype(f"uint{bits}")
    return np.ascontiguousarray(image)


def stored_bits(path: str | Path) -> int:
    """Bits of an integer PNG that holds the still at `path` without loss: 8, or 16 for deeper integers and floats.

    InputError if it cannot be read.
    """
    with Path(path).open("rb") as file:
        head = file.read(25)
    if head[:8] == PNG_SIGNATURE and len(head) == 25:
        return 16 if head[24] == 16 else 8  # the header tells, and G-buffers are many
    source = _open_still(path)
    bits = 8 if str(source.spec().format) == "uint8" else 16
    source.close()
    return bits


def _read_still(path: str | Path) -> tuple[Float32[np.ndarray, "h w 3"], bool]:
    """The upright picture over black, and whether the file holds floats (which are linear light)."""
    source = _open_still(path)
    spec = source.spec()
    pixels = source.read_image(0, 0, 0, spec.nchannels, "float")
    error = source.geterror()  # set beside the pixels of a truncated JPEG, whose rest is filled with grey
    source.close()
    if pixels is None or error:
        raise InputError(f"{path}: truncated or damaged image ({_first_line(error)}); save it anew")
    # OpenImageIO puts R, G, B first if there are any. Otherwise: luminance, depth, or channels of unknown names.
    colour = [channel for channel in range(spec.nchannels) if channel != spec.alpha_channel] or [0]
    image = pixels[..., colour[:3] if len(colour) >= 3 else colour[:1] * 3]
    if spec.alpha_channel >= 0 and spec.get_int_attribute("oiio:UnassociatedAlpha"):  # else multiplied in the file
        image = image * pixels[..., spec.alpha_channel, None]
    is_float = str(spec.format) in ("half", "float", "double")
    return np.ascontiguousarray(_upright(image, spec.get_int_attribute("Orientation", 1))), is_float


def _open_still(path: str | Path) -> "oiio.ImageInput":
    """A reader of the still at `path`, whose header makes sense."""
    path = Path(path)
    if path.suffix.lower() not in IMAGE_SUFFIXES + HDR_SUFFIXES:
        raise InputError(f"{path}: unknown kind of image; known: {' '.join(IMAGE_SUFFIXES + HDR_SUFFIXES)}")
    _require_file(path)
    with path.open("rb") as file:
        is_png = file.read(8) == PNG_SIGNATURE
    if is_png and not _is_whole_png(path):  # asked here, for libpng would also print a line of its own to stderr
        raise InputError(f"{path}: truncated or damaged image; save it anew")
    as_stored = oiio.ImageSpec()
    as_stored["oiio:UnassociatedAlpha"] = 1  # no multiplication by alpha in the file's 8 bits
    source = oiio.ImageInput.open(str(path), as_stored)
    if source is None:
        raise InputError(f"{path}: not a readable image ({_first_line(oiio.geterror())}); save it anew")
    width, height = source.spec().width, source.spec().height
    if width * height > MAX_PIXELS:
        raise InputError(f"{path}: claims to have {width}x{height} pixels, the limit is {MAX_PIXELS}; shrink it")
    return source


def _upright(image: Float32[np.ndarray, "h w 3"], orientation: int) -> Float32[np.ndarray, "H W 3"]:
    """The image as EXIF's orientation, 1 to 8, wants it shown."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    return image[:: -1 if orientation in (3, 4, 7, 8) else 1, :: -1 if orientation in (2, 3, 6, 7) else 1]


def _is_whole_png(path: Path) -> bool:
    """Whether the file is a PNG of a size that libpng takes, whose chunks all match their checksums."""
    data = memoryview(path.read_bytes())
    start, kind = 8, b""
    valid = data[:8] == PNG_SIGNATURE and len(data) >= 24
    valid = valid and all(0 < side <= 10**6 for side in struct.unpack(">2I", data[16:24]))
    while valid and kind != b"IEND":
        length, kind = struct.unpack(">I4s", data[start : start + 8])
        end = start + 8 + length
        valid = len(data) >= end + (4 if kind == b"IEND" else 12)  # room for the checksum and the next chunk's head
        valid = valid and zlib.crc32(data[start + 4 : end]) == int.from_bytes(data[end : end + 4], "big")
        start = end + 4
    return valid


# ---- Video ----


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write an H.264 video (yuv420p, BT.709) of `frames`: `h w 3`, floats in [0, 1] or uint8, taken one by one.

    Odd sides grow by one repeated pixel. InputError if there is no frame or if it cannot be written; then, as on any
    exception of the iterable, nothing is left behind.
    """
    rate = Fraction(fps).limit_denominator(65535)
    with replacing(path) as temporary, av.open(str(temporary), "w", options={"movflags": "faststart"}) as container:
        stream = None
        for index, frame in enumerate(frames):
            height, width, _ = frame.shape
            pixels = np.pad(to_integers(frame), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            stream = stream or _h264_stream(container, *pixels.shape[:2], rate)
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709")  # as the stream's tags say
            picture.pts, picture.time_base = index, 1 / rate
            container.mux(stream.encode(picture))
        if stream is None:
            raise InputError(f"{path}: a video needs at least one frame")
        container.mux(stream.encode())


def _h264_stream(container: av.container.OutputContainer, height: int, width: int, rate: Fraction) -> av.VideoStream:
    stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    codec = stream.codec_context
    codec.colorspace = codec.color_primaries = codec.color_trc = 1  # BT.709; without tags, players guess by the size
    codec.color_range = 1  # limited
    return stream


@contextmanager
def _open_video(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """A container and its video stream; what FFmpeg finds wrong with them while in use is an InputError."""
    try:
        with av.open(str(path)) as container:
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
    _require_file(path)
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

    A folder that holds only images is one clip. Beside videos or folders with clips, each image is a clip of its own.
    Hidden files and files of other kinds are passed over; folders are searched to any depth. InputError if there is
    nothing to read, if two clips have the same name, or if a clip cannot be read or its frames differ in size; of many
    clips, `failed` takes these last errors, and the others are returned.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            _require_file(path)
        found = _clips_at(path)
        if not found:
            raise InputError(f"{path}: no images or videos there; known: {' '.join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)}")
        named = {}
        for name, paths in found:
            if (first := named.setdefault(name, paths)) is not paths:
                raise InputError(f"two clips are named {name!r}: {first[0]} and {paths[0]}; rename one")
        return readable(_open_clip, found, failed)
    except OSError as error:
        raise InputError(f"cannot read {error.filename or path}: {error.strerror}") from error


def readable(read: Callable[..., T], found: list[tuple], failed: Callable[[InputError], None] | None) -> list[T]:
    """`read` of all that was found; where that is more than one thing, `failed`, if given, takes their InputErrors."""
    results = []
    for arguments in found:
        try:
            results.append(read(*arguments))
        except InputError as error:
            if failed is None or len(found) == 1:
                raise
            failed(error)
    return results


def natural_order(name: str) -> tuple[list[str | int], str]:
    """A sorting key for names that puts frame2 before frame10."""
    parts = re.split(r"(\d+)", name.lower())  # text and digits alternate, so that like meets like
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def visible_entries(folder: Path) -> list[Path]:
    """The files and folders in `folder` that are not hidden, in natural order."""
    entries = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return sorted(entries, key=lambda entry: natural_order(entry.name))


def _clips_at(path: Path) -> list[tuple[str, list[Path]]]:
    """Names and files of the clips that a file or folder is; none if it is of another kind."""
    if not path.is_dir():
        return [(path.stem, [path])] if path.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES else []
    entries = visible_entries(path)
    images = {entry for entry in entries if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.is_dir()}
    others = {entry: _clips_at(entry) for entry in entries if entry not in images}
    if images and not any(others.values()):
        return [(path.resolve().name, [entry for entry in entries if entry in images])]
    return [clip for entry in entries for clip in (_clips_at(entry) if entry in images else others[entry])]


def _open_clip(name: str, paths: list[Path]) -> Clip:
    return _video_clip(paths[0]) if paths[0].suffix.lower() in VIDEO_SUFFIXES else _image_clip(name, paths)


def _image_clip(name: str, paths: list[Path]) -> Clip:
    """A clip of images, whose headers agree in the size that is shown."""
    sizes = []
    for path in paths:
        spec = _open_still(path).spec()
        upright = spec.get_int_attribute("Orientation", 1) < 5
        sizes.append(f"{spec.width}x{spec.height}" if upright else f"{spec.height}x{spec.width}")
        if sizes[-1] != sizes[0]:
            found, first = f"{path} has {sizes[-1]} pixels", f"{paths[0].name} {sizes[0]}"
            raise InputError(f"{found}, {first}; the frames of a clip need one size")
    return Clip(name, DEFAULT_FPS, len(paths), tuple(paths))


# ---- Sizes ----


def cover_size(source: tuple[int, int], target: tuple[int, int], multiple: int = 64) -> tuple[int, int]:
    """The (height, width) of `source` scaled to cover `target`, then each side rounded up to a `multiple`.

    With 64 this is the released preprocessing; it crops nothing.
    """
    (h, w), (height, width) = source, target
    # The scale, the larger of height/h and width/w, stays a fraction: a float could turn 512 into 512.0000001, and 576.
    numerator, denominator = (height, h) if height * w >= width * h else (width, w)
    return tuple(-(-side * numerator // (multiple * denominator)) * multiple for side in (h, w))


def fit_cover(
    frames: Float[np.ndarray, "*b h w 3"], size: tuple[int, int] | None = None, multiple: int = 64
) -> Float32[np.ndarray, "*b H W 3"]:
    """The frame or frames at the `cover_size` of `size` (height, width), or of their own: bilinear and antialiased."""
    size = cover_size(frames.shape[-3:-1], size or frames.shape[-3:-1], multiple)
    frames = np.asarray(frames, np.float32)
    if size == frames.shape[-3:-1]:
        return frames
    fitted = np.empty((*frames.shape[:-3], *size, 3), np.float32)
    for index in np.ndindex(*frames.shape[:-3]):  # one at a time: they may be large
        fitted[index] = resized(frames[index], size)
    return fitted


def resized(image: Float[np.ndarray, "h w 3"], size: tuple[int, int]) -> Float32[np.ndarray, "H W 3"]:
    """The image stretched to `size` (height, width): bilinear and antialiased; itself if it has that size."""
    image = np.asarray(image, np.float32)
    return image if image.shape[:2] == tuple(size) else np.asarray(_resize(image, shape=(*size, 3)))


_resize = jax.jit(partial(jax.image.resize, method="linear"), static_argnames="shape")


# ---- Files ----


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A hidden neighbour of `path` to write to: at the end it takes the place of `path`, on an error it vanishes.

    The folder is made. An OSError, or one of FFmpeg's, becomes an InputError naming `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")  # always the same: what a killed run left goes too
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, av.FFmpegError) as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} may not be read; see its permissions")


def _first_line(message: str) -> str:
    return message.strip().partition("\n")[0].strip()
