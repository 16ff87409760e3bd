"""Lat-long images of radiance: read, cleaned, exposed, blurred and measured, before they become cube maps.

Radiance is linear, in [0, 65504]. Pixels cover less of the sphere toward the poles; every mean here is over the sphere.
"""

import math
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import ArrayLike, Float, Float32

from drender.errors import InputError
from drender.files import list_dir
from drender.media.color import LUMINANCE
from drender.media.images import HDR_SUFFIXES, IMAGE_SUFFIXES, read_hdr

MAX_RADIANCE = 65504.0  # the largest half float
# Radiance that `env_ldr` and `env_log` show as white. What is brighter looks the same.
LDR_WHITE, LOG_WHITE = 16.0, 10000.0
# A mean luminance whose `env_ldr` is nearly black: 0.1 of 1.
DARK = 0.01
# What the automatic exposure makes of the mean luminance: about the geometric mean of the built-in maps.
MEAN_LUMINANCE = 0.6
LEAST_ROWS = 128  # of a blurred map: its lookups blend the first row with the last, in half a pixel around the poles


# ---- Reading ----


def load_latlong(
    source: str | Path | ArrayLike,
    rotation: float = 180.0,
    flip: bool = False,
    strength: float = 1.0,
    exposure: float = 0.0,
    blur: float = 0.0,
    warn: bool = True,
) -> Float32[np.ndarray, "h w 3"]:
    """The light of a lat-long file or array `h w 3` of linear radiance.

    `strength` ≥ 0 and 2^`exposure` (in stops) multiply the radiance, `flip` mirrors the image, then `rotation`
    (degrees) rolls it to the right by whole columns, and `blur` (degrees) softens it as `blurred` says. Warns, if it is
    to `warn`, of what would light wrongly: NaN (taken as black), an image that is not 2:1, or one without any light.
    InputError for a file that cannot be read and for values that make no sense.
    """
    if not (np.isfinite(strength) and strength >= 0):
        raise InputError(f"environment strength {strength} is not a number ≥ 0")
    if not abs(exposure) <= 64:
        raise InputError(f"environment exposure {exposure} is not a number of stops from -64 to 64")
    if not np.isfinite(rotation):
        raise InputError(f"environment rotation {rotation} is not a number of degrees")
    if not 0 <= blur <= 180:
        raise InputError(f"environment blur {blur} is not a number of degrees from 0 to 180")
    is_file = isinstance(source, str | Path)
    name, image = (source, read_hdr(source, warn)) if is_file else ("array", np.asarray(source))
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"environment array has shape {image.shape}; it must be (height, width, 3)")
    height, width, _ = image.shape
    doubts = {
        f"is {width}x{height}, not 2:1; is it a lat-long image?": width != 2 * height,
        "contains NaN, taken as black": np.isnan(image).any(),
    }
    with np.errstate(over="ignore", invalid="ignore"):  # infinite suns are usual in half floats
        image = image.astype(np.float32) * np.float32(strength * 2.0**exposure)
        image = np.nan_to_num(image, nan=0.0).clip(0, MAX_RADIANCE)
    doubts["is black and will light nothing"] = not image.any()
    for doubt in doubts:
        if warn and doubts[doubt]:
            warnings.warn(f"environment {name} {doubt}", stacklevel=2)
    image = image[:, ::-1] if flip else image
    return blur_sphere(np.roll(image, int(width * rotation / 360), axis=1), blur)


def list_map_files(folder: str | Path) -> list[Path]:
    """The lat-long maps in a folder, one for each frame of a clip, in natural order.

    Where there are .hdr or .exr files, images of other kinds are taken for previews. InputError if there is no map.
    """
    try:
        entries = list_dir(Path(folder))
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}") from error
    for suffixes in (HDR_SUFFIXES, IMAGE_SUFFIXES):
        if found := [entry for entry in entries if entry.suffix.lower() in suffixes and entry.is_file()]:
            return found
    raise InputError(f"{folder}: no environment maps there; known: {' '.join(HDR_SUFFIXES + IMAGE_SUFFIXES)}")


# ---- Measuring ----


def sphere_weights(height: int, width: int) -> Float[np.ndarray, "h 1"]:
    """How much of the sphere a pixel of each row covers; over all pixels the sum is 1."""
    edges = np.cos(np.linspace(0, np.pi, height + 1))
    return (edges[:-1] - edges[1:])[:, None] / (2 * width)


def mean_luminance(image: Float[np.ndarray, "h w 3"]) -> float:
    """Over the sphere."""
    return float((sphere_weights(*image.shape[:2]) * (image @ LUMINANCE)).sum())


def automatic_exposure(sources: list, strength: float = 1.0) -> float:
    """Stops that bring the mean luminance to MEAN_LUMINANCE; 0 where there is no light.

    Several maps are a light that changes and get one exposure, for their mean; it is taken of at most 16 of them,
    evenly spaced, so that thousands need not all be read.
    """
    chosen = np.linspace(0, len(sources) - 1, min(len(sources), 16)).round().astype(int)
    mean = np.mean([mean_luminance(load_latlong(sources[i], strength=strength, warn=False)) for i in chosen])
    return float(np.clip(np.log2(MEAN_LUMINANCE / mean), -64, 64)) if mean > 0 else 0.0


def range_warning(image: Float32[np.ndarray, "h w 3"]) -> str | None:
    """What of a light the maps `env_ldr` and `env_log` cannot show, with the remedy; None if it is little.

    Told are more than a twentieth of the energy that lies above what `env_log` shows, more than a quarter of the sphere
    that is white in `env_ldr`, and a light so dark that its mean is nearly black there.
    """
    weights, mean = sphere_weights(*image.shape[:2]), mean_luminance(image)
    lost = 1 - mean_luminance(np.minimum(image, LOG_WHITE)) / mean if mean > 0 else 0
    white = float((weights * (image.max(axis=-1) >= LDR_WHITE)).sum())
    if lost > 0.05:
        return (
            f"exceeds radiance {LOG_WHITE:.0f}, where env_log ends, with {lost:.0%} of its energy, which is lost "
            f"(of the sphere {white:.2%} exceed {LDR_WHITE:.0f}, where env_ldr ends); lower --exposure, or --blur it"
        )
    if white > 0.25:
        return (
            f"exceeds radiance {LDR_WHITE:.0f}, where env_ldr ends, on {white:.0%} of the sphere; "
            "lower --exposure, or let it be auto"
        )
    if 0 < mean < DARK:
        dark = float((weights * (image @ LUMINANCE < DARK)).sum())
        return (
            f"is dark: mean luminance {mean:.2g}, and {dark:.0%} of the sphere nearly black in env_ldr; "
            f"raise --exposure, or let it be auto (which adds {np.log2(MEAN_LUMINANCE / mean):.1f} stops)"
        )
    return None


# ---- Blur ----


def blur_sphere(image: Float32[np.ndarray, "h w 3"], degrees: float) -> Float32[np.ndarray, "_h _w 3"]:
    """The light convolved on the sphere with a round spot of `degrees` standard deviation, its mean kept.

    The spot is von Mises' and Fisher's, exp(κ cos δ) at the angle δ with κ = 1/σ²: a Gaussian where it is small. It is
    round at the poles too, for every pair of rows has its own kernel along them. The image may come back smaller:
    pixels are first averaged in squares of at most σ/4, as long as LEAST_ROWS remain.
    """
    height, sigma = image.shape[0], np.deg2rad(degrees)
    if degrees * height < 1:  # a spot of less than 1/180 of a pixel
        return image
    image = _box_downsample(image.astype(np.float64), int(min(sigma / 4 * height / np.pi, height / LEAST_ROWS)))
    height, width, _ = image.shape
    weights, polar = sphere_weights(height, width), (np.arange(height) + 0.5) / height * np.pi
    azimuth = np.arange(width) * 2 * np.pi / width
    light = np.fft.rfft(image * weights[..., None], axis=1)
    result = np.empty_like(image)
    for row, here in enumerate(polar):
        near = 1 - np.cos(polar - here) < 23 * sigma**2  # beyond, the spot is below 1e-10 of its peak; suns are 1e5
        there = polar[near, None]
        cosine = np.cos(here) * np.cos(there) + np.sin(here) * np.sin(there) * np.cos(azimuth)
        spot = np.exp((np.minimum(cosine, 1) - 1) / sigma**2)
        spectrum = np.einsum("nm,nmc->mc", np.fft.rfft(spot, axis=1), light[near])
        result[row] = np.fft.irfft(spectrum, width, axis=0) / (spot * weights[near]).sum()
    result = np.maximum(result, 0)  # the transform's rounding
    # A spot of few pixels is not quite the same everywhere.
    before, after = ((weights[..., None] * x).sum(axis=(0, 1)) for x in (image, result))
    return (result * np.divide(before, after, out=np.ones(3), where=after > 0)).astype(np.float32)


def _box_downsample(image: Float[np.ndarray, "h w 3"], most: int) -> Float[np.ndarray, "_h _w 3"]:
    """Means of squares of as many pixels, at most `most` on a side, as divide the image."""
    height, width, _ = image.shape
    divides = math.gcd(height, width)
    side = max((n for n in range(1, most + 1) if divides % n == 0), default=1)
    weighted = image * sphere_weights(height, width)[..., None]
    sums = weighted.reshape(height // side, side, width // side, side, 3).sum(axis=(1, 3))
    return sums / sphere_weights(height // side, width // side)[..., None]
