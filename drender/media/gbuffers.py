"""Find and read folders of G-buffers. `encodings.py` defines the meaning of their values."""

import contextlib
import itertools
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from drender.config import CONDITIONS, DOMAINS
from drender.errors import InputError, OnFailure, extent
from drender.fields import read_config
from drender.files import expand_home, folder_name, list_dir, map_collecting_errors, natural_order, readable
from drender.media.color import Pixels
from drender.media.encodings import DEFAULT, Camera, InputEncoding, read_labeled
from drender.media.images import HDR_SUFFIXES, IMAGE_SUFFIXES, image_size, open_image
from drender.media.layers import find_layer
from drender.media.ranges import resolve_encoding
from drender.media.sequences import RELEASED_STEM, split_sequences

Files = dict[str, dict[str, Path]]  # of a clip: label -> stem of the frame -> file
ENCODING = "encoding.json"  # in a folder of clips: {"normals": "directx", "layers": [["roughness", "G"]]}
# Labels of textures that pack others, and the channels of these.
PACKED, PACKED_CHANNELS = ("orm", "arm"), {"roughness": "G", "metallic": "B"}
# Labels of the images of a clip that are no G-buffers: of the picture, regions, lights, relit frames and previews.
_OTHERS = re.compile(r"rgb|mask|valid|guide|env.*")


def frame_path(folder: str | Path, chunk: int, frame: int, label: str, kind: str = "png") -> Path:
    """Return the path of a frame in the released layout; `label` is a buffer's name, `rgb`, `env0000`, …"""
    return Path(folder) / f"{chunk:04d}.{frame:04d}.{label}.{kind}"


@dataclass(frozen=True)
class GBufferClip:
    """The G-buffers of a clip on disk, from `find_gbuffer_clips`: one file per buffer and frame."""

    name: str  # of its folder
    paths: dict[str, tuple[Path, ...]]  # the buffers that every frame has -> the frames of all chunks in order
    chunks: dict[int, int]  # number of frames of each chunk; layouts without chunks have one, chunk 0
    assumed: InputEncoding = DEFAULT  # encoding of files without metadata
    incomplete: tuple[str, ...] = ()  # the buffers that only some frames have
    _encodings: dict[str, InputEncoding] = field(default_factory=dict, repr=False, compare=False)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.paths)

    @property
    def num_frames(self) -> int:
        return sum(self.chunks.values())

    def frames(self, label: str) -> Iterator[Pixels]:
        """Yield the frames of one buffer, as `read_frames` does."""
        return read_frames(self.paths[label], label, self.encoding(label))

    def encoding(self, label: str) -> InputEncoding:
        """Return the encoding of a label's files, found out once; InputError if they cannot be read."""
        if label not in self._encodings:
            self._encodings[label] = resolve_encoding(self.paths[label], label, self.assumed)
        return self._encodings[label]

    @property
    def folder(self) -> Path:
        """Return the clip's folder."""
        label, (path, *_) = next(iter(self.paths.items()))
        in_folder = path.parent.name in (label, *PACKED) and not _is_released(path, (label, *PACKED))
        return path.parent.parent if in_folder else path.parent  # `label/stem.png`

    @property
    def size(self) -> tuple[int, int]:
        """Return the (height, width) of the first file, from its header; InputError if it cannot be read."""
        return image_size(next(iter(self.paths.values()))[0])


def read_encoding(path: str | Path) -> InputEncoding:
    """Return the encoding that `encoding.json` in a folder of clips states, else DEFAULT; InputError if invalid."""
    file = expand_home(path) / ENCODING
    return read_config(InputEncoding, file, "correct it") if file.is_file() else DEFAULT


def read_frames(
    paths: Sequence[Path], label: str, assumed: InputEncoding = DEFAULT, cameras: Iterable[Camera] = ()
) -> Iterator[Pixels]:
    """Yield the images of a clip, whatever their format; InputError if one is unreadable or differs in size.

    The `cameras` are the camera-to-world rotation of every frame, which normals in world space need.
    """
    size = None
    for path, camera in itertools.zip_longest(paths, cameras):
        image = read_labeled(path, label, assumed, camera=camera)
        size = size or image.shape
        if image.shape != size:
            problem = f"{path} has {extent(image.shape)} pixels, {paths[0].name} {extent(size)}"
            raise InputError(f"{problem}; resize to one size per clip")
        yield image


def find_gbuffer_clips(
    path: str | Path, required: Sequence[str] = CONDITIONS, failed: OnFailure | None = None, labels: Sequence[str] = (),
    check: Callable[[str, Path], None] = lambda name, folder: None, assumed: InputEncoding = DEFAULT,
) -> list[GBufferClip]:  # fmt: skip
    """Return the clips at `path`, the folder of one clip or a folder of such folders, in natural order.

    A clip's folder holds `{chunk:04d}.{frame:04d}.{label}.png` (the released layout), `{stem}.{label}.png` (webdataset
    style), or `{label}/{stem}.png`, where the stem may name the label too; or any other format of `read_image`; or
    `{stem}.exr` with a layer per label. The stems order the frames and separate several clips in one folder, see
    `split_sequences`. A texture of the label `orm` or `arm` holds roughness in G and metallic in B. Warns of
    missing frame numbers.

    Args:
      required: labels that every frame must have.
      failed: receives the InputErrors of single clips among several; None: raise them.
      labels: further labels to find; files of any other label, such as `rgb`, are ignored.
      check: is called with a clip's name and folder, and may raise InputError.
      assumed: encoding of files without metadata.
    Raises:
      InputError: no clip, or a frame lacks a required label.
    """
    known = tuple(dict.fromkeys((*DOMAINS, *labels)))

    def clip(found: tuple[str, Files]) -> GBufferClip:
        name, files = found
        check(name, next(iter(next(iter(files.values())).values())).parent)
        return _clip(name, files, required, known, assumed)

    clips = find_images(path, known, assumed)
    if not clips:
        raise InputError(f"{path}: no G-buffers found; expected files such as {frame_path('clip', 0, 0, 'basecolor')}")
    return map_collecting_errors(clip, clips, failed)


def find_labels(path: str | Path, pattern: str = "") -> list[str]:
    """Return labels in a clip's folder or a folder of these: all of files with released names, in natural order.

    Labels that the regular expression matches are found in the other layouts too.
    """
    path, labels = expand_home(path), set()
    for entry in (*path.glob("[!.]*"), *path.glob("[!.]*/[!.]*")):
        stem, _, label = entry.stem.rpartition(".")
        is_image = entry.suffix.lower() in IMAGE_SUFFIXES + HDR_SUFFIXES
        if re.fullmatch(pattern, entry.name) and entry.is_dir():
            labels.add(entry.name)
        elif is_image and label and (RELEASED_STEM.fullmatch(stem) or (stem and re.fullmatch(pattern, label))):
            labels.add(label)
    return sorted(labels, key=natural_order)


def buffer_labels(path: str | Path) -> list[str]:
    """Return those of `find_labels` that are G-buffers: models may have others than DOMAINS."""
    return [label for label in find_labels(path) if not _OTHERS.fullmatch(label)]


def find_images(path: str | Path, labels: Sequence[str], assumed: InputEncoding = DEFAULT) -> list[tuple[str, Files]]:
    """Return name and files of every clip at `path` that has these labels, in the order of `find_gbuffer_clips`.

    InputError if `path` is unreadable, or for two files for one image.
    """
    path = expand_home(path)
    if not path.is_dir():
        raise InputError(f"{path} is not a folder" if path.exists() else f"{path} does not exist")
    with readable(path):
        found = {path: _files_of_folder(path, labels, assumed)}
        if not found[path]:
            found = {entry: _files_of_folder(entry, labels, assumed) for entry in list_dir(path) if entry.is_dir()}
    return [clip for folder, files in found.items() if files for clip in _split_clips(folder, files)]


def _split_clips(folder: Path, files: Files) -> list[tuple[str, Files]]:
    """Return (name, files) of every sequence in a folder."""
    stems = sorted({stem for images in files.values() for stem in images}, key=natural_order)
    sequences, name, clips = split_sequences(stems), folder_name(folder), []
    for sequence in sequences:
        sequence.warn_of_gaps(folder)
        own = {}
        for label, images in files.items():
            if kept := {stem: images[stem] for stem in sequence.stems if stem in images}:
                own[label] = kept
        clips.append((f"{name}_{sequence.name}" if len(sequences) > 1 and sequence.name else name, own))
    return clips


def _files_of_folder(folder: Path, labels: Sequence[str], assumed: InputEncoding) -> Files:
    """Return the files of a folder."""
    files, known = {}, (*labels, *PACKED)
    entries = list_dir(folder)
    for entry in entries:
        stem, _, label = entry.stem.rpartition(".")
        candidates = [(label, stem, entry)]
        if entry.name in known and entry.is_dir():
            images = list_dir(entry)
            if any(_is_released(image, known) for image in images):  # a clip that was named `rgb`, say
                continue
            # Blender names the files of a folder `normal` too: `normal/normal0001.exr`.
            own = re.compile(rf"{re.escape(entry.name)}[._-]?|[._-]{re.escape(entry.name)}")
            candidates = [(entry.name, own.sub("", image.stem, 1) or image.stem, image) for image in images]
        for label, stem, file in candidates:
            if label not in known or not stem or file.suffix.lower() not in IMAGE_SUFFIXES + HDR_SUFFIXES:
                continue
            if (other := files.setdefault(label, {}).setdefault(stem, file)) is not file:
                raise InputError(f"{other} and {file.name} are the same buffer of the same frame; remove one")
    for packed in PACKED:
        if images := files.pop(packed, {}):
            files = {label: images for label in PACKED_CHANNELS if label in labels} | files
    return files or _layered_files([entry for entry in entries if entry.suffix.lower() == ".exr"], labels, assumed)


def _is_released(image: Path, labels: Collection[str]) -> bool:
    """Return whether a file has a name of the released layout."""
    stem, _, label = image.stem.rpartition(".")
    return label in labels and RELEASED_STEM.fullmatch(stem) is not None


def _layered_files(entries: Sequence[Path], labels: Sequence[str], assumed: InputEncoding) -> Files:
    """Return the files of EXR frames that each hold the layers of at least two G-buffers."""
    found = []
    for label in labels if entries else ():
        with contextlib.suppress(InputError):
            layer = find_layer(open_image(entries[0]), entries[0], label, assumed.layer(label))
            found += [label] if layer and layer.name else []
    frames = {entry.stem: entry for entry in entries}
    return dict.fromkeys(found, frames) if len(set(found) - {"rgb", "mask"}) > 1 else {}


def _clip(
    name: str, files: Files, required: Sequence[str], known: Sequence[str], assumed: InputEncoding
) -> GBufferClip:
    """Return the clip of all frames that any `required` buffer has; every required buffer must have all of them.

    Warns of frames that only other buffers have.
    """
    stems = {stem for label in required or files for stem in files.get(label, {})}
    ordered = [stem for sequence in split_sequences(sorted(stems, key=natural_order)) for stem in sequence.stems]
    _require_all(name, files, required, ordered, assumed)
    if others := sorted({stem for images in files.values() for stem in images} - stems, key=natural_order):
        problem = f"{len(others)} frames, such as {others[0]}, have no {', '.join(map(repr, required))}"
        warnings.warn(f"clip {name!r}: {problem}, so they are left out; add the files", stacklevel=2)
    found = [label for label in known if label in files]
    labels = tuple(label for label in found if files[label].keys() >= stems)
    incomplete = tuple(label for label in found if label not in labels and files[label].keys() & stems)
    if not labels:
        raise InputError(f"clip {name!r}: no G-buffer has all {len(stems)} frames; add the missing files")
    numbered = all(RELEASED_STEM.fullmatch(stem) for stem in ordered)
    chunks = Counter(int(stem.partition(".")[0]) if numbered else 0 for stem in ordered)
    paths = {label: tuple(files[label][stem] for stem in ordered) for label in labels}
    first = {label: images[0] for label, images in paths.items()}
    packed = [label for label, path in first.items() if {path.parent.name, path.stem.rpartition(".")[2]} & {*PACKED}]
    channels = {label: PACKED_CHANNELS[label] for label in packed if label in PACKED_CHANNELS}
    layers = tuple((channels | dict(assumed.layers)).items())
    return GBufferClip(name, paths, dict(chunks), replace(assumed, layers=layers), incomplete)


def _require_all(name: str, files: Files, required: Sequence[str], stems: list[str], assumed: InputEncoding) -> None:
    """Raise InputError naming each required buffer that lacks frames, or for an EXR of layers, listing these."""
    first, *others = [next(iter(images.values())) for images in files.values()]
    for label in required:
        if label not in files and first in others:
            find_layer(open_image(first), first, label, assumed.layer(label))  # raises InputError
    lacks = []
    for label in required:
        missing = [stem for stem in stems if stem not in files.get(label, {})]
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        if missing or not stems:
            lacks.append(f"{label!r}" + (f" (frame {missing[0]}{more})" if missing else ""))
    if lacks:
        remedy = "add the files, or leave the condition out (forward: --drop)"
        raise InputError(f"clip {name!r} has no {', no '.join(lacks)}; {remedy}")
