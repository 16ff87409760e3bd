"""How near a prediction is to the truth: the published metrics, and the comparison of two folders of clips.

Images are float in [0, 1], as stored. A metric of an image is averaged over the frames of a clip, then over clips. A
mask keeps a metric to the foreground.

`python -m drender.metrics PREDICTED TRUTH` compares folders of clips, as sample.py writes them.
"""

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
# Pixels along the sides of the window in which SSIM compares.
WINDOW = 11

# ---- Metrics of images ----


def psnr(predicted: Images, truth: Images, mask: Masks | None = None) -> Float[np.ndarray, "*b"]:
    """Peak signal-to-noise ratio of each image in dB; infinite for equal ones."""
    with np.errstate(divide="ignore"):
        return np.asarray(-10 * np.log10(_mean(np.square(predicted - truth), mask)))


def rmse(predicted: Images, truth: Images, mask: Masks | None = None) -> Float[np.ndarray, "*b"]:
    """Root mean square error of each image."""
    return np.asarray(np.sqrt(_mean(np.square(predicted - truth), mask)))


def ssim(predicted: Images, truth: Images, mask: Masks | None = None) -> Float[np.ndarray, "*b"]:
    """Structural similarity of each image (Wang et al. 2004), the mean of its channels and of all places where the
    window, 11 × 11 pixels under a Gaussian of σ = 1.5, fits into the image.

    With a mask, it is the mean over windows around the mask's pixels, with the image mirrored beyond its border and the
    truth outside the mask. InputError for images that are smaller than the window.
    """
    *batch, h, w, _ = truth.shape
    if min(h, w) < WINDOW:
        raise InputError(f"images of {w}x{h} pixels are too small for SSIM: {WINDOW} or more")
    if mask is not None:
        predicted = np.where(mask[..., None], predicted, truth)
    values = np.empty(batch)
    for index in np.ndindex(*batch):  # one at a time: this takes memory
        similarity = _ssim_map(predicted[index], truth[index])
        values[index] = _mean(similarity[5:-5, 5:-5], None) if mask is None else _mean(similarity, mask[index])
    return values


def _ssim_map(x: Float[np.ndarray, "h w 3"], y: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    """The similarity under the window around each pixel."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    local_mean = partial(gaussian_filter, sigma=1.5, truncate=3.5, axes=(0, 1))  # 3.5 σ: five pixels to each side
    mean_x, mean_y = local_mean(x), local_mean(y)
    variances = local_mean(x * x) - mean_x**2 + local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance * (2 * covariance + c2) / (variances + c2)


def angular_error(predicted: Images, truth: Images) -> Float[np.ndarray, "*b h w"]:
    """The angle between stored normals in degrees; 90 where one of them is the colour ½, which has no direction."""
    a, b = decode_normal(predicted), decode_normal(truth)
    # Kahan's formula, exact for small angles too, where arccos is not.
    return np.degrees(2 * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1)))


def _mean(values: Images, mask: Masks | None) -> Float[np.ndarray, "*b"]:
    """The mean of each image, over the mask; NaN where that is empty."""
    if mask is None:
        return np.asarray(values.mean((-3, -2, -1), dtype=np.float64))
    with np.errstate(invalid="ignore"):
        return np.asarray((values.mean(-1, dtype=np.float64) * mask).sum((-2, -1)) / mask.sum((-2, -1)))


# ---- Metrics of clips ----


def least_squares_scale(predicted: Images, truth: Images, mask: Masks | None = None) -> Float[np.ndarray, "3"]:
    """The factor per channel that brings a clip nearest to the truth: one for all its pixels, 1 for a black channel."""
    p, t = (images.reshape(-1, 3) if mask is None else images[mask] for images in (predicted, truth))
    square = np.sum(p * p, axis=0, dtype=np.float64)
    return np.divide(np.sum(p * t, axis=0, dtype=np.float64), square, out=np.ones(3), where=square > 0)


def correlation(predicted: Images, truth: Images, mask: Masks | None = None) -> float:
    """Pearson's correlation of a clip of one channel repeated to three, over all pixels; 0 if either is constant."""
    p, t = (images.mean(-1, dtype=np.float64) for images in (predicted, truth))
    p, t = (values.ravel() if mask is None else values[mask] for values in (p, t))
    p, t = p - p.mean(), t - t.mean()
    spread = np.linalg.norm(p) * np.linalg.norm(t)
    return 0.0 if spread < 1e-12 * p.size else float(p @ t / spread)


# ---- What is published for each kind of image ----


def evaluate(
    label: str, predicted: Frames, truth: Frames, mask: FrameMasks | None = None, lpips: LPIPS | None = None
) -> Scores:
    """The metrics that are published for images of this kind, of one clip.

    Those named `scaled_` are of the prediction times its `least_squares_scale`, which is not clipped. Frames that the
    mask leaves nothing of do not count.

    Args:
      label: a G-buffer, or else a picture: `rgb`, `env0000`, …
      predicted, truth: as stored, in [0, 1].
      mask: True where pixels count.
      lpips: to measure it of pictures too.
    Returns:
      of pictures: psnr, scaled_psnr, scaled_ssim, and scaled_lpips_alex or scaled_lpips_vgg
      of basecolor and diffuse_albedo: psnr, ssim, scaled_psnr
      of normal: angular_mean and angular_median, in degrees, and under_11.25, the share of pixels with a smaller error
      of roughness and metallic: rmse
      of depth: rmse, correlation
    Raises:
      InputError: an empty mask, or images too small for SSIM or LPIPS.
    """
    if mask is not None:
        shown = mask.any((-2, -1))
        if not shown.any():
            raise InputError(f"{label}: the mask is empty; nothing is left to compare")
        predicted, truth, mask = predicted[shown], truth[shown], mask[shown]
    average = lambda metric, predicted: float(np.mean(metric(predicted, truth, mask)))
    if label == "normal":
        angles = angular_error(predicted, truth)
        angles = angles.ravel() if mask is None else angles[mask]
        mean, median = float(angles.mean(dtype=np.float64)), float(np.median(angles))
        return {"angular_mean": mean, "angular_median": median, "under_11.25": float(np.mean(angles < 11.25))}
    if label in ("roughness", "metallic"):
        return {"rmse": average(rmse, predicted)}
    if label == "depth":
        return {"rmse": average(rmse, predicted), "correlation": correlation(predicted, truth, mask)}
    scaled = predicted * least_squares_scale(predicted, truth, mask).astype(predicted.dtype)
    if label in ("basecolor", "diffuse_albedo"):
        scores = {"psnr": average(psnr, predicted), "ssim": average(ssim, predicted)}
        return scores | {"scaled_psnr": average(psnr, scaled)}
    scores = {"psnr": average(psnr, predicted), "scaled_psnr": average(psnr, scaled)}
    scores["scaled_ssim"] = average(ssim, scaled)
    if lpips is not None:
        shown = scaled if mask is None else np.where(mask[..., None], scaled, truth)
        scores[f"scaled_lpips_{lpips.network.name}"] = float(np.mean(lpips(shown, truth)))
    return scores
