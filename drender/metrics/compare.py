"""TODO."""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drender.config import DOMAINS
from drender.errors import InputError
from drender.files import atomic_write, natural_order
from drender.media.gbuffers import RELEASED_STEM, find_images, frame_path, read_frames
from drender.metrics.image import Scores, evaluate
from drender.metrics.lpips import LPIPS


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

    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(plain(results), indent=1) + "\n")
