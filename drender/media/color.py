"""Color: the sRGB curve (IEC 61966-2-1) for numpy and for JAX, luminance, and other color spaces to sRGB."""

import functools
import io

import jax.numpy as jnp
import numpy as np
import OpenImageIO as oiio
from jaxtyping import Array, Float, Float32, UInt16
from PIL import Image, ImageCms

from drender.errors import InputError

Pixels = Float32[np.ndarray, "h w 3"]  # an image, in whatever encoding

LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)  # weights of linear BT.709 red, green and blue
OCIO_CONFIG = "ocio://studio-config-latest"  # built into OpenColorIO
HDR_SPACES = {"pq": "Rec.2100-PQ - Display", "hlg": "Rec.2100-HLG - Display"}
LINEAR_SPACES = {"rec709": "Linear Rec.709 (sRGB)", "rec2020": "Linear Rec.2020", "p3": "Linear P3-D65"}
# OpenImageIO's names of color spaces that images declare, and of those that count as sRGB. Viewers show an image of
# gamma 2.2 as sRGB.
LINEAR_SPACE, SRGB_SPACES = "lin_rec709_scene", ("srgb_rec709_scene", "g22_rec709_scene", "srgb_rec709_display")
HDR_WHITE = 203.0  # nits of diffuse white in HDR video (ITU-R BT.2408)
REC709 = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)  # x and y of red, green, blue, white
KNEE = 0.8  # HDR light above this share of white is compressed to [KNEE, 1]


def srgb_to_linear(image: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    """Decode sRGB values in [0, 1] to linear light in [0, 1], in the dtype of the image."""
    return np.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(image: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b"]:
    """Encode linear light as sRGB in [0, 1], in the dtype of the image. Values outside [0, 1] are clipped first."""
    image = np.clip(image, 0, 1)
    return np.where(image <= 0.0031308, image * 12.92, 1.055 * image ** (1 / 2.4) - 0.055)


def linear_to_srgb_jnp(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Encode linear light in [0, 1] as sRGB: `linear_to_srgb` for JAX arrays, without clipping."""
    return jnp.where(x <= 0.0031308, 12.92 * x, 1.055 * jnp.maximum(x, 0.0031308) ** (1 / 2.4) - 0.055)


# --- wide gamut and HDR ---


def profile_to_srgb(image: Pixels, profile: bytes) -> Pixels:
    """Convert an image from the color space of an ICC profile to sRGB.

    Pillow's LittleCMS converts 8 bits only. So it converts a rounded copy, and the image gets the change of that copy:
    16 bits keep their gradation. An invalid profile raises PIL.ImageCms.PyCMSError or OSError, and a profile of gray
    for an image of colors InputError.
    """
    rounded = np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    is_gray = source.profile.xcolor_space.strip() == "GRAY"
    if is_gray and (rounded != rounded[..., :1]).any():
        raise InputError("it is for gray images")
    picture = Image.fromarray(rounded[..., 0] if is_gray else rounded)
    converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    change = (np.asarray(converted, np.float32) - rounded.astype(np.float32)) / np.float32(255)
    return np.clip(image + change, 0, 1)


def to_srgb_gamut(image: Pixels, primaries: str) -> Pixels:
    """Convert an image with sRGB's curve from "rec709" (unchanged), "rec2020" or "p3" primaries to sRGB, clipped."""
    if primaries == "rec709":
        return image
    return linear_to_srgb(srgb_to_linear(image) @ _to_rec709(primaries))


def hdr_to_srgb(signal: UInt16[np.ndarray, "h w 3"], transfer: str, primaries: str = "rec2020") -> Pixels:
    """Convert a "pq" or "hlg" signal to sRGB, with diffuse white (203 nits) at 1 and brighter light rolled off.

    The signal is R'G'B' in 16 bits, full range, with "rec2020" or "p3" primaries.
    """
    linear = _hdr_curve(transfer)[signal] @ _to_rec709(primaries)
    peak = linear.max(axis=-1, keepdims=True)
    # One factor for all three channels keeps the hue.
    rolled = KNEE + (1 - KNEE) * (1 - np.exp(-np.maximum(peak - KNEE, 0) / (1 - KNEE)))
    return linear_to_srgb(np.where(peak > KNEE, linear * (rolled / np.maximum(peak, KNEE)), linear))


def space_to_srgb(image: Pixels, space: str) -> Pixels:
    """Convert an image of a color space that OpenImageIO names, such as "pq_rec2020_display", to sRGB, clipped.

    An unknown space raises InputError, here and in `space_to_rec709`.
    """
    transfer, _, primaries = space.removesuffix("_display").partition("_")
    if transfer in HDR_SPACES and primaries in ("rec2020", "p3d65"):
        signal = np.rint(np.clip(image, 0, 1) * 65535).astype(np.uint16)
        return hdr_to_srgb(signal, transfer, primaries.removesuffix("d65"))
    return linear_to_srgb(space_to_rec709(image, space))


def space_to_rec709(image: Pixels, space: str) -> Pixels:
    """Convert an image of a color space that OpenImageIO names to linear light with Rec. 709 primaries."""
    return image if space == LINEAR_SPACE else _ocio_convert(image, space, LINEAR_SPACE)


@functools.cache
def primaries_to_rec709(chromaticities: tuple[float, ...]) -> Float32[np.ndarray, "3 3"]:
    """Return the matrix that takes row vectors of linear light to Rec. 709, with white adapted to D65 (Bradford).

    The `chromaticities` are x and y of red, green, blue and white. InputError if they span no gamut.
    """
    to_xyz, white = _to_xyz(chromaticities)
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    to_rec709, d65 = np.linalg.inv(_to_xyz(REC709)[0]), _to_xyz(REC709)[1]
    adapt = np.linalg.inv(bradford) @ np.diag((bradford @ d65) / (bradford @ white)) @ bradford
    return (to_rec709 @ adapt @ to_xyz).T.astype(np.float32)


def _to_xyz(chromaticities: tuple[float, ...]) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]:
    """Return the matrix from RGB (columns) to XYZ, and XYZ of white at Y = 1."""
    x, y = np.array(chromaticities, np.float64).reshape(4, 2).T
    with np.errstate(divide="ignore", invalid="ignore"):
        white = np.array([x[3] / y[3], 1, (1 - x[3] - y[3]) / y[3]])
    primaries = np.stack([x, y, 1 - x - y])[:, :3]
    if not np.isfinite(white).all() or abs(np.linalg.det(primaries)) < 1e-6:
        raise InputError(f"chromaticities {chromaticities} span no gamut; correct them in the file")
    return primaries * np.linalg.solve(primaries, white), white


XYZ_TO_REC709 = np.linalg.inv(_to_xyz(REC709)[0]).T.astype(np.float32)


@functools.cache
def _hdr_curve(transfer: str) -> Float32[np.ndarray, "65536"]:
    """Return linear light, relative to diffuse white, of every 16-bit value of a channel.

    HLG is decoded to scene light: an SDR display shows it with a system gamma of about 1 (ITU-R BT.2390), so the gamma
    of 1.2 that OpenColorIO applies, for a display of 1000 nits, is undone.
    """
    grays = np.repeat(np.linspace(0, 1, 65536, dtype=np.float32)[None, :, None], 3, axis=-1)
    linear = _ocio_convert(grays, HDR_SPACES[transfer], LINEAR_SPACES["rec709"])[0, :, 1]
    relative = np.maximum(linear, 0) * np.float32(100 / HDR_WHITE)  # OpenColorIO's 1 is 100 nits
    return relative ** np.float32(1 / 1.2) if transfer == "hlg" else relative


@functools.cache
def _to_rec709(primaries: str) -> Float32[np.ndarray, "3 3"]:
    """Return the matrix that takes row vectors of linear light to Rec. 709 primaries."""
    return _ocio_convert(np.eye(3, dtype=np.float32)[None], LINEAR_SPACES[primaries], LINEAR_SPACES["rec709"])[0]


def _ocio_convert(image: Pixels, source: str, target: str) -> Pixels:
    """Convert an image between color spaces of OpenColorIO's built-in configuration."""
    converted = oiio.ImageBufAlgo.colorconvert(oiio.ImageBuf(image), source, target, colorconfig=OCIO_CONFIG)
    if not converted.initialized or converted.has_error:
        oiio.geterror()  # clears it
        raise InputError(f"{source!r} is unknown")
    return converted.get_pixels(oiio.FLOAT)
