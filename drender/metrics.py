"""How near a prediction is to the truth: the published metrics, and the comparison of two folders of clips.

Images are float in [0, 1], as stored. A metric of an image is averaged over the frames of a clip, then over clips. A
mask keeps a metric to the foreground.

`python -m drender.metrics PREDICTED TRUTH` compares folders of clips, as sample.py writes them.
"""

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from . import cli
from .config import DOMAINS
from .encodings import decode_normal
from .errors import InputError
from .files import natural_order, replacing
from .gbuffers import RELEASED_STEM, find_images, frame_path, read_frames
from .lpips import LPIPS

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


# ---- Folders of clips ----


@dataclass(frozen=True)
class Comparison:
    """What is compared of a clip: the files of one label, frame by frame."""

    clip: str
    row: str  # of the table: the label, or `PREDICTED=TRUTH` where the two sides differ in it
    label: str  # what `evaluate` takes it for
    predicted: tuple[Path, ...]
    truth: tuple[Path, ...]
    masks: tuple[Path, ...] | None

    def scores(self, lpips: LPIPS | None = None) -> Scores:
        """What `evaluate` gives, after the number of frames."""
        predicted, truth = (np.stack(list(read_frames(x, self.label))) for x in (self.predicted, self.truth))
        _require_size(self.predicted[0], predicted, self.truth[0], truth)
        mask = None
        if self.masks is not None:
            mask = np.stack(list(read_frames(self.masks, "mask")))
            _require_size(self.masks[0], mask, self.truth[0], truth)
            mask = mask.mean(-1) > 0.5
        try:
            return {"frames": len(truth)} | evaluate(self.label, predicted, truth, mask, lpips)
        except InputError as error:
            raise InputError(f"clip {self.clip!r}: {error}") from error


def compare(
    predicted: str | Path, truth: str | Path, pairs: Sequence[tuple[str, str]] = (), mask: str | None = None
) -> list[Comparison]:
    """All that two folders of clips, in the layouts of `find_gbuffer_clips`, have in common, clip by clip.

    Clips are matched by name, unless the folders are those of one clip each; frames by name, or by order where only one
    side has the released names.

    Args:
      predicted, truth: folders.
      pairs: labels to compare, (predicted, truth), beside the G-buffers and `rgb` that both sides have.
      mask: the label of the truth's masks, white where pixels count.
    Raises:
      InputError: nothing to compare; a clip, a label of a clip or a frame that one side lacks.
    """
    known = (*DOMAINS, "rgb")
    ours = _find(predicted, (*known, *(label for label, _ in pairs)))
    theirs = _find(truth, (*known, *(label for _, label in pairs), *([] if mask is None else [mask])))
    if list(ours) == [Path(predicted).resolve().name] and list(theirs) == [Path(truth).resolve().name]:
        theirs = dict(zip(ours, theirs.values(), strict=True))
    for name in sorted(ours.keys() ^ theirs.keys(), key=natural_order):
        there, lacking = (predicted, truth) if name in ours else (truth, predicted)
        raise InputError(f"{lacking} has no clip {name!r}, which {there} has; both need the same clips")
    has = lambda side, label: any(label in files for files in side.values())
    common = [(label, label) for label in known if has(ours, label) and has(theirs, label)]
    if not (common or pairs):
        raise InputError(f"{predicted} and {truth} have no label in common; name two with --pair PREDICTED=TRUTH")
    comparisons = []
    for name in ours:
        for label, other in dict.fromkeys((*common, *pairs)):
            images = _files(truth, name, theirs[name], other)
            frames, masks = _match(_files(predicted, name, ours[name], label), images), None
            if mask is not None:
                masks = tuple(file for file, _ in _match(_files(truth, name, theirs[name], mask), images))
            kind = label if other not in DOMAINS else other
            row = label if label == other else f"{label}={other}"
            comparisons.append(Comparison(name, row, kind, *zip(*frames, strict=True), masks))
    return comparisons


def _find(path: str | Path, labels: Sequence[str]) -> dict[str, dict[str, dict[str, Path]]]:
    """clip -> label -> stem of the frame -> file"""
    clips = dict(find_images(path, labels))
    if not clips:
        expected = frame_path("clip", 0, 0, "rgb")
        raise InputError(
            f"{path}: no images of {', '.join(labels)}; expected {expected}, or name its label with --pair"
        )
    return clips


def _files(path: str | Path, clip: str, files: dict[str, dict[str, Path]], label: str) -> dict[str, Path]:
    if label not in files:
        raise InputError(f"{path}: clip {clip!r} has no {label!r}; it has {', '.join(files)}")
    return files[label]


def _match(first: dict[str, Path], second: dict[str, Path]) -> list[tuple[Path, Path]]:
    """The files of the same frames, in order."""
    stems = [sorted(files, key=natural_order) for files in (first, second)]
    released = [all(map(RELEASED_STEM.fullmatch, names)) for names in stems]
    if released[0] != released[1] and len(first) == len(second):
        return [(first[a], second[b]) for a, b in zip(*stems, strict=True)]
    for stem in sorted(first.keys() ^ second.keys(), key=natural_order):
        file, other = (first[stem], stems[1]) if stem in first else (second[stem], stems[0])
        beside = (second if stem in first else first)[other[0]]
        raise InputError(f"{file} has no counterpart beside {beside}; both sides need the same frames")
    return [(first[stem], second[stem]) for stem in stems[0]]


def _require_size(path: Path, images: np.ndarray, other: Path, others: np.ndarray) -> None:
    if images.shape != others.shape:
        sizes = [f"{array.shape[2]}x{array.shape[1]}" for array in (images, others)]
        raise InputError(f"{path} has {sizes[0]} pixels, {other} {sizes[1]}; bring them to one size")


# ---- Results ----


def summarize(clips: dict[str, dict[str, Scores]]) -> dict[str, Scores]:
    """Scores by clip and label, as means over clips by label, after the numbers of `clips` and `frames`."""
    by_label = {}
    for scores in clips.values():
        for label, values in scores.items():
            by_label.setdefault(label, []).append(values)
    summary = {}
    for label, rows in by_label.items():
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if name != "frames"}
        summary[label] = {"clips": len(rows), "frames": sum(row["frames"] for row in rows)} | means
    return summary


def table(summary: dict[str, Scores]) -> str:
    """One line per label, with the names and values of its scores in columns."""
    rows = [[label, *(f"{name} {value:.4g}" for name, value in row.items())] for label, row in summary.items()]
    widths = [max(map(len, column)) for column in itertools.zip_longest(*rows, fillvalue="")]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def write_json(path: str | Path, results: dict) -> None:
    """Writes nested dicts of results; numbers that are not finite, which JSON has not, as null."""

    def plain(value):
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    with replacing(path) as temporary:
        temporary.write_text(json.dumps(plain(results), indent=1) + "\n")


# ---- Command line ----


def main() -> None:
    args = parser().parse_args()
    lpips = None if args.lpips is None else LPIPS.load(args.lpips)
    clips = {}
    for comparison in tqdm(compare(args.predicted, args.truth, args.pair or (), args.mask), disable=None, leave=False):
        clips.setdefault(comparison.clip, {})[comparison.row] = comparison.scores(lpips)
    summary = summarize(clips)
    print(table(summary))
    if args.json is not None:
        options = {name: getattr(args, name) for name in ("predicted", "truth", "mask", "lpips")}
        write_json(args.json, options | {"labels": summary, "clips": clips})


def parser() -> cli.Parser:
    top = cli.Parser(prog="python -m drender.metrics", description="Compares predicted clips with true ones.")
    top.add_argument("predicted", type=cli.path, help="folder of a clip or of clips, as sample.py writes them")
    top.add_argument("truth", type=cli.path, help="folder of the same clips")
    top.add_argument(
        "--pair", type=_pair, action="append", metavar="PREDICTED=TRUTH",
        help="labels to compare beside those that both have, such as env0000=rgb; may be given again",
    )  # fmt: skip
    top.add_argument("--mask", metavar="LABEL", help="of the truth's masks: only what is white in them counts")
    top.add_argument("--lpips", type=cli.path, metavar="FOLDER", help="with torchvision's and lpips' weight files")
    top.add_argument("--json", type=cli.path, metavar="FILE", help="to write, with the scores of every clip")
    return top


def _pair(text: str) -> tuple[str, str]:
    predicted, _, truth = text.partition("=")
    if not (predicted and truth):
        raise argparse.ArgumentTypeError(f"{text!r} is not PREDICTED=TRUTH, such as env0000=rgb")
    return predicted, truth


if __name__ == "__main__":
    cli.run(main)
