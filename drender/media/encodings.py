"""Encodings: the meaning of an image's values, in memory and in PNG and EXR files.

In memory all values are in [0, 1]. Colors (`rgb`, basecolor, diffuse albedo, relit frames) are sRGB-encoded. Roughness,
metallic and depth are one channel repeated to three. Depth is relative: 0 near, 1 far and background. Normals are in
camera space with OpenGL's axes (x right, y up, z toward the camera), stored as n·½ + ½; flipping an image horizontally
negates their x.

PNG holds the values of the networks. EXR holds physical values: linear light, unit vectors, and for depth, roughness
and metallic the mean of the three channels. Files of drender name their encoding in the text attributes
`drender:transfer` and `drender:normals`, and are decoded by them. `InputEncoding` applies to all other files.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from drender.errors import InputError, unknown_name_error
from drender.media.color import Pixels, linear_to_srgb, srgb_to_linear
from drender.media.images import load_image, write_exr, write_png
from drender.media.loaded import LoadedImage, warn_once

Camera = Float32[np.ndarray, "3 3"] | None
Cameras = Float32[np.ndarray, "f 3 3"] | None  # of every frame of a clip
KINDS = ("png", "exr")
TRANSFERS = ("linear", "srgb")
NORMALS = ("opengl", "directx")
INPUT_NORMALS = (*NORMALS, "world")
DEPTHS = ("relative", "metric", "inverse")
# Distances that are background: those above FAR, and the largest half float, to which Blender and Unreal clamp the sky.
FAR, HALF_MAX = 1e9, 65504.0
SLACK = 0.05  # resampling may overshoot a range by this
MAX_WHITE = 0.25  # share of a picture above white; highlights and skies are less
MAX_SPREAD = 0.25  # difference of the channels' means where they hold one value; those of an ORM texture differ more
SCALAR_LABELS = ("depth", "roughness", "metallic")
COLOR_LABELS = re.compile(r"rgb|basecolor|diffuse_albedo|env\d{4,}")
ATTRIBUTE_PREFIX = "drender:"
COLOR_SPACES = {"linear": "lin_rec709_scene", "srgb": "srgb_rec709_scene", None: "data"}  # OpenImageIO's names
NORMAL_AXES = {"opengl": "x right, y up, z toward the camera", "directx": "x right, y down, z toward the camera"}


def encode_normal(normal: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3"]:
    """Return unit vectors as stored colors: n·½ + ½, in [0, 1]."""
    return normal * 0.5 + 0.5


def decode_normal(stored: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3"]:
    """Return stored colors in [0, 1] as unit vectors; ½, which has no direction, gives the zero vector."""
    normal = stored * 2 - 1
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    return normal / np.maximum(length, 1e-6)


def renormalize_normals(stored: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3"]:
    """Rescale stored normals to unit length, since interpolation, as in a resized image, shortens them."""
    return encode_normal(decode_normal(stored))


def is_color(label: str) -> bool:
    """Return whether images of this label are colors; all others are data, without a transfer curve."""
    return COLOR_LABELS.fullmatch(label) is not None


def check_values(name: str, images: np.ndarray) -> Float32[np.ndarray, "..."]:
    """Return images as float32; raise InputError unless they hold finite floats in [0, 1], up to SLACK."""
    if not jnp.issubdtype(images.dtype, np.floating):  # NumPy does not know bfloat16
        raise InputError(f"{name}: expected floats in [0, 1], got {images.dtype}; divide bytes by 255")
    images = images.astype(np.float32)
    low, high = float(images.min()), float(images.max())
    if not (low >= -SLACK and high <= 1 + SLACK):
        raise InputError(f"{name}: expected finite values in [0, 1], got {low:.3g} to {high:.3g}; rescale them")
    return images


@dataclass(frozen=True)
class ImageFormat:
    """The format of written images.

    EXR files are half float, ZIP-compressed, and have R, G and B, so that any viewer opens them; depth also has Z in
    full precision. Normals are unit vectors in [−1, 1] in EXR, n·½ + ½ in PNG.
    """

    kind: str = "png"  # or "exr"
    bits: int = 8  # of PNG, 8 or 16
    transfer: str | None = None  # of colors, "linear" (Rec. 709 primaries) or "srgb"; None: linear in EXR, sRGB in PNG
    normals: str = "opengl"  # or "directx" with y down

    def write(self, path: Path, image: Pixels, label: str) -> None:
        """Write an image to `path`, whose suffix is the kind; InputError as in `write_png`."""
        transfer = (self.transfer or {"exr": "linear", "png": "srgb"}[self.kind]) if is_color(label) else None
        attributes = {"ImageDescription": self.description(label, transfer)}
        if transfer is not None:
            attributes[f"{ATTRIBUTE_PREFIX}transfer"] = transfer
        if transfer == "linear":
            image = srgb_to_linear(image)
        if label == "normal":
            attributes[f"{ATTRIBUTE_PREFIX}normals"] = self.normals
            image = _flip(image) if self.normals == "directx" else image
        if self.kind == "png":
            write_png(path, image, self.bits, attributes | {"oiio:ColorSpace": COLOR_SPACES[transfer]})
            return
        if label == "normal":
            image = decode_normal(image)
        if label in SCALAR_LABELS:
            image = np.repeat(image.mean(axis=-1, keepdims=True, dtype=np.float64), 3, axis=-1)
        channels = dict(zip("RGB", np.moveaxis(image, -1, 0), strict=True))
        write_exr(path, channels | ({"Z": image[..., 0]} if label == "depth" else {}), attributes)

    def description(self, label: str, transfer: str | None) -> str:
        """Return a description for people who open the file with another program."""
        if label == "normal":
            stored = "unit vectors" if self.kind == "exr" else "n/2 + 1/2 of unit vectors n"
            return f"normal: {stored} in camera space, {NORMAL_AXES[self.normals]}"
        if label == "depth":
            return "depth: relative, 0 near, 1 far and background"
        curve = {"linear": "linear light, Rec. 709 primaries", "srgb": "sRGB-encoded", None: "data, no transfer curve"}
        return f"{label}: {curve[transfer]}"


@dataclass(frozen=True)
class InputEncoding:
    """The encoding assumed for files whose metadata do not name it.

    Depth is "relative" (0 near, 1 far), "metric" (distances in any unit) or "inverse" (their reciprocals); None:
    relative, or metric if the first frame is out of range. `resolve_encoding` finds out the last two fields.
    """

    transfer: Literal[*TRANSFERS] | None = None  # of colors; None: linear in files of floats, sRGB in those of integers
    normals: Literal[*INPUT_NORMALS] = "opengl"  # "world": axes of the camera poses
    depth: Literal[*DEPTHS] | None = None
    layers: tuple[tuple[str, str], ...] = ()  # (label, name) of EXR layers, or of channels of any image, that hold it
    depth_range: tuple[float, float] | None = None  # nearest and farthest distance in a clip; None: depth is relative
    packed_normals: bool = False  # normals in files of floats are n·½ + ½

    def layer(self, label: str) -> str | None:
        """Return the name of the layer or channel that holds a label, if the user gave one."""
        return dict(self.layers).get(label)

    def load(self, path: Path, label: str, page: int = 0) -> LoadedImage:
        """Load an image like `load_image`; where it is transparent it is 0, or as far as the background in depth."""
        far = {"metric": np.inf, "inverse": 0.0}.get(self.depth, 1.0)
        return load_image(path, label, page, self.layer(label), far if label == "depth" else 0.0)

    def check_labels(self, known: Collection[str]) -> None:
        """Raise InputError for a layer of a label that is not known."""
        for label, _ in self.layers:
            if label not in known:
                raise unknown_name_error("label in --input-layers", label, known)


DEFAULT = InputEncoding()


def read_labeled(
    path: Path, label: str, assumed: InputEncoding = DEFAULT, page: int = 0, camera: Camera = None, finite: bool = True
) -> Pixels:
    """Read the image at `path` as the label requires, whatever its format.

    Normals in a file of floats are vectors in [−1, 1], from the channels X, Y, Z if present; depth is Z if present.
    Black in normals of integers, as where they are transparent, is no unit vector: it is background, (0, 0, 1).

    Args:
      camera: camera-to-world rotation of the frame, which normals in world space need.
      finite: raise for non-finite values; else their pixels become NaN.
    Raises:
      InputError: as in `read_image`, and for values that are not finite, out of the label's range, or three different
        channels of a label that has one.
    """
    still = assumed.load(path, label, page)
    if label == "depth" and assumed.depth_range is not None:
        near, far = assumed.depth_range
        distance = distances(still, assumed.depth)
        relative = np.where(np.isfinite(distance), (distance - near) / max(far - near, 1e-30), 1).clip(0, 1)
        return np.repeat(relative[..., None], 3, axis=-1).astype(np.float32)
    known = np.isfinite(still.image)
    if known.all():
        return _decode(path, label, still, assumed, camera)
    if finite:
        raise InputError(f"{path}: some pixels are infinite or NaN; replace them")
    invalid = ~known.all(axis=-1, keepdims=True)
    filled = still._replace(image=np.where(invalid, np.float32(0.5), still.image))
    return np.where(invalid, np.float32(np.nan), _decode(path, label, filled, assumed, camera))


def _decode(path: Path, label: str, still: LoadedImage, assumed: InputEncoding, camera: Camera) -> Pixels:
    """Return a finite image as the label requires."""
    image = still.image
    if is_color(label):
        default = "linear" if still.is_float else "srgb"
        if still.attributes.get(f"{ATTRIBUTE_PREFIX}transfer", assumed.transfer or default) != "linear":
            return still.as_srgb(path)
        linear = still.as_linear(path)
        if label == "rgb" and (linear.max(axis=-1) > 1 + SLACK).mean() > MAX_WHITE:
            problem = (
                f"more than {MAX_WHITE:.0%} of its pixels exceed 1 and are clipped; expected linear light in 0 to 1"
            )
            warn_once(path, f"{problem}, so lower its exposure")
        return linear_to_srgb(linear)
    if label == "normal":
        return _read_normal(path, still, assumed, camera)
    if label in SCALAR_LABELS:
        check_scalar(path, label, still)
    return image


def _read_normal(path: Path, still: LoadedImage, assumed: InputEncoding, camera: Camera) -> Pixels:
    """Return normals as stored colors in camera space with OpenGL's axes."""
    image = still.image
    is_background = ~(image.any(axis=-1, keepdims=True) | still.is_float)
    if still.is_float and not assumed.packed_normals:
        if (largest := np.abs(image).max()) > 1 + SLACK:
            raise InputError(f"{path}: normals reach {largest:.3g}, expected unit vectors; write them in −1 to 1")
        image = encode_normal(image)
    axes = still.attributes.get(f"{ATTRIBUTE_PREFIX}normals", assumed.normals)
    if axes == "directx":
        image = _flip(image)
    elif axes == "world":
        if camera is None:
            raise InputError(f"{path}: normals in world space need the camera's poses; give --poses, or camera space")
        # Row vectors times the camera-to-world matrix: the inverse rotation. A normal of ½ has no direction, and stays.
        image = encode_normal(decode_normal(image) @ camera).astype(np.float32)
    return np.where(is_background, np.float32([0.5, 0.5, 1]), image)


def check_scalar(path: Path, label: str, still: LoadedImage) -> None:
    """Raise InputError unless an image of one value per pixel has equal channels, in [0, 1] up to SLACK."""
    image, wants_distance = still.image, label == "depth"
    low, high = float(image.min()), float(image.max())
    if low < -SLACK or high > 1 + SLACK:
        remedy = (
            "give --input-depth metric, or encoding.json, if these are distances" if wants_distance else "rescale it"
        )
        raise InputError(f"{path}: {label} is {low:.3g} to {high:.3g}, expected 0 to 1; {remedy}")
    if still.attributes.get("ImageDescription") == ImageFormat().description(label, None):
        return  # an estimate of ours, whose channels may differ
    spread = float(np.ptp(image.mean(axis=(0, 1), dtype=np.float64)))
    if spread > MAX_SPREAD:
        channel = "depth=R" if wants_distance else "roughness=G metallic=B of an ORM texture"
        remedy = f"write one channel, or choose one: --input-layers {channel}, or encoding.json"
        raise InputError(f"{path}: expected equal channels of {label}, got means {spread:.2f} apart; {remedy}")


def distances(still: LoadedImage, kind: str | None) -> Float32[np.ndarray, "h w"]:
    """Return the distances of metric or "inverse" depth, infinite in the background.

    Values that are not finite, not positive, HALF_MAX or above FAR are background; in metric depth, the largest
    integer is too.
    """
    depth = still.image[..., 0]
    depth = np.where((np.abs(depth) <= FAR) & (np.abs(depth) != HALF_MAX), depth, np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind == "inverse":
            depth = np.where(depth > 0, 1 / depth, np.inf)
        elif not still.is_float:
            depth = np.where(depth < 1, depth, np.inf)
        elif (depth[np.isfinite(depth)] <= 0).all():  # z in OpenGL's camera space
            depth = -depth
        return np.where((depth > 0) & (depth <= FAR), depth, np.inf)


def _flip(normal: Pixels) -> Pixels:
    """Return stored normals with y negated."""
    return np.stack([normal[..., 0], 1 - normal[..., 1], normal[..., 2]], axis=-1)
