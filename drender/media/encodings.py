"""What the numbers of an image mean, in memory and in PNG and EXR files.

In memory all are in [0, 1]. Colours (`rgb`, basecolor, diffuse albedo, relit frames) are sRGB-encoded; roughness,
metallic and depth are one channel repeated to three. Depth is relative: 0 near, 1 far and background. Normals are in
camera space with OpenGL's axes (x right, y up, z toward the camera), as n·½ + ½; a horizontal flip of the image negates
their x.

PNG holds these numbers as the networks give them; EXR holds what they mean: linear light, unit vectors, and one value
of depth, roughness or metallic, the mean of the three. Files of ours say what they hold in text attributes,
`drender:transfer` and `drender:normals`, and are read back by them; others are taken as the options or USUAL say.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from drender.errors import InputError, unknown_name_error
from drender.media.color import linear_to_srgb, srgb_to_linear
from drender.media.images import load_image, write_exr, write_png

KINDS = ("png", "exr")
TRANSFERS = ("linear", "srgb")
NORMALS = ("opengl", "directx")
SCALAR_LABELS = ("depth", "roughness", "metallic")
COLOR_LABELS = re.compile(r"rgb|basecolor|diffuse_albedo|env\d{4,}")
ATTRIBUTE_PREFIX = "drender:"  # how the names of our attributes begin
COLOR_SPACES = {"linear": "lin_rec709_scene", "srgb": "srgb_rec709_scene", None: "data"}  # in OpenImageIO's words
NORMAL_AXES = {"opengl": "x right, y up, z toward the camera", "directx": "x right, y down, z toward the camera"}


def encode_normal(normal: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3"]:
    """Unit vectors, in [−1, 1], as the colours in [0, 1] that are stored."""
    return normal * 0.5 + 0.5


def decode_normal(colour: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3"]:
    """Stored colours in [0, 1] as unit vectors. The colour ½, which has no direction, gives the zero vector."""
    normal = colour * 2 - 1
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    return normal / np.maximum(length, 1e-6)


def renormalize_normals(colour: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3"]:
    """Stored normals of length one again: means of unit vectors, as of a resized image, are shorter."""
    return encode_normal(decode_normal(colour))


def is_color(label: str) -> bool:
    """Whether images of this label are colours; all others are data, which no transfer curve changes."""
    return COLOR_LABELS.fullmatch(label) is not None


@dataclass(frozen=True)
class ImageFormat:
    """How images are written.

    Attributes:
      kind: "png", or "exr": half float, ZIP-compressed. Every EXR file has R, G and B, so that it opens as a picture
        anywhere; depth has Z besides, in full precision.
      bits: of PNG, 8 or 16.
      transfer: of colours, "linear" (Rec. 709 primaries) or "srgb"; by default linear in EXR, sRGB in PNG.
      normals: "opengl", or "directx" with y down. In EXR they are unit vectors in [−1, 1], in PNG n·½ + ½.
    Raises:
      InputError: an unknown word or number of bits.
    """

    kind: str = "png"
    bits: int = 8
    transfer: str | None = None
    normals: str = "opengl"

    def __post_init__(self):
        for name, value, known in (
            ("format", self.kind, KINDS),
            ("transfer", self.transfer or "srgb", TRANSFERS),
            ("normals", self.normals, NORMALS),
        ):
            if value not in known:
                raise unknown_name_error(name, value, known)
        if self.bits not in (8, 16):
            raise InputError(f"bits is {self.bits}; PNG has 8 or 16")

    def write(self, path: Path, image: Float32[np.ndarray, "h w 3"], label: str) -> None:
        """Writes an image as it is in memory to `path`, whose suffix is the kind. InputError as in `write_png`."""
        transfer = (self.transfer or {"exr": "linear", "png": "srgb"}[self.kind]) if is_color(label) else None
        attributes = {"ImageDescription": self._description(label, transfer)}
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

    def _description(self, label: str, transfer: str | None) -> str:
        """A sentence for whoever opens the file with another program."""
        if label == "normal":
            stored = "unit vectors" if self.kind == "exr" else "n/2 + 1/2 of unit vectors n"
            return f"normal: {stored} in camera space, {NORMAL_AXES[self.normals]}"
        if label == "depth":
            return "depth: relative, 0 near, 1 far and background"
        curve = {"linear": "linear light, Rec. 709 primaries", "srgb": "sRGB-encoded", None: "data, no transfer curve"}
        return f"{label}: {curve[transfer]}"


@dataclass(frozen=True)
class InputEncoding:
    """What files hold that do not say it.

    Attributes:
      transfer: of colours, "linear" or "srgb"; None: linear in files of floats, sRGB in those of integers.
      normals: "opengl" or "directx".
    """

    transfer: str | None = None
    normals: str = "opengl"


DEFAULT = InputEncoding()


def read_labeled(path: Path, label: str, assumed: InputEncoding = DEFAULT) -> Float32[np.ndarray, "h w 3"]:
    """The image at `path` as it is in memory, whatever its format. Values of data beyond [0, 1] are kept.

    Normals in a file of floats are vectors in [−1, 1], from the channels X, Y, Z if it has them; depth is Z if there is
    one. InputError as in `read_image`, and for values that are no numbers.
    """
    still = load_image(path, {"normal": ("X", "Y", "Z"), "depth": ("Z",)}.get(label, ()))
    image = still.image
    if not np.isfinite(image).all():
        raise InputError(f"{path}: some pixels are infinite or no numbers; replace them")
    if is_color(label):
        usual = "linear" if still.is_float else "srgb"
        linear = still.attributes.get(f"{ATTRIBUTE_PREFIX}transfer", assumed.transfer or usual) == "linear"
        return linear_to_srgb(image) if linear else image
    if label == "normal":
        image = encode_normal(image) if still.is_float else image
        directx = still.attributes.get(f"{ATTRIBUTE_PREFIX}normals", assumed.normals) == "directx"
        return _flip(image) if directx else image
    return image


def _flip(normal: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w 3"]:
    """Stored normals with y the other way."""
    return np.stack([normal[..., 0], 1 - normal[..., 1], normal[..., 2]], axis=-1)
