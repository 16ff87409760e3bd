"""Read animated GIF, WebP and PNG images (through Pillow) and TIFF files of several pages as clips."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from drender.errors import InputError, first_line
from drender.files import require_file
from drender.media.color import Pixels
from drender.media.encodings import InputEncoding, read_labeled
from drender.media.geometry import upright
from drender.media.images import MAX_PIXELS, count_pages, open_image
from drender.media.loaded import LoadedImage

TIFF_SUFFIXES = (".tif", ".tiff")
UNTIMED_SECONDS = 0.1  # of a frame without a duration, as in browsers


def is_animated(path: Path) -> bool:
    """Return whether a file holds several images, from its first bytes where they suffice; False if it is damaged."""
    suffix = path.suffix.lower()
    try:
        if suffix in TIFF_SUFFIXES:
            return count_pages(path) > 1
        if suffix == ".gif":
            with _open(path) as animation:
                return animation.n_frames > 1
        if suffix in (".png", ".webp"):
            with path.open("rb") as file:
                head = file.read(2**16)
            if suffix == ".png":
                return b"acTL" in head.partition(b"IDAT")[0]
            return head[12:16] == b"VP8X" and len(head) > 20 and bool(head[20] & 2)
    except InputError:
        pass  # whoever reads the file as an image reports the damage
    return False


def probe_animation(path: Path) -> tuple[float | None, int]:
    """Return the mean frame rate, None for pages of a TIFF, and the number of images; InputError if damaged."""
    if path.suffix.lower() in TIFF_SUFFIXES:
        return None, count_pages(path)
    if path.suffix.lower() == ".gif":
        open_image(path).close()  # finds a truncated file, which Pillow takes for a shorter one
    with _open(path) as animation:
        count, seconds = getattr(animation, "n_frames", 1) - _num_posters(animation), 0.0
        for index in range(count):
            animation.seek(index + _num_posters(animation))
            animation.load()  # Pillow knows the duration of a WebP frame once it is decoded
            seconds += animation.info.get("duration", 0) / 1000 or UNTIMED_SECONDS
    return count / seconds, count


def read_animation(path: Path, start: int, stop: int, label: str, assumed: InputEncoding) -> Iterator[Pixels]:
    """Yield images start to stop − 1, composited on black; InputError if damaged."""
    if path.suffix.lower() in TIFF_SUFFIXES:
        yield from (read_labeled(path, label, assumed, page) for page in range(start, stop))
        return
    with _open(path) as animation:
        orientation = animation.getexif().get(ExifTags.Base.Orientation, 1)
        for index in range(start, stop):
            animation.seek(index + _num_posters(animation))
            rgba = np.asarray(animation.convert("RGBA"), np.float32) / 255
            image = upright(rgba[..., :3] * rgba[..., 3:], orientation)
            yield LoadedImage(image, False, {}, animation.info.get("icc_profile")).as_srgb(path)


def _num_posters(animation: Image.Image) -> int:
    """Return 1 if Pillow's first image is that of a PNG for viewers without animation, which is no frame, else 0."""
    return int(getattr(animation, "default_image", False))


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """Open an animation; Pillow's errors, which are of many types for damaged files, become InputErrors."""
    require_file(path)
    try:
        with Image.open(path) as animation:
            if animation.width * animation.height > MAX_PIXELS:
                raise InputError(f"{path}: declares {animation.width}x{animation.height} pixels; shrink it")
            yield animation
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: truncated or damaged animation ({first_line(error)}); save it again") from error
