"""Read, clean, expose, blur and measure lat-long HDR maps, before they become cube maps.

Radiance is linear, in [0, 65504]. Pixels cover less of the sphere toward the poles, so every mean is over solid angle.
"""

import math
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import ArrayLike, Float, Float32

from drender.errors import InputError
from drender.files import find_files
from drender.media.color import LUMINANCE
from drender.media.images import HDR_SUFFIXES, IMAGE_SUFFIXES, read_hdr

MAX_RADIANCE = 65504.0  # the largest half float
LDR_WHITE, LOG_WHITE = 16.0, 10000.0  # radiance that `env_ldr` and `env_log` show as white, like anything brighter
DARK = 0.01  # mean luminance whose `env_ldr` is nearly black: about 0.1
MAX_NEGATIVE = 0.01  # light below 0, relative to that above; conversions between color spaces leave a little
MEAN_LUMINANCE = 0.6  # after automatic exposure: about the geometric mean of the built-in maps
# A blurred map keeps at least this many rows: lookups within half a pixel of a pole blend the first row with the last.
MIN_BLURRED_ROWS = 128


# --- Reading ---


def load_latlong(
    source: str | Path | ArrayLike, rotation: float = 180.0, flip: bool = False, strength: float = 1.0,
    exposure: float = 0.0, blur: float = 0.0, warn: bool = True,
) -> Float32[np.ndarray, "h w 3"]:  # fmt: skip
    """Return the radiance of a lat-long file or array `h w 3`, ready to become a cube map.

    In this order it is scaled, cleared of NaN, clipped to [0, MAX_RADIANCE], mirrored, rotated and blurred. InputError
    for an unreadable file or a value out of range.

    Args:
      rotation: degrees by which the map is shifted to the right, by whole columns (truncated), after `flip` mirrors it.
      strength, exposure: a factor on the radiance, at least 0; another one in stops, 2^exposure.
      blur: degrees, as for `blur_sphere`.
      warn: warn of suspicious maps: with NaN or much negative light (taken as black), not 2:1, not HDR, or entirely
        black.
    """
    if not (np.isfinite(strength) and strength >= 0):
        raise InputError(f"environment strength {strength} must be finite and at least 0")
    if not abs(exposure) <= 64:
        raise InputError(f"environment exposure {exposure} must be from -64 to 64 stops")
    if not np.isfinite(rotation):
        raise InputError(f"environment rotation {rotation} is not a finite number of degrees")
    if not 0 <= blur <= 180:
        raise InputError(f"environment blur {blur} must be from 0 to 180 degrees")
    is_file = isinstance(source, str | Path)
    name, image = (source, read_hdr(source, warn)) if is_file else ("array", np.asarray(source))
    if image.dtype in (np.uint8, np.uint16):
        raise InputError(f"environment array holds {image.dtype}, expected linear radiance; decode it from sRGB")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"environment array has shape {image.shape}; it must be (height, width, 3)")
    height, width, _ = image.shape
    problems = {f"is {width}x{height}, not 2:1; is it a lat-long image?": width != 2 * height}
    problems["contains NaN, taken as black"] = np.isnan(image).any()
    below, above = (np.sum(image, where=part, dtype=np.float64) for part in (image < 0, image > 0))
    problems["has negative light, taken as black; is it linear radiance?"] = -below > MAX_NEGATIVE * above
    with np.errstate(over="ignore", invalid="ignore"):  # suns are often infinite in half floats
        image = image.astype(np.float32) * np.float32(strength * 2.0**exposure)
        image = np.nan_to_num(image, nan=0.0).clip(0, MAX_RADIANCE)
    problems["is black and will light nothing"] = not image.any()
    for problem, found in problems.items():
        if warn and found:
            warnings.warn(f"environment {name} {problem}", stacklevel=2)
    image = image[:, ::-1] if flip else image
    return blur_sphere(np.roll(image, int(width * rotation / 360), axis=1), blur)


def list_map_files(folder: str | Path) -> list[Path]:
    """Return the lat-long maps in a folder, one for each frame of a clip, in natural order.

    Images of other formats next to .hdr or .exr files count as previews and are skipped. InputError if there is no map.
    """
    files = find_files(folder, HDR_SUFFIXES + IMAGE_SUFFIXES, "environment maps")
    return [path for path in files if path.suffix.lower() in HDR_SUFFIXES] or files


# --- Measuring ---


def sphere_weights(height: int, width: int) -> Float[np.ndarray, "h 1"]:
    """Return the share of the sphere that one pixel of each row covers; all pixels sum to 1."""
    edges = np.cos(np.linspace(0, np.pi, height + 1))
    return (edges[:-1] - edges[1:])[:, None] / (2 * width)


def mean_luminance(image: Float[np.ndarray, "h w 3"]) -> float:
    """Return the mean luminance over the sphere."""
    return float((sphere_weights(*image.shape[:2]) * (image @ LUMINANCE)).sum())


def automatic_exposure(sources: list, strength: float = 1.0) -> float:
    """Return the exposure, in stops, that brings the mean luminance to MEAN_LUMINANCE; 0 for a black map.

    Several maps are one light that changes over time, so they share the exposure of their mean. At most 16 of them,
    evenly spaced, are read.
    """
    chosen = np.linspace(0, len(sources) - 1, min(len(sources), 16)).round().astype(int)
    mean = np.mean([mean_luminance(load_latlong(sources[i], strength=strength, warn=False)) for i in chosen])
    return float(np.clip(np.log2(MEAN_LUMINANCE / mean), -64, 64)) if mean > 0 else 0.0


def range_warning(image: Float32[np.ndarray, "h w 3"]) -> str | None:
    """Return a warning, with its remedy, if `env_ldr` and `env_log` cannot represent the light; None if they can.

    The causes: more than 1/20 of the energy above the range of `env_log`, more than a quarter of the sphere white in
    `env_ldr`, or a mean that is nearly black there.
    """
    weights, mean = sphere_weights(*image.shape[:2]), mean_luminance(image)
    lost = 1 - mean_luminance(np.minimum(image, LOG_WHITE)) / mean if mean > 0 else 0
    white = float((weights * (image.max(axis=-1) >= LDR_WHITE)).sum())
    if lost > 0.05:
        return (
            f"exceeds radiance {LOG_WHITE:.0f}, where env_log ends, with {lost:.0%} of its energy, which is lost "
            f"({white:.2%} of the sphere exceeds {LDR_WHITE:.0f}, where env_ldr ends); "
            "lower --exposure, use --blur, or --prefilter if the map is finer than these images"
        )
    if white > 0.25:
        return (
            f"exceeds radiance {LDR_WHITE:.0f}, where env_ldr ends, on {white:.0%} of the sphere; "
            "lower --exposure, or use --exposure auto"
        )
    if 0 < mean < DARK:
        dark = float((weights * (image @ LUMINANCE < DARK)).sum())
        return (
            f"is dark: mean luminance {mean:.2g}, and {dark:.0%} of the sphere nearly black in env_ldr; "
            f"raise --exposure, or use --exposure auto (which adds {np.log2(MEAN_LUMINANCE / mean):.1f} stops)"
        )
    return None


# --- Blur ---


def blur_sphere(image: Float32[np.ndarray, "h w 3"], degrees: float) -> Float32[np.ndarray, "_h _w 3"]:
    """Convolve the light on the sphere with a round kernel of `degrees` standard deviation, keeping its mean.

    The kernel is von Mises–Fisher: exp(κ cos δ) at the angle δ with κ = 1/σ², a Gaussian where σ is small. Every pair
    of rows has its own 1-D kernel, so it is round at the poles too. The result may be smaller than the image: pixels
    are first averaged in squares of at most σ/4, down to MIN_BLURRED_ROWS.
    """
    height, sigma = image.shape[0], np.deg2rad(degrees)
    if degrees * height < 1:  # less than 1/180 of a pixel
        return image
    image = box_downsample(image.astype(np.float64), int(min(sigma / 4 * height / np.pi, height / MIN_BLURRED_ROWS)))
    height, width, _ = image.shape
    weights, polar = sphere_weights(height, width), (np.arange(height) + 0.5) / height * np.pi
    azimuth = np.arange(width) * 2 * np.pi / width
    light = np.fft.rfft(image * weights[..., None], axis=1)
    result = np.empty_like(image)
    for row, target in enumerate(polar):
        # Beyond this the kernel is below 1e-10 of its peak; suns reach 1e5.
        near = 1 - np.cos(polar - target) < 23 * sigma**2
        source = polar[near, None]
        cosine = np.cos(target) * np.cos(source) + np.sin(target) * np.sin(source) * np.cos(azimuth)
        kernel = np.exp((np.minimum(cosine, 1) - 1) / sigma**2)
        spectrum = np.einsum("nm,nmc->mc", np.fft.rfft(kernel, axis=1), light[near])
        result[row] = np.fft.irfft(spectrum, width, axis=0) / (kernel * weights[near]).sum()
    result = np.maximum(result, 0)  # the FFT's rounding errors may be negative
    # A kernel of few pixels differs slightly from row to row, so restore the mean.
    before, after = ((weights[..., None] * x).sum(axis=(0, 1)) for x in (image, result))
    return (result * np.divide(before, after, out=np.ones(3), where=after > 0)).astype(np.float32)


def box_downsample(image: Float[np.ndarray, "h w 3"], max_side: int) -> Float[np.ndarray, "_h _w 3"]:
    """Average squares of the largest side, up to `max_side` pixels, that divides the image."""
    height, width, _ = image.shape
    divisor = math.gcd(height, width)
    side = max((n for n in range(1, max_side + 1) if divisor % n == 0), default=1)
    weighted = image * sphere_weights(height, width)[..., None]
    sums = weighted.reshape(height // side, side, width // side, side, 3).sum(axis=(1, 3))
    return sums / sphere_weights(height // side, width // side)[..., None]
