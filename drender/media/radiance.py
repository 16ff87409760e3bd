"""Read Radiance files as their headers declare: exposure, color correction, primaries, XYZ, orientation, old RLE.

OpenImageIO decodes the run lengths of today's files. It ignores or refuses the rest. The pixel aspect ratio is left to
the caller.
"""

import math
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import OpenImageIO as oiio
from jaxtyping import Float32, UInt8

from drender.errors import InputError, naming
from drender.media.color import XYZ_TO_REC709, primaries_to_rec709
from drender.media.geometry import turned

SIGNATURES = (b"#?RADIANCE", b"#?RGBE")
RESOLUTION = re.compile(rb"([-+])([XY]) +(\d+) +([-+])([XY]) +(\d+)[ \t\r]*\n")
MAX_HEADER = 2**16
MAX_BYTES_PER_PIXEL = 8  # pixels take 4, and in short rows run lengths as much again


class RadianceHeader(NamedTuple):
    """The header of a Radiance file."""

    rows: int  # of the file, which are columns of the image if `transposed`
    columns: int
    transposed: bool
    bottom_up: bool
    right_to_left: bool
    factor: tuple[float, ...]  # stored values over radiance, per channel, by all EXPOSURE and COLORCORR lines
    to_rec709: Float32[np.ndarray, "3 3"] | None  # matrix for row vectors
    start: int  # of the pixels in the file
    pixel_aspect: float  # width over height of a pixel of the image

    @property
    def size(self) -> tuple[int, int]:
        """Return the (height, width) of the image."""
        return (self.columns, self.rows) if self.transposed else (self.rows, self.columns)


def read_radiance_header(path: Path) -> RadianceHeader | None:
    """Return the header, or None if the file is not a Radiance file; InputError if it is damaged."""
    with path.open("rb") as file:
        head = file.read(MAX_HEADER)
    if not head.startswith(SIGNATURES):
        return None
    text, _, rest = head.partition(b"\n\n")
    resolution = RESOLUTION.match(rest)
    if resolution is None or resolution[2] == resolution[5]:
        raise InputError(f"{path}: truncated or damaged image (no resolution in its header); save it again")
    first, second = (-1 if sign == b"-" else 1 for sign in (resolution[1], resolution[4]))
    transposed = resolution[2] == b"X"
    y, x = (second, first) if transposed else (first, second)
    (aspect,) = _numbers(path, text, "PIXASPECT", 1)  # height / width
    factor = [_numbers(path, text, "EXPOSURE", 1), _numbers(path, text, "COLORCORR", 3)]
    if b"32-bit_rle_xyze" in text:
        matrix = XYZ_TO_REC709
    else:
        primaries = _numbers(path, text, "PRIMARIES", 8, last=True)
        matrix = None
        if set(primaries) not in ({1.0}, {0.0}):  # none, or zeros, which Photoshop writes for those of Rec. 709
            with naming(path):
                matrix = primaries_to_rec709(primaries)
    return RadianceHeader(
        int(resolution[3]), int(resolution[6]), transposed, y > 0, x < 0, tuple(factor[0][0] * f for f in factor[1]),
        matrix, len(text) + 2 + resolution.end(), 1 / aspect,
    )  # fmt: skip


def _numbers(path: Path, text: bytes, name: str, count: int, last: bool = False) -> tuple[float, ...]:
    """Return the product of the numbers in all lines of a name, or those of the last line; ones if there is none."""
    lines = re.findall(rb"^%s *=(.*)$" % name.encode(), text, re.MULTILINE)
    values = (1.0,) * count
    for line in lines:
        try:
            found = tuple(map(float, line.split()))
        except ValueError:
            found = ()
        if len(found) != count or not all(map(math.isfinite, found)) or (not last and min(found) <= 0):
            line = line.decode(errors="replace").strip()
            raise InputError(f"{path}: {name}={line} in its header: expected {count} positive numbers; correct it")
        values = found if last else tuple(a * b for a, b in zip(values, found, strict=True))
    return values


def read_radiance(path: Path, header: RadianceHeader) -> Float32[np.ndarray, "h w 3"]:
    """Return the upright image in linear light with Rec. 709 primaries; InputError if the file is damaged."""
    with path.open("rb") as file:
        file.seek(header.start)
        data = file.read(MAX_BYTES_PER_PIXEL * header.rows * header.columns)  # the rest of a larger file is no image
    if data[:2] == b"\2\2" and 8 <= header.columns < 2**15:
        image = _read_runs(path, header, data)
    else:
        rgbe = _expand_old_runs(path, data, header.rows * header.columns).reshape(header.rows, header.columns, 4)
        exponents = rgbe[..., 3:].astype(np.int32)  # shared by the channels; of 0, black
        image = np.where(exponents > 0, np.ldexp(rgbe[..., :3].astype(np.float32), exponents - 136), np.float32(0))
    image = turned(image, header.transposed, header.bottom_up, header.right_to_left)
    image /= np.float32(header.factor)  # in place, as maps may take gigabytes
    return image if header.to_rec709 is None else image @ header.to_rec709


def _read_runs(path: Path, header: RadianceHeader, data: bytes) -> Float32[np.ndarray, "rows columns 3"]:
    """Decode today's run lengths with OpenImageIO, from a copy with a header that it reads."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "a.hdr"
        copy.write_bytes(b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n" % (header.rows, header.columns) + data)
        source = oiio.ImageInput.open(str(copy))
        pixels = source.read_image("float") if source else None
        error = source.geterror() if source else oiio.geterror()
        if source:
            source.close()
    if pixels is None or error:
        raise InputError(f"{path}: truncated or damaged image ({error.strip()}); save it again")
    return pixels


def _expand_old_runs(path: Path, data: bytes, num_pixels: int) -> UInt8[np.ndarray, "n 4"]:
    """Return RGBE pixels: (1, 1, 1, n) repeats the pixel before n times, and more digits follow in base 256."""
    pixels = np.frombuffer(data[: len(data) // 4 * 4], np.uint8).reshape(-1, 4)
    repeats = (pixels[:, :3] == 1).all(axis=1)
    index = np.arange(len(pixels))
    source = np.maximum.accumulate(np.where(repeats, -1, index))
    digit = np.minimum(index - source - 1, 4)  # of a repeat
    counts = np.where(repeats, pixels[:, 3].astype(np.int64) << 8 * np.maximum(digit, 0), 1)
    total = np.cumsum(counts)
    if not len(total) or total[-1] < num_pixels or source[0] < 0:
        raise InputError(f"{path}: truncated or damaged image (too few pixels); save it again")
    used = int(np.searchsorted(total, num_pixels)) + 1
    counts[used - 1] -= total[used - 1] - num_pixels
    return pixels[np.repeat(source[:used], counts[:used])]
