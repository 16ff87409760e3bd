"""Published metrics of images and clips.

Images are float in [0, 1], as stored. A metric of images is averaged over the frames of a clip, then over clips. A mask
restricts a metric to the foreground.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import gaussian_filter

from drender.errors import InputError
from drender.media.encodings import decode_normal
from drender.metrics.lpips import LPIPS

Images, Masks = Float[np.ndarray, "*b h w 3"], Bool[np.ndarray, "*b h w"]
Frames, FrameMasks = Float[np.ndarray, "f h w 3"], Bool[np.ndarray, "f h w"]
Scores = dict[str, int | float]  # by the name of the metric
# Metrics of which a larger value is better.
HIGHER_IS_BETTER = ("psnr", "scaled_psnr", "ssim", "scaled_ssim", "correlation", "under_11.25")
WINDOW = 11  # side of SSIM's window in pixels; within it a Gaussian of σ = 1.5 weights them
RADIUS = WINDOW // 2

# --- metrics of images -----------------------------------------------------------------------------------------------


def psnr(predicted: Images, truth: Images, mask: Masks | None = None) -> Float[np.ndarray, "*b"]:
    """Return the peak signal-to-noise ratio of each image in dB; infinite for equal images."""
    with np.errstate(divide="ignore"):
        return np.asarray(-10 * np.log10(_mean(np.square(predicted - truth), mask)))


def rmse(predicted: Images, truth: Images, mask: Masks | None = None) -> Float[np.ndarray, "*b"]:
    """Return the root mean square error of each image."""
    return np.asarray(np.sqrt(_mean(np.square(predicted - truth), mask)))


def ssim(predicted: Images, truth: Images, mask: Masks | None = None) -> Float[np.ndarray, "*b"]:
    """Return the structural similarity of each image (Wang et al. 2004), averaged over channels and windows.

    Without a mask, windows lie inside the image. With a mask, they are centered on its pixels, the image is mirrored
    beyond its border, and pixels outside the mask are the truth's. InputError if images are smaller than the window.
    """
    *batch, h, w, _ = truth.shape
    if min(h, w) < WINDOW:
        raise InputError(f"images of {w}x{h} pixels are too small for SSIM: {WINDOW} or more")
    if mask is not None:
        predicted = np.where(mask[..., None], predicted, truth)
    values = np.empty(batch)
    for index in np.ndindex(*batch):  # one image at a time bounds the memory
        similarity = _ssim_map(predicted[index], truth[index])
        inside = similarity[RADIUS:-RADIUS, RADIUS:-RADIUS]
        values[index] = _mean(inside, None) if mask is None else _mean(similarity, mask[index])
    return values


def _ssim_map(x: Float[np.ndarray, "h w 3"], y: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    """Return the similarity in the window around each pixel."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    local_mean = partial(gaussian_filter, sigma=1.5, radius=RADIUS, axes=(0, 1))
    mean_x, mean_y = local_mean(x), local_mean(y)
    variances = local_mean(x * x) - mean_x**2 + local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance * (2 * covariance + c2) / (variances + c2)


def angular_error(predicted: Images, truth: Images) -> Float[np.ndarray, "*b h w"]:
    """Return the angle between stored normals in degrees; 90 where one is the color ½, which is no direction."""
    a, b = decode_normal(predicted), decode_normal(truth)
    # Kahan's formula is exact for small angles too; arccos is not.
    return np.degrees(2 * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1)))


def _mean(values: Images, mask: Masks | None) -> Float[np.ndarray, "*b"]:
    """Return the mean of each image over the mask; NaN where that is empty."""
    if mask is None:
        return np.asarray(values.mean((-3, -2, -1), dtype=np.float64))
    with np.errstate(invalid="ignore"):
        return np.asarray((values.mean(-1, dtype=np.float64) * mask).sum((-2, -1)) / mask.sum((-2, -1)))


# --- metrics of clips ------------------------------------------------------------------------------------------------


def least_squares_scale(predicted: Images, truth: Images, mask: Masks | None = None) -> Float[np.ndarray, "3"]:
    """Return the factor per channel that brings a whole clip nearest to the truth; 1 for a black channel."""
    p, t = (images.reshape(-1, 3) if mask is None else images[mask] for images in (predicted, truth))
    square = np.sum(p * p, axis=0, dtype=np.float64)
    return np.divide(np.sum(p * t, axis=0, dtype=np.float64), square, out=np.ones(3), where=square > 0)


def correlation(predicted: Images, truth: Images, mask: Masks | None = None) -> float:
    """Return Pearson's correlation over all pixels of gray clips of three equal channels; 0 if one is constant."""
    p, t = (images.mean(-1, dtype=np.float64) for images in (predicted, truth))
    p, t = (values.ravel() if mask is None else values[mask] for values in (p, t))
    p, t = p - p.mean(), t - t.mean()
    norms = np.linalg.norm(p) * np.linalg.norm(t)
    return 0.0 if norms < 1e-12 * p.size else float(p @ t / norms)


# --- the published metrics of each kind of image ---------------------------------------------------------------------


def evaluate(
    label: str, predicted: Frames, truth: Frames, mask: FrameMasks | None = None, lpips: LPIPS | None = None
) -> Scores:
    """Return the published metrics for images of this kind, of one clip.

    Those named `scaled_` are of the prediction times its `least_squares_scale`, not clipped. Frames whose mask is empty
    do not count. InputError if the mask is empty, or images are too small for SSIM or LPIPS.

    Args:
      label: a G-buffer; any other is a picture: `rgb`, `env0000`, ….
      predicted, truth: as stored, in [0, 1].
      mask: True where pixels count.
      lpips: to measure on pictures too.
    Returns:
      pictures: psnr, scaled_psnr, scaled_ssim, and scaled_lpips_alex or scaled_lpips_vgg.
      basecolor, diffuse_albedo: psnr, ssim, scaled_psnr.
      normal: angular_mean and angular_median in degrees, and under_11.25, the share of pixels with a smaller error.
      roughness, metallic: rmse.
      depth: rmse, correlation.
    """
    if mask is not None:
        counted = mask.any((-2, -1))
        if not counted.any():
            raise InputError(f"{label}: the mask is empty; nothing is left to compare")
        predicted, truth, mask = predicted[counted], truth[counted], mask[counted]

    def average(metric: Callable, predicted: Frames) -> float:
        return float(np.mean(metric(predicted, truth, mask)))

    if label == "normal":
        angles = angular_error(predicted, truth)
        angles = angles.ravel() if mask is None else angles[mask]
        return {
            "angular_mean": float(angles.mean(dtype=np.float64)),
            "angular_median": float(np.median(angles)),
            "under_11.25": float(np.mean(angles < 11.25)),
        }
    if label in ("roughness", "metallic"):
        return {"rmse": average(rmse, predicted)}
    if label == "depth":
        return {"rmse": average(rmse, predicted), "correlation": correlation(predicted, truth, mask)}
    scaled = predicted * least_squares_scale(predicted, truth, mask).astype(predicted.dtype)
    scores: Scores = {"psnr": average(psnr, predicted)}
    if label in ("basecolor", "diffuse_albedo"):
        return scores | {"ssim": average(ssim, predicted), "scaled_psnr": average(psnr, scaled)}
    scores |= {"scaled_psnr": average(psnr, scaled), "scaled_ssim": average(ssim, scaled)}
    if lpips is not None:
        foreground = scaled if mask is None else np.where(mask[..., None], scaled, truth)
        scores[f"scaled_lpips_{lpips.network}"] = float(np.mean(lpips(foreground, truth)))
    return scores
