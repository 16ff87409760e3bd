"""Edit the material buffers of a scene: set, scale or replace basecolor, roughness and metallic inside a mask.

Arrays are those of the renderers, `b f h w 3` in [0, 1], or single frames of them. A mask is `… h w 1`: 1 inside, 0
outside, in between at soft edges. Where the mask is 0, every buffer keeps its bits.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Shaped
from scipy.ndimage import gaussian_filter1d

from drender.errors import InputError, unknown_name_error
from drender.media.color import linear_to_srgb, srgb_to_linear
from drender.media.encodings import check_values

COLORS = ("basecolor", "diffuse_albedo")  # stored sRGB-encoded; factors and soft edges act on linear light
EDITABLE = (*COLORS, "roughness", "metallic")

Image, Mask = Shaped[np.ndarray, "*b h w 3"], Shaped[np.ndarray, "*b h w 1"]  # bytes are refused by name
Number = float | int
Value = str | Number | Sequence[Number]  # "#rrggbb", one number, or three numbers, also as words of one string


def edit(
    buffers: Mapping[str, Image], mask: Mask | None = None, set: Mapping[str, Value] | None = None,
    scale: Mapping[str, Value] | None = None, replace: Mapping[str, Image] | None = None,
) -> dict[str, Float32[np.ndarray, "*b h w 3"]]:  # fmt: skip
    """Return the buffers, with those of EDITABLE changed that `set`, `scale` or `replace` name.

    Args:
      mask: region to change; None changes every pixel.
      set: label -> stored value in [0, 1]; for a color also "#rrggbb" or three sRGB-encoded numbers.
      scale: label -> factor ≥ 0 of linear light, for a color one or three; the product is clipped at 1.
      replace: label -> stored images in [0, 1] that replace the buffer; roughness and metallic take their channel mean.
    Raises:
      InputError: a buffer is missing, not editable or changed twice, or a value is out of range, as bytes are.
    """
    mask = None if mask is None else _weights(mask)
    result = {label: np.asarray(image, np.float32) for label, image in buffers.items()}
    changes = [(label, set_to(label, value)) for label, value in (set or {}).items()]
    factors = [(label, scale_by(label, value)) for label, value in (scale or {}).items()]
    textures = [(label, x if label in COLORS else x.mean(-1, keepdims=True)) for label, x in (replace or {}).items()]
    changed = [label for label, _ in (*changes, *factors, *textures)]
    check_labels(changed, buffers)
    for label in changed:
        result[label] = check_values(label, np.asarray(buffers[label]))
    for label, image in textures:
        check_values(f"replacement of {label}", np.asarray(image))
    for label, factor in factors:
        light = to_linear(label, result[label]) * factor
        changes.append((label, to_stored(label, light.clip(0, 1))))
    for label, value in (*changes, *textures):
        result[label] = blend(label, result[label], value, mask)
    return result


def blend(label: str, image: Image, value: np.ndarray, mask: Mask | None) -> Float32[np.ndarray, "*b h w 3"]:
    """Return `value` where the mask is 1 and `image` where it is 0, both bit-exact; mix them in between.

    All arrays are as stored. Colors mix in linear light.
    """
    value = np.broadcast_to(np.asarray(value, np.float32), image.shape)
    if mask is None:
        return value.copy()
    mixed = to_linear(label, image) * (1 - mask) + to_linear(label, value) * mask
    return np.where(mask <= 0, image, np.where(mask >= 1, value, to_stored(label, mixed))).astype(np.float32)


def to_linear(label: str, image: np.ndarray) -> np.ndarray:
    """Return the stored values of a buffer in linear light if it is a color, else unchanged."""
    return srgb_to_linear(image) if label in COLORS else image


def to_stored(label: str, image: np.ndarray) -> np.ndarray:
    """Invert `to_linear`."""
    return linear_to_srgb(image) if label in COLORS else image


# --- Values ---


def check_labels(labels: Sequence[str], buffers: Mapping | Sequence[str]) -> None:
    """Raise InputError unless each label is editable, occurs once, and is among the buffers."""
    for index, label in enumerate(labels):
        if label not in EDITABLE:
            raise unknown_name_error("buffer to edit", label, EDITABLE)
        if label in labels[:index]:
            raise InputError(f"{label}: one edit changes it twice; split it into two edits")
        if label not in buffers:
            raise InputError(f"buffer {label} not found among {', '.join(buffers)}; edit one of those")


def set_to(label: str, value: Value) -> Float32[np.ndarray, "3"]:
    """Parse a value of `edit`'s `set` to three channels; raise InputError if it is invalid for the buffer."""
    return color(value) if label in COLORS else np.broadcast_to(_numbers(label, value, (1,), 1), 3)


def scale_by(label: str, value: Value) -> Float32[np.ndarray, " _n"]:
    """Parse a factor of `edit`'s `scale`, for a color one or three; raise InputError if it is invalid."""
    return _numbers(f"{label} factor", value, (1, 3) if label in COLORS else (1,), np.inf)


def color(value: Value) -> Float32[np.ndarray, "3"]:
    """Parse "#rrggbb", one gray or three sRGB-encoded numbers in [0, 1]; raise InputError for anything else."""
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        return np.array([int(value[i : i + 2], 16) for i in (1, 3, 5)], np.float32) / 255
    return np.broadcast_to(_numbers("color", value, (1, 3), 1), 3)


def _numbers(name: str, value: Value, counts: tuple[int, ...], most: Number) -> Float32[np.ndarray, " _n"]:
    """Parse finite numbers from 0 to `most`, of one of the counts; raise InputError for anything else."""
    words = value.split() if isinstance(value, str) else np.atleast_1d(value)
    try:
        numbers = np.array([float(word) for word in words], np.float32)
    except (TypeError, ValueError):
        numbers = np.array([np.nan])
    if len(numbers) not in counts or not ((numbers >= 0) & (numbers <= most) & np.isfinite(numbers)).all():
        expected = "#rrggbb, or " if name == "color" else ""
        expected += "one number" if counts == (1,) else "one or three numbers"
        expected += " of 0 or more" if most == np.inf else f" from 0 to {most}"
        raise InputError(f"{name}: expected {expected}, got {' '.join(map(str, words))}")
    return numbers


# --- Masks ---


def _weights(mask: Mask) -> Float32[np.ndarray, "*b h w 1"]:
    """Return a mask as floats; raise InputError if it holds bytes of an image."""
    mask = np.asarray(mask)
    if mask.dtype.kind in "iu" and mask.max(initial=0) > 1:
        raise InputError(f"mask: expected weights in [0, 1], got {mask.dtype} up to {mask.max()}; divide bytes by 255")
    return mask.astype(np.float32)


def color_range(basecolor: Image, center: Value, distance: Number) -> Float32[np.ndarray, "*b h w 1"]:
    """Return the mask of stored (sRGB-encoded) basecolor within a Euclidean `distance`, in [0, √3], of a color."""
    if not distance >= 0:
        raise InputError(f"color range: expected a distance of 0 or more, got {distance:g}")
    distances = np.linalg.norm(check_values("basecolor", np.asarray(basecolor)) - color(center), axis=-1, keepdims=True)
    return (distances <= np.float32(distance) + 1e-6).astype(np.float32)


def depth_range(depth: Image, near: Number, far: Number) -> Float32[np.ndarray, "*b h w 1"]:
    """Return the mask of depths from `near` to `far`, both included; 0 is near, 1 is far and the background."""
    if not 0 <= near <= far <= 1:
        raise InputError(f"depth range: expected NEAR FAR with 0 ≤ NEAR ≤ FAR ≤ 1, got {near:g} {far:g}")
    depth = check_values("depth", np.asarray(depth))[..., :1]
    return ((depth >= near - 1e-6) & (depth <= far + 1e-6)).astype(np.float32)


def feather(mask: Mask, pixels: Number) -> Float32[np.ndarray, "*b h w 1"]:
    """Blur the edges of a mask over `pixels` to either side, by a Gaussian of σ = pixels / 2 truncated there."""
    if not (np.isfinite(pixels) and pixels >= 0):
        raise InputError(f"feather: expected 0 or more pixels, got {pixels:g}")
    soft = np.asarray(mask, np.float32)
    for axis in (-3, -2) if pixels else ():
        soft = gaussian_filter1d(soft, pixels / 2, axis=axis, mode="nearest", radius=int(np.ceil(pixels)))
    # The weights sum to 1 only up to rounding, which must not leak across the edge: snap to 0 and 1.
    return np.where(soft < 1e-5, 0, np.where(soft > 1 - 1e-5, 1, soft)).astype(np.float32)
