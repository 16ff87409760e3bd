"""Compare two folders of clips: match their clips, labels and frames, and average the scores."""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from drender.config import DOMAINS
from drender.errors import InputError, extent, naming
from drender.files import folder_name, natural_order, write_text
from drender.media.encodings import InputEncoding
from drender.media.gbuffers import Files, find_images, find_labels, frame_path, read_encoding, read_frames
from drender.media.ranges import resolve_encoding
from drender.media.sequences import RELEASED_STEM
from drender.metrics.image import Scores, evaluate
from drender.metrics.lpips import LPIPS

RELIT = r"env\d{4,}"  # labels of relit frames


@dataclass(frozen=True)
class Comparison:
    """The files of one label of a clip, predicted and true, frame by frame."""

    clip: str
    row: str  # of the table: the label, or `PREDICTED=TRUTH` where the two sides name it differently
    label: str  # the kind of image, for `evaluate`
    predicted: tuple[Path, ...]
    truth: tuple[Path, ...]
    masks: Sequence[Path] | None
    encodings: tuple[InputEncoding, InputEncoding]  # of both sides

    def scores(self, lpips: LPIPS | None = None) -> Scores:
        """Return the number of `frames`, and the scores of `evaluate`."""
        predicted, truth = map(_read, (self.predicted, self.truth), (self.label, self.label), self.encodings)
        masks = None if self.masks is None else _read(self.masks, "mask", self.encodings[1])
        for files, images in ((self.predicted, predicted), (self.masks, masks)):
            if images is not None and images.shape != truth.shape:
                sizes = f"{files[0]} has {extent(images[0].shape)} pixels, {self.truth[0]} {extent(truth[0].shape)}"
                raise InputError(f"{sizes}; resize them to one size")
        mask = None if masks is None else masks.mean(-1) > 0.5
        with naming(f"clip {self.clip!r}"):
            return {"frames": len(truth)} | evaluate(self.label, predicted, truth, mask, lpips)


def _read(files: Sequence[Path], label: str, assumed: InputEncoding) -> Float32[np.ndarray, "f h w 3"]:
    return np.stack([*read_frames(files, label, resolve_encoding(files, label, assumed))])


# --- matching ---


def compare(
    predicted: str | Path, truth: str | Path, pairs: Sequence[tuple[str, str]] = (), mask: str | None = None
) -> list[Comparison]:
    """Match two folders of clips, in the layouts of `find_gbuffer_clips`; return a comparison per clip and label.

    Clips are matched by name, unless both folders are those of a single clip. Frames are matched by name, or by order
    where only one side has the released names. InputError if there is nothing to compare, or if one side lacks a clip,
    a label of a clip or a frame.

    Args:
      pairs: labels to compare, (predicted, truth), besides all that both sides have.
      mask: the label of the truth's masks, white where pixels count.
    """
    known = tuple(dict.fromkeys((*DOMAINS, "rgb", *find_labels(predicted, RELIT), *find_labels(truth, RELIT))))
    predicted_clips = _find(predicted, (*known, *(label for label, _ in pairs)))
    true_clips = _find(truth, (*known, *(label for _, label in pairs), *([] if mask is None else [mask])))
    if list(predicted_clips) == [folder_name(predicted)] and list(true_clips) == [folder_name(truth)]:
        true_clips = dict(zip(predicted_clips, true_clips.values(), strict=True))
    for name in sorted(predicted_clips.keys() ^ true_clips.keys(), key=natural_order):
        with_clip, without = (predicted, truth) if name in predicted_clips else (truth, predicted)
        raise InputError(f"{without} has no clip {name!r}, which {with_clip} has; both need the same clips")
    shared = set().union(*predicted_clips.values()) & set().union(*true_clips.values()) - {mask}
    compared = dict.fromkeys((*((label, label) for label in known if label in shared), *pairs))
    if not compared:
        raise InputError(f"{predicted} and {truth} have no label in common; name two with --pair PREDICTED=TRUTH")
    comparisons, encodings = [], (read_encoding(predicted), read_encoding(truth))
    for name, (label, true_label) in itertools.product(predicted_clips, compared):
        true_files = _files(truth, name, true_clips[name], true_label)
        frames = zip(*_match(_files(predicted, name, predicted_clips[name], label), true_files), strict=True)
        masks = mask and [file for file, _ in _match(_files(truth, name, true_clips[name], mask), true_files)]
        kind = true_label if true_label in DOMAINS else label
        row = label if label == true_label else f"{label}={true_label}"
        comparisons.append(Comparison(name, row, kind, *frames, masks, encodings))
    return comparisons


def _find(path: str | Path, labels: Sequence[str]) -> dict[str, Files]:
    """Return the images of these labels by clip; InputError if there are none."""
    found = find_images(path, labels, read_encoding(path))
    clips = dict(found)
    if repeated := [name for name, files in found if clips[name] is not files]:
        raise InputError(f"{path}: two clips are named {repeated[0]!r}; rename one")
    if not clips:
        remedy = f"expected {frame_path('clip', 0, 0, 'rgb')}, or name its label with --pair"
        raise InputError(f"{path}: no images of {', '.join(labels)}; {remedy}")
    return clips


def _files(path: str | Path, name: str, clip: Files, label: str) -> dict[str, Path]:
    """Return a clip's files of one label; InputError, which names the folder and the clip, if there are none."""
    if label not in clip:
        raise InputError(f"{path}: clip {name!r} has no {label!r}; it has {', '.join(clip)}")
    return clip[label]


def _match(first: dict[str, Path], second: dict[str, Path]) -> list[tuple[Path, Path]]:
    """Return the files of the same frames, in order."""
    stems = [sorted(files, key=natural_order) for files in (first, second)]
    released = [all(map(RELEASED_STEM.fullmatch, names)) for names in stems]
    if released[0] != released[1] and len(first) == len(second):
        return [(first[a], second[b]) for a, b in zip(*stems, strict=True)]
    for stem in sorted(first.keys() ^ second.keys(), key=natural_order):
        file, other = (first[stem], second[stems[1][0]]) if stem in first else (second[stem], first[stems[0][0]])
        raise InputError(f"{file} has no counterpart beside {other}; both sides need the same frames")
    return [(first[stem], second[stem]) for stem in stems[0]]


# --- summaries ---


def summarize(clips: dict[str, dict[str, Scores]]) -> dict[str, Scores]:
    """Return, from scores by clip and label, the number of `clips` and `frames` and the means by label."""
    summary = {}
    for label in dict.fromkeys(itertools.chain.from_iterable(clips.values())):
        rows = [scores[label] for scores in clips.values() if label in scores]
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if name != "frames"}
        summary[label] = {"clips": len(rows), "frames": sum(row["frames"] for row in rows)} | means
    return summary


def table(summary: dict[str, Scores]) -> str:
    """Return one line per label, with the names and values of its scores in columns."""
    rows = [[label, *(f"{name} {value:.4g}" for name, value in row.items())] for label, row in summary.items()]
    widths = [max(map(len, column)) for column in itertools.zip_longest(*rows, fillvalue="")]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def write_json(path: str | Path, results: dict) -> None:
    """Write nested dicts of results; non-finite numbers, which JSON lacks, become null."""

    def finite(value):
        if isinstance(value, dict):
            return {name: finite(item) for name, item in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    write_text(path, json.dumps(finite(results), indent=1) + "\n")
