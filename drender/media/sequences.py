"""Split the images of a folder into sequences by the numbers in their names."""

import filecmp
import itertools
import re
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# A hyphen is a sign at the start or after a separator, as in `shot.-005`, but not in `shot-005`.
NUMBER = re.compile(r"(?:(?<![A-Za-z0-9])-)?\d+")
RELEASED_STEM = re.compile(r"\d{4,}\.\d{4,}")  # chunk and frame in the released layout
MAX_LISTED = 5  # gaps that a warning lists


class ImageSequence(NamedTuple):
    """Frames of one name pattern in order, or a single image."""

    name: str  # letters of the pattern: "left" of `left.0001`, "" of `0001`; the stem of a single unnumbered image
    stems: tuple[str, ...]
    gaps: tuple[tuple[int, int], ...] = ()  # first and last missing frame number of each gap

    def warn_of_gaps(self, folder: str | Path) -> None:
        """Warn, naming the frames that are missing between others."""
        spans = [str(first) if first == last else f"{first} to {last}" for first, last in self.gaps]
        if spans:
            more = [f"{len(spans) - MAX_LISTED} more gaps"] if len(spans) > MAX_LISTED else []
            warnings.warn(
                f"{folder}: frames are missing between {self.stems[0]!r} and {self.stems[-1]!r}: "
                f"{', '.join(spans[:MAX_LISTED] + more)}; the clip jumps there, so render them",
                stacklevel=3,
            )


def split_sequences(stems: Sequence[str]) -> list[ImageSequence]:
    """Return the sequences among the stems of file names, in the order of their first stems.

    Frames of a sequence differ in their last number alone: `left.0001` and `right.0001`, and `0001` and `0001_mask`,
    belong to two sequences. Numbers may have a sign and decimals. An image without a number is a sequence of one. The
    chunks of the released layout are one sequence.
    """
    if len(stems) > 1 and all(map(RELEASED_STEM.fullmatch, stems)):
        chunks = itertools.groupby((stem.split(".") for stem in stems), key=lambda numbers: numbers[0])
        gaps = [gap for _, frames in chunks for gap in _gaps([int(frame) for _, frame in frames])]
        return [ImageSequence("", tuple(stems), tuple(gaps))]
    by_pattern = {}
    for stem in stems:
        by_pattern.setdefault(NUMBER.sub("#", stem), []).append(stem)
    sequences = []
    for pattern, group in by_pattern.items():
        if len(group) == 1 or "#" not in pattern:
            sequences += [ImageSequence(stem, (stem,)) for stem in group]
        else:
            sequences += _split_numbered(pattern, group)
    order = {stem: index for index, stem in enumerate(stems)}
    return sorted(sequences, key=lambda sequence: min(order[stem] for stem in sequence.stems))


def without_overlaps(frames: list[Path]) -> list[Path]:
    """Return the frames of the released layout without those that a chunk shares with the one before, by content."""
    chunks = [list(group) for _, group in itertools.groupby(frames, key=lambda path: path.name.partition(".")[0])]
    if not all(RELEASED_STEM.match(path.stem) for path in frames):
        return frames
    kept = chunks[0]
    for before, chunk in itertools.pairwise(chunks):
        shared = range(min(len(before), len(chunk)), 0, -1)
        kept = kept + chunk[next((n for n in shared if _are_equal(before[-n:], chunk[:n])), 0) :]
    return kept


def _are_equal(frames: list[Path], others: list[Path]) -> bool:
    return all(filecmp.cmp(frame, other, shallow=False) for frame, other in zip(frames, others, strict=True))


def _split_numbered(pattern: str, stems: Sequence[str]) -> list[ImageSequence]:
    """Split stems of one pattern, such as `cam#_#`, by all numbers but the last, unless those number the frames too."""
    texts = {stem: NUMBER.findall(stem) for stem in stems}
    varying = [i for i in range(len(texts[stems[0]])) if len({numbers[i] for numbers in texts.values()}) > 1]
    last = varying[-1]
    views = {}
    for stem in stems:
        views.setdefault(tuple(texts[stem][:last]), []).append(stem)
    if _are_decimals(pattern, [numbers[last - 1 : last + 1] for numbers in texts.values()] if last else [], len(views)):
        value = lambda stem: (*map(int, texts[stem][: last - 1]), float(".".join(texts[stem][last - 1 : last + 1])))
        return [ImageSequence(_letters(stems[0]), tuple(sorted(stems, key=value)))]
    number = lambda stem: tuple(map(int, texts[stem]))
    if len(varying) > 2 or len(stems) < 2 * len(views):  # a date and time, or one frame of each view
        return [ImageSequence(_letters(stems[0]), tuple(sorted(stems, key=number)))]
    sequences = []
    for view in views.values():
        ordered = tuple(sorted(view, key=number))
        gaps = _gaps([int(texts[stem][last]) for stem in ordered])
        kept = itertools.count()
        # The numbers that tell the views apart stay in the name.
        name = NUMBER.sub(lambda match: match[0] if next(kept) < last else "", ordered[0])  # noqa: B023
        sequences.append(ImageSequence(_trim(name if len(views) > 1 else NUMBER.sub("", name)), ordered, gaps))
    return sequences


def _are_decimals(pattern: str, pairs: Sequence[Sequence[str]], num_views: int) -> bool:
    """Return whether the last two numbers of names, joined by a dot, are decimals like 0.25 and not view and frame.

    Decimals differ in value. They have one or two digits after the dot, or more than frame numbers of one width need.
    """
    if not pairs or not pattern.endswith("#.#"):
        return False
    widths = {len(fraction) for _, fraction in pairs}
    trailing_zero = any(len(fraction) > 1 and fraction.endswith("0") for _, fraction in pairs)
    unpadded = len(widths) > 1 and trailing_zero  # frames 9 and 10
    distinct = len({float(".".join(pair)) for pair in pairs}) == len(pairs)
    return distinct and not unpadded and (max(widths) <= 2 or len(widths) > 1 or len(pairs) < 2 * num_views)


def _gaps(numbers: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return (first, last) missing number of each gap, if most of the sorted numbers are equally spaced."""
    differences = [after - before for before, after in itertools.pairwise(numbers)]
    if len(differences) < 2:
        return ()
    step = min(statistics.multimode(differences))
    if step < 1 or 2 * differences.count(step) < len(differences):
        return ()
    return tuple(
        (before + step, after - step) for before, after in itertools.pairwise(numbers) if after > before + step
    )


def _letters(stem: str) -> str:
    return _trim(NUMBER.sub("", stem))


def _trim(name: str) -> str:
    """Remove separators from the ends of a name, and repeated ones."""
    return re.sub(r"[ ._-]*([ ._-])", r"\1", name).strip(" ._-")
