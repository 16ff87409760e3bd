"""Folders of G-buffers on disk. What their numbers mean stands in `encodings.py`."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from drender.config import CONDITIONS, DOMAINS
from drender.errors import InputError
from drender.files import list_dir, map_collecting_errors, natural_order
from drender.media.encodings import DEFAULT, InputEncoding, read_labeled
from drender.media.images import HDR_SUFFIXES, IMAGE_SUFFIXES

# What the released layout calls a frame: its chunk and its number within.
RELEASED_STEM = re.compile(r"\d{4,}\.\d{4,}")


def frame_path(folder: str | Path, chunk: int, frame: int, label: str, kind: str = "png") -> Path:
    """Where the released layout keeps a frame of a clip: `label` is a buffer's name, `rgb`, `env0000`, …"""
    return Path(folder) / f"{chunk:04d}.{frame:04d}.{label}.{kind}"


@dataclass(frozen=True)
class GBufferClip:
    """The G-buffers of a clip on disk, from `find_gbuffer_clips`: one file per buffer and frame."""

    name: str  # of its folder
    labels: tuple[str, ...]  # the buffers that every frame has
    chunks: dict[int, int]  # number of frames of each chunk; layouts without chunks have one, chunk 0
    paths: dict[tuple[str, int], tuple[Path, ...]]  # (label, chunk) -> the frames in order
    assumed: InputEncoding = DEFAULT  # of files that do not say how they are encoded

    def frames(
        self, label: str, chunk: int = 0, start: int = 0, stop: int | None = None
    ) -> Iterator[Float32[np.ndarray, "h w 3"]]:
        """Frames start to stop − 1 (by default to the end of the chunk) of one buffer, read as they are asked for.

        InputError naming the file if one cannot be read or differs from the first in size.
        """
        return read_frames(self.paths[label, chunk][start:stop], label, self.assumed)

    @property
    def folder(self) -> Path:
        (label, _), (path, *_) = next(iter(self.paths.items()))
        return path.parent if path.stem.endswith(f".{label}") else path.parent.parent  # `label/stem.png`

    def read(
        self, label: str, chunk: int = 0, start: int = 0, stop: int | None = None
    ) -> Float32[np.ndarray, "f h w 3"]:
        """The same frames in one array."""
        return np.stack(list(self.frames(label, chunk, start, stop)))


def read_frames(
    paths: Sequence[Path], label: str, assumed: InputEncoding = DEFAULT
) -> Iterator[Float32[np.ndarray, "h w 3"]]:
    """The images of a clip, one by one, whatever their format; InputError as in `GBufferClip.frames`."""
    size = None
    for path in paths:
        image = read_labeled(path, label, assumed)
        size = size or image.shape
        if image.shape != size:
            found, first = (f"{width}x{height}" for height, width, _ in (image.shape, size))
            raise InputError(f"{path} has {found} pixels, {paths[0].name} {first}; a clip needs one size")
        yield image


def find_gbuffer_clips(
    path: str | Path,
    required: Sequence[str] = CONDITIONS,
    failed: Callable[[InputError], None] | None = None,
    labels: Sequence[str] = (),
    check: Callable[[str, Path], None] = lambda name, folder: None,
    assumed: InputEncoding = DEFAULT,
) -> list[GBufferClip]:
    """The clips at `path`, in natural order: the folder of one clip, or a folder of such folders.

    A clip's folder holds `{chunk:04d}.{frame:04d}.{label}.png` (the released layout), `{stem}.{label}.png` (webdataset
    style, frames in the natural order of their stems), or `{label}/{stem}.png`; or EXR and the other stills that
    `read_image` reads, which are taken as `assumed` where they do not say what they hold. Files with labels that are
    neither G-buffers nor among `labels`, such as `rgb`, are passed over. InputError if there is no clip, or if a frame
    lacks one of the `required` labels; of many clips, `failed` takes these last errors, and the others are returned.
    `check`, given a clip's name and folder, may raise one too.
    """
    known = tuple(dict.fromkeys((*DOMAINS, *labels)))

    def clip(name: str, files: dict[str, dict[str, Path]]) -> GBufferClip:
        check(name, next(iter(next(iter(files.values())).values())).parent)
        return replace(_clip(name, files, required, known), assumed=assumed)

    clips = find_images(path, known)
    if not clips:
        raise InputError(f"{path}: no G-buffers there; expected files such as {frame_path('clip', 0, 0, 'basecolor')}")
    return map_collecting_errors(clip, clips, failed)


def find_images(path: str | Path, labels: Sequence[str]) -> list[tuple[str, dict[str, dict[str, Path]]]]:
    """The files of the clips at `path`, in the layouts and order of `find_gbuffer_clips`.

    Returns, of every clip that has any, its name and label -> stem of the frame -> file. InputError if `path` cannot be
    read, or if two files hold one image.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path} is not a folder" if path.exists() else f"{path} does not exist")
    try:
        found = {path: _files_of_clip(path, labels)}
        if not found[path]:
            found = {entry: _files_of_clip(entry, labels) for entry in list_dir(path) if entry.is_dir()}
    except OSError as error:
        raise InputError(f"cannot read {error.filename or path}: {error.strerror}") from error
    return [(folder.resolve().name, files) for folder, files in found.items() if files]


def _files_of_clip(folder: Path, labels: Sequence[str]) -> dict[str, dict[str, Path]]:
    """The images of these labels that lie in a clip's folder: label -> stem of the frame -> file."""
    files = {}
    for entry in list_dir(folder):
        stem, _, label = entry.stem.rpartition(".")
        found = [(label, stem, entry)]
        if entry.name in labels and entry.is_dir():
            found = [(entry.name, image.stem, image) for image in list_dir(entry)]
        for label, stem, file in found:
            if label not in labels or not stem or file.suffix.lower() not in IMAGE_SUFFIXES + HDR_SUFFIXES:
                continue
            if (other := files.setdefault(label, {}).setdefault(stem, file)) is not file:
                raise InputError(f"{other} and {file.name} are the same buffer of the same frame; remove one")
    return files


def _clip(name: str, files: dict[str, dict[str, Path]], required: Sequence[str], known: Sequence[str]) -> GBufferClip:
    """A clip of the frames that any of the `required` buffers has, all of which must have them all."""
    stems = {stem for label in required or files for stem in files.get(label, {})}
    stems = sorted(stems, key=natural_order)
    _require_all(name, files, required, stems)
    labels = tuple(label for label in known if label in files and files[label].keys() >= set(stems))
    numbered = all(RELEASED_STEM.fullmatch(stem) for stem in stems)
    chunks = {}
    for stem in stems:
        chunks.setdefault(int(stem.split(".")[0]) if numbered else 0, []).append(stem)
    paths = {(x, chunk): tuple(files[x][stem] for stem in frames) for x in labels for chunk, frames in chunks.items()}
    return GBufferClip(name, labels, {chunk: len(frames) for chunk, frames in chunks.items()}, paths)


def _require_all(name: str, files: dict[str, dict[str, Path]], required: Sequence[str], stems: list[str]) -> None:
    """InputError saying which required buffer lacks which frames."""
    lacks = []
    for label in required:
        missing = [stem for stem in stems if stem not in files.get(label, {})]
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        if missing or not stems:
            lacks.append(f"{label!r}" + (f" (frame {missing[0]}{more})" if missing else ""))
    if lacks:
        raise InputError(f"clip {name!r} has no {', no '.join(lacks)}; add the files, or drop the condition")
