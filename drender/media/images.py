"""Read and write images through OpenImageIO.

Images are float32 `h w 3` with the values of the file, integers mapped to [0, 1]: sRGB-encoded in PNG, JPEG, TIFF and
WebP, linear in Radiance .hdr and OpenEXR. Writing is atomic.
"""

import re
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import OpenImageIO as oiio
from jaxtyping import Float, Float32, UInt8

from drender.errors import InputError, first_line
from drender.files import atomic_write, require_file
from drender.media.color import LINEAR_SPACE, SRGB_SPACES, Pixels, srgb_to_linear
from drender.media.geometry import in_display_window, resample, shown_size, square_size, upright
from drender.media.layers import find_layer
from drender.media.loaded import LoadedImage, warn_once
from drender.media.radiance import RadianceHeader, read_radiance, read_radiance_header

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".gif")
HDR_SUFFIXES = (".hdr", ".exr")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Against decompression bombs, reject images whose header declares more than MAX_PIXELS, or more than both SMALL and
# MAX_PIXELS_PER_BYTE times the file's bytes. Outside WebP, even black has no more than 8000 pixels per byte.
MAX_PIXELS = 2**27  # 16384x8192, the largest environment maps in use: 1.6 GB as floats
MAX_PIXELS_PER_BYTE, SMALL = 2**14, 2**24
MAX_CHANNELS = 256
ROUGH_MODELS = ("CMYK", "YCCK", "CIELAB", "ICCLAB", "ITULAB")  # OpenImageIO's names of color models
EXIF_SRGB = 1  # EXIF's number of sRGB
SRGB_CICP = (1, 13, 0, 1)  # a cICP chunk that states sRGB: primaries, transfer, matrix (ITU-T H.273), full range
SRGB_PRIMARIES, SRGB_TRANSFERS = (1, 2), (1, 2, 4, 6, 13)  # numbers of ITU-T H.273 that viewers show as sRGB
LINEAR_PROFILE = re.compile("linear|g10", re.IGNORECASE)  # in the names of ICC profiles
Attributes = Mapping[str, str]  # of a header
PREFERRED_CHANNELS = {"normal": "XYZ", "depth": "Z"}  # of an EXR, over R, G and B


def read_image(path: str | Path) -> Pixels:
    """Read the image at `path` as stored, integers mapped to [0, 1] (sRGB-encoded; .hdr and .exr are linear).

    Gray becomes three equal channels, alpha is composited on black, EXIF orientation is applied, EXR's data window is
    placed in its display window, and colors of another space are converted to Rec. 709 primaries.

    Raises:
      InputError: the file is missing, not an image, truncated, damaged or larger than MAX_PIXELS.
    """
    still = load_image(path)
    return still.as_linear(path) if still.is_float else still.as_srgb(path)


def read_hdr(path: str | Path, warn: bool = True) -> Pixels:
    """Read the image at `path` in linear light, unbounded, with NaN and infinities; InputError as in `read_image`.

    An image of integers (PNG, JPEG, …) is decoded from sRGB, if `warn` with a UserWarning: it holds no light above 1.
    """
    still = load_image(path)
    if still.is_float:
        return still.as_linear(path)
    if warn:
        problem = "is not an HDR image, so its lights are clipped at 1; use a .hdr or .exr file"
        warnings.warn(f"{path} {problem}", stacklevel=2)
    return srgb_to_linear(still.as_srgb(path))


def write_png(
    path: str | Path,
    image: Float[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w 3"],
    bits: int = 8,
    attributes: Attributes | None = None,
) -> None:
    """Write a PNG of 8 or 16 bits, and its folder if missing.

    Args:
      image: floats in [0, 1] (clipped, rounded to nearest) or uint8.
      attributes: become text chunks; OpenImageIO's `oiio:ColorSpace` sets gAMA and sRGB.
    Raises:
      InputError: the file cannot be written, for example on a full disk; nothing is left behind.
    """
    pixels = to_integers(image, bits)
    height, width, channels = pixels.shape
    _write(path, "png", oiio.ImageSpec(width, height, channels, str(pixels.dtype)), pixels, attributes or {})


def write_exr(
    path: str | Path, channels: Mapping[str, Float[np.ndarray, "h w"]], attributes: Attributes | None = None
) -> None:
    """Write an OpenEXR file, ZIP-compressed, in half float except for the channel Z, which is float.

    The `attributes` become strings in its header. InputError as in `write_png`.
    """
    pixels = np.stack(list(channels.values()), axis=-1).astype(np.float32)
    spec = oiio.ImageSpec(pixels.shape[1], pixels.shape[0], len(channels), "half")
    spec.channelnames = tuple(channels)
    spec.channelformats = tuple(oiio.TypeDesc("float" if name == "Z" else "half") for name in channels)
    spec.attribute("compression", "zip")
    spec.attribute("DateTime", "")  # none, so that equal images are equal bytes
    _write(path, "exr", spec, pixels, attributes or {})


def write_hdr(path: str | Path, image: Float[np.ndarray, "h w 3"], attributes: Attributes | None = None) -> None:
    """Write linear light as an OpenEXR file, as `write_exr` does."""
    write_exr(path, dict(zip("RGB", np.moveaxis(image, -1, 0), strict=True)), attributes)


def _write(path: str | Path, kind: str, spec: "oiio.ImageSpec", pixels: np.ndarray, attributes: Attributes) -> None:
    for name, value in attributes.items():
        spec.attribute(name, value)
    is_complete = {"png": _is_complete_png, "exr": _is_complete_exr}[kind]
    with atomic_write(path) as temporary:
        output = oiio.ImageOutput.create(kind)
        success = output.open(str(temporary), spec) and output.write_image(pixels) and output.close()
        # OpenImageIO may return success on a full disk, so check its message and the file as well.
        if (error := output.geterror()) or not success or not is_complete(temporary):
            raise OSError(first_line(error) or "the file is incomplete; is the disk full?")


def stored_bits(path: str | Path) -> int:
    """Return the bits of a PNG that holds the image at `path`: 8, or 16 for deeper integers and floats.

    InputError as in `read_image`.
    """
    with Path(path).open("rb") as file:
        head = file.read(25)
    if head[:8] == PNG_SIGNATURE and len(head) == 25:
        return 16 if head[24] == 16 else 8  # the header suffices, and G-buffers are many
    source = open_image(path)
    bits = 8 if str(source.spec().format) == "uint8" else 16
    source.close()
    return bits


def to_integers(image: np.ndarray, bits: int = 8) -> np.ndarray:
    """Return floats in [0, 1] as unsigned integers of `bits`, halves rounded up; uint8 stays as it is.

    Other integers, whose range is unknown, raise InputError.
    """
    if image.dtype != np.uint8:
        if image.dtype.kind in "iu":
            raise InputError(f"pixels: expected floats in [0, 1] or uint8, got {image.dtype}; convert them")
        image = np.floor(np.clip(image, 0, 1).astype(np.float32) * (2**bits - 1) + 0.5).astype(f"uint{bits}")
    return np.ascontiguousarray(image)


def load_image(
    path: str | Path, label: str = "rgb", page: int = 0, layer_name: str | None = None, background: float = 0.0
) -> LoadedImage:
    """Load an image as `read_image` does; of an EXR, the channels and the layer that fit the label.

    Args:
      layer_name: layer of an EXR, or channel of any image, to read instead.
      background: value of transparent pixels, and outside the data window of an EXR. An image with alpha is composited
        on it, if it is finite.
    Raises:
      InputError: as `read_image`, for an EXR of several layers unless exactly one fits, and for an unknown layer.
    """
    if header := _radiance_header(path):
        image = resample(read_radiance(Path(path), header), square_size(path, *header.size, header.pixel_aspect), label)
        return LoadedImage(image, is_float=True, attributes={})
    source = open_image(path, page)
    is_exr = Path(path).suffix.lower() == ".exr"
    layer = find_layer(source, path, label, layer_name) if is_exr or layer_name else None
    if layer and is_exr:
        page = layer.part
        source.seek_subimage(page, 0)
    spec, alpha = source.spec(), None
    if layer:
        chosen = layer.indices(PREFERRED_CHANNELS.get(label, ""))
        first, last = min(chosen), max(chosen) + 1
    else:
        # OpenImageIO puts R, G, B first if present. Otherwise: luminance, depth, or channels of unknown names.
        chosen = [channel for channel in range(spec.nchannels) if channel != spec.alpha_channel] or [0]
        first, last = 0, spec.nchannels
        if spec.alpha_channel >= 0 and spec.get_int_attribute("oiio:UnassociatedAlpha"):
            alpha = spec.alpha_channel
    try:
        pixels = source.read_image(page, 0, first, last, "float")
    except MemoryError:
        raise InputError(f"{path}: {spec.width}x{spec.height} pixels do not fit into memory; shrink it") from None
    error = _text(source.geterror)  # a truncated JPEG has both: an error, and pixels filled up with gray
    source.close()
    if pixels is None or error:
        raise InputError(f"{path}: truncated or damaged image ({first_line(error)}); save it again")
    chosen = [channel - first for channel in (chosen[:3] if len(chosen) >= 3 else chosen[:1] * 3)]
    image = _gather(pixels, chosen, alpha, background)
    image = resample(in_display_window(image, spec, background), shown_size(path, spec), label)
    image = upright(image, spec.get_int_attribute("Orientation", 1))
    return _with_metadata(path, image, spec)


def _with_metadata(path: str | Path, image: Pixels, spec: "oiio.ImageSpec") -> LoadedImage:
    """Return an image with what its header states about the colors; warn of what is not honored."""
    is_float = str(spec.format) in ("half", "float", "double")
    strings = (item for item in spec.extra_attribs if str(item.type) == "string")
    attributes = {_text(lambda: item.name): _text(lambda: item.value) for item in strings}  # noqa: B023
    model = attributes.get("tiff:ColorSpace", attributes.get("jpeg:ColorSpace"))
    if model in ROUGH_MODELS:
        warn_once(path, f"its {model} colors become RGB without a profile, which is inexact; convert it to RGB")
    space, profile = attributes.get("oiio:ColorSpace"), None
    name = attributes.get("ICCProfile:profile_description", "")
    names_srgb = "srgb" in name.lower()
    stored_profile = spec.getattribute("ICCProfile")
    if not is_float and stored_profile is not None and not names_srgb and model not in ROUGH_MODELS:
        profile = np.asarray(stored_profile, np.uint8).tobytes()
    elif is_float and names_srgb and not LINEAR_PROFILE.search(name):
        space = SRGB_SPACES[0]
    elif is_float and name and not LINEAR_PROFILE.search(name):
        warn_once(path, f"its ICC profile {name!r} is ignored, as floats are linear Rec. 709; convert it to that")
    if space in (None, "data", "raw", "unknown", *((LINEAR_SPACE,) if is_float else SRGB_SPACES)):
        space = None
    ignored = _ignored_colors(spec) if profile is None and space is None else None
    return LoadedImage(image, is_float, attributes, profile, space, spec.getattribute("chromaticities"), ignored)


def _ignored_colors(spec: "oiio.ImageSpec") -> str | None:
    """Return what a header without a profile or color space states of colors beside sRGB, or None."""
    primaries, transfer, _, is_full = spec.getattribute("CICP") or SRGB_CICP
    if primaries not in SRGB_PRIMARIES or transfer not in SRGB_TRANSFERS or not is_full:
        return f"cICP chunk (primaries {primaries}, transfer {transfer}, {'full' if is_full else 'narrow'} range)"
    if spec.get_int_attribute("Exif:ColorSpace", EXIF_SRGB) not in (EXIF_SRGB, 0):
        return "EXIF color space, which is not sRGB (Adobe RGB in cameras),"
    return None


def _radiance_header(path: str | Path) -> RadianceHeader | None:
    """Return the header of a Radiance file, or None for other images; InputError as in `read_image`."""
    path = Path(path)
    if path.suffix.lower() != ".hdr":
        return None
    require_file(path)
    header = read_radiance_header(path)
    if header:
        _check_size(path, header.columns, header.rows, path.stat().st_size)
    return header


def image_size(path: str | Path) -> tuple[int, int]:
    """Return the (height, width) of an image as `load_image` returns it, from the header; InputError as there."""
    if header := _radiance_header(path):
        return square_size(path, *header.size, header.pixel_aspect)
    spec = open_image(path).spec()
    size = shown_size(path, spec)
    return size if spec.get_int_attribute("Orientation", 1) < 5 else size[::-1]


def stated_rate(path: Path) -> float | None:
    """Return the frames per second that an EXR of a sequence states, or None; InputError as in `read_image`."""
    rate = open_image(path).spec().getattribute("FramesPerSecond") if path.suffix.lower() == ".exr" else None
    return rate[0] / rate[1] if rate and min(rate) > 0 else None


def count_pages(path: str | Path) -> int:
    """Return the number of pages of a TIFF that have the first one's size: others are thumbnails."""
    source, count = open_image(path), 1
    first = source.spec()
    while source.seek_subimage(count, 0) and (source.spec().width, source.spec().height) == (first.width, first.height):
        count += 1
    return count


def open_image(path: str | Path, page: int = 0) -> "oiio.ImageInput":
    """Open a reader of the image at `path` after checking its header; InputError as in `read_image`."""
    path = Path(path)
    if path.suffix.lower() not in IMAGE_SUFFIXES + HDR_SUFFIXES:
        raise InputError(f"{path}: unknown image suffix; known: {' '.join(IMAGE_SUFFIXES + HDR_SUFFIXES)}")
    require_file(path)
    with path.open("rb") as file:
        is_png = file.read(8) == PNG_SIGNATURE
    # Checked here because libpng would print to stderr, and a truncated GIF would be taken for a shorter one.
    is_gif = path.suffix.lower() == ".gif"
    if (is_png and not _is_complete_png(path)) or (is_gif and not path.read_bytes().rstrip(b"\0").endswith(b";")):
        raise InputError(f"{path}: truncated or damaged image; save it again")
    as_stored = oiio.ImageSpec()
    as_stored["oiio:UnassociatedAlpha"] = 1  # a multiplication by alpha in 8 bits would lose precision
    source = oiio.ImageInput.open(str(path), as_stored)
    if source is None:
        raise InputError(f"{path}: not a readable image ({first_line(_text(oiio.geterror))}); save it again")
    if page and not source.seek_subimage(page, 0):
        raise InputError(f"{path}: has no page {page}; save it again")
    spec, size = source.spec(), path.stat().st_size
    _check_size(path, *shown_size(path, spec)[::-1])
    _check_size(path, spec.width, spec.height, size)
    if not 0 < spec.nchannels <= MAX_CHANNELS or spec.depth > 1 or spec.deep:
        raise InputError(f"{path}: expected a flat image of 1 to {MAX_CHANNELS} channels; save it again")
    return source


def _check_size(path: Path, width: int, height: int, num_bytes: int | None = None) -> None:
    """Raise InputError for a size that is too large, or that `num_bytes` cannot hold."""
    if width * height > MAX_PIXELS:
        raise InputError(f"{path}: declares {width}x{height} pixels, the limit is {MAX_PIXELS}; shrink it")
    if num_bytes is not None and not 0 < width * height <= max(MAX_PIXELS_PER_BYTE * num_bytes, SMALL):
        raise InputError(f"{path}: declares {width}x{height} pixels in {num_bytes} bytes; save it again")


def _text(read: Callable[[], str]) -> str:
    """Call `read` for a string of OpenImageIO, replacing bytes of a damaged file that are not UTF-8."""
    try:
        return read()
    except UnicodeDecodeError as error:
        return error.object.decode(errors="replace")


def _gather(pixels: Float32[np.ndarray, "h w c"], chosen: list[int], alpha: int | None, background: float) -> Pixels:
    """Return three channels, over `background` if `alpha` is a channel, in the memory of `pixels` if they fit."""
    height, width, count = pixels.shape
    if chosen == list(range(count)):
        return pixels
    flat = pixels.reshape(-1) if count >= 3 else np.empty(height * width * 3, np.float32)
    image = flat[: height * width * 3].reshape(height, width, 3)
    for row, source in zip(image, pixels, strict=True):  # no row is written before it is read
        values = source[:, chosen]
        if alpha is None:
            row[...] = values
        elif np.isfinite(background):
            row[...] = background + (values - background) * source[:, alpha, None]
        else:  # distances, which are not mixed
            row[...] = np.where(source[:, alpha, None] > 0, values, background)
    return image


def _is_complete_png(path: Path) -> bool:
    """Return whether the file is a PNG of a size that libpng accepts, all of whose chunks match their checksums."""
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


def _is_complete_exr(path: Path) -> bool:
    """Return whether all pixels of the file can be read."""
    source = oiio.ImageInput.open(str(path))
    complete = source is not None and source.read_image(0, 0, 0, source.spec().nchannels, "half") is not None
    return complete and not source.geterror()
