"""Edits of materials: set, scale or replace basecolor, roughness and metallic where a mask says so.

Arrays are as the renderers give them, `b f h w 3` in [0, 1], or any of their frames; a mask is `… h w 1`: 1 inside, 0
outside, between them at soft edges. Where it is 0, every buffer keeps its bits.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float32
from scipy.ndimage import gaussian_filter1d

from drender.errors import InputError, unknown_name_error
from drender.media.color import linear_to_srgb, srgb_to_linear

COLOURS = ("basecolor", "diffuse_albedo")  # sRGB-encoded; factors and soft edges act on linear light
EDITABLE = (*COLOURS, "roughness", "metallic")

Image, Mask = Float[np.ndarray, "*b h w 3"], Float[np.ndarray, "*b h w 1"]
Number = float | int
Value = str | Number | Sequence[Number]  # "#rrggbb", one number, or three; as words in one string too


def edit(
    buffers: Mapping[str, Image],
    mask: Mask | None = None,
    set: Mapping[str, Value] | None = None,
    scale: Mapping[str, Value] | None = None,
    replace: Mapping[str, Image] | None = None,
) -> dict[str, Float32[np.ndarray, "*b h w 3"]]:
    """The buffers with some of EDITABLE changed inside `mask` (everywhere, without one).

    Args:
      set: label -> value in [0, 1] as stored, or for a colour "#rrggbb" or three such numbers (sRGB-encoded).
      scale: label -> factor ≥ 0, for a colour one or three, of linear light; the product is cut off at 1.
      replace: label -> images in [0, 1], as stored, that take the place of the buffer's; of other buffers than colours
        the mean of their channels.
    Raises:
      InputError: a buffer that is not there or cannot be edited, is changed in two ways, or a value out of range.
    """
    result = {label: np.asarray(image, np.float32) for label, image in buffers.items()}
    changes = [(label, set_to(label, value)) for label, value in (set or {}).items()]
    factors = [(label, scale_by(label, value)) for label, value in (scale or {}).items()]
    images = [(label, _texture(label, image)) for label, image in (replace or {}).items()]
    check_labels([label for label, _ in (*changes, *factors, *images)], buffers)
    for label, factor in factors:
        light = to_linear(label, result[label]) * factor
        changes.append((label, to_stored(label, light.clip(0, 1))))
    for label, value in (*changes, *images):
        result[label] = blend(label, result[label], value, mask)
    return result


def _texture(label: str, image: Image) -> Float32[np.ndarray, "*b h w _c"]:
    return np.asarray(image if label in COLOURS else image.mean(axis=-1, keepdims=True), np.float32)


def blend(label: str, image: Image, value: np.ndarray, mask: Mask | None) -> Float32[np.ndarray, "*b h w 3"]:
    """`value`, as stored, where the mask is 1, `image` where it is 0; the bits of neither change there.

    Between the two, colours mix in linear light.
    """
    value = np.broadcast_to(np.asarray(value, np.float32), image.shape)
    if mask is None:
        return value.copy()
    mixed = to_linear(label, image) * (1 - mask) + to_linear(label, value) * mask
    return np.where(mask <= 0, image, np.where(mask >= 1, value, to_stored(label, mixed))).astype(np.float32)


def to_linear(label: str, image: np.ndarray) -> np.ndarray:
    """A buffer's stored values as those that are proportional to light, if it is a colour."""
    return srgb_to_linear(image) if label in COLOURS else image


def to_stored(label: str, image: np.ndarray) -> np.ndarray:
    """The inverse of `to_linear`."""
    return linear_to_srgb(image) if label in COLOURS else image


# ---- Values ----


def check_labels(labels: Sequence[str], buffers: Mapping | Sequence[str]) -> None:
    """InputError unless each label can be edited, occurs once, and is among the buffers."""
    for index, label in enumerate(labels):
        if label not in EDITABLE:
            raise unknown_name_error("buffer to edit", label, EDITABLE)
        if label in labels[:index]:
            raise InputError(f"{label} is changed twice by one edit; make it two edits")
        if label not in buffers:
            raise InputError(f"no {label} among the buffers to edit; there are {', '.join(buffers)}")


def set_to(label: str, value: Value) -> Float32[np.ndarray, "3"]:
    """What a buffer is set to: a colour, or one value three times. InputError if it makes no sense."""
    numbers = colour(value) if label in COLOURS else _numbers(f"{label} value", value, (1,))
    if not ((numbers >= 0) & (numbers <= 1)).all():
        raise InputError(f"{label} cannot be set to {_shown(value)}; values are 0 to 1")
    return np.broadcast_to(numbers, 3)


def scale_by(label: str, value: Value) -> Float32[np.ndarray, " _n"]:
    """The factor of a buffer, or the three of a colour. InputError if it makes no sense."""
    numbers = _numbers(f"{label} factor", value, (1, 3) if label in COLOURS else (1,))
    if not (numbers >= 0).all():
        raise InputError(f"{label} cannot be scaled by {_shown(value)}; a factor is 0 or more")
    return numbers


def colour(value: Value) -> Float32[np.ndarray, "3"]:
    """ "#rrggbb", or three numbers in [0, 1], sRGB-encoded; one number is a grey. InputError for anything else."""
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        return np.array([int(value[i : i + 2], 16) for i in (1, 3, 5)], np.float32) / 255
    numbers = np.broadcast_to(_numbers("colour", value, (1, 3)), 3)
    if not ((numbers >= 0) & (numbers <= 1)).all():
        raise InputError(f"colour {_shown(value)}: its numbers must be 0 to 1, or write #rrggbb")
    return numbers


def _numbers(name: str, value: Value, counts: tuple[int, ...]) -> Float32[np.ndarray, " _n"]:
    words = value.split() if isinstance(value, str) else np.atleast_1d(value)
    wanted = "one number" if counts == (1,) else "one number or three"
    wanted += " or #rrggbb" if name == "colour" else ""
    try:
        numbers = np.array([float(word) for word in words], np.float32)
    except (TypeError, ValueError):
        raise InputError(f"{name} {_shown(value)} is not {wanted}") from None
    if len(numbers) not in counts or not np.isfinite(numbers).all():
        raise InputError(f"{name} {_shown(value)} is not {wanted}")
    return numbers


def _shown(value: Value) -> str:
    return value if isinstance(value, str) else " ".join(f"{x}" for x in np.atleast_1d(value))


# ---- Masks ----


def color_range(basecolor: Image, centre: Value, distance: Number) -> Float32[np.ndarray, "*b h w 1"]:
    """Where the basecolor, as stored (sRGB), is no further from a colour than `distance`, in [0, √3]."""
    if not distance >= 0:
        raise InputError(f"colour range: the distance is {distance:g}; it must be 0 or more")
    apart = np.linalg.norm(basecolor - colour(centre), axis=-1, keepdims=True)
    return (apart <= np.float32(distance) + 1e-6).astype(np.float32)


def depth_range(depth: Image, near: Number, far: Number) -> Float32[np.ndarray, "*b h w 1"]:
    """Where the depth is from `near` to `far`, both included: 0 is near, 1 far and the background."""
    if not 0 <= near <= far <= 1:
        raise InputError(f"depth range {near:g} {far:g}: must be NEAR FAR with 0 ≤ NEAR ≤ FAR ≤ 1")
    depth = depth[..., :1]
    return ((depth >= near - 1e-6) & (depth <= far + 1e-6)).astype(np.float32)


def feather(mask: Mask, pixels: Number) -> Float32[np.ndarray, "*b h w 1"]:
    """The mask with its edges blurred over `pixels` to either side, and unchanged further away.

    A Gaussian, σ half of that, cut off there.
    """
    if not (np.isfinite(pixels) and pixels >= 0):
        raise InputError(f"feather {pixels:g}: must be 0 or more pixels")
    soft, radius = np.asarray(mask, np.float32), int(np.ceil(pixels))
    for axis in (-3, -2) if pixels else ():
        soft = gaussian_filter1d(soft, pixels / 2, axis=axis, mode="nearest", radius=radius)
    # The weights' sum is 1 but for rounding, which must not count as influence.
    return np.where(soft < 1e-5, 0, np.where(soft > 1 - 1e-5, 1, soft)).astype(np.float32)
