"""The configuration of a run, and its outputs for one clip: frames, a record of those, a video and a contact sheet.

Frames are `O/{clip}/{chunk:04d}.{frame:04d}.{label}.png`, named as by the released scripts. The record beside them lets
an interrupted run resume.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from drender.errors import InputError, say
from drender.fields import bounded, check_ranges
from drender.files import atomic_write, remove_partial, write_text
from drender.media.color import Pixels
from drender.media.encodings import KINDS, ImageFormat, read_labeled
from drender.media.gbuffers import frame_path
from drender.media.images import IMAGE_SUFFIXES, read_hdr, write_hdr
from drender.media.resize import ResizeConfig, ResizePlan
from drender.media.video import VIDEO_SUFFIXES, write_video
from drender.renderers.windows import WindowedLatents
from drender.sampling.inputs import Chunk, ChunkConfig, Frame
from drender.sampling.record import InputFiles, read_record
from drender.sampling.report import Reader
from drender.settings import differences


@dataclass(frozen=True)
class RunConfig:
    """Input, output and settings of a run."""

    input: Path
    output: Path
    settings: dict  # JSON values that the results depend on, for the record and the HTML page
    dependencies: tuple[Path, ...] = ()  # files and folders that all results depend on, such as checkpoints
    chunks: ChunkConfig = field(default_factory=ChunkConfig)
    resize: ResizeConfig = field(default_factory=ResizeConfig)
    sampling: dict = field(default_factory=dict)  # keyword arguments of the renderers
    format: ImageFormat = field(default_factory=ImageFormat)
    video: bool = True  # write `{clip}.viz.mp4` and the contact sheet
    quality: float = bounded(7.0, at_least=0, at_most=10)  # of the video
    overwrite: bool = False  # replace results of other settings or inputs
    html: bool = False  # write `index.html`, a page that shows all clips

    def __post_init__(self):
        check_ranges(self)
        if self.output.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES and not self.output.is_dir():
            raise InputError(f"--output {self.output}: names a file, but results are a folder per clip; give a folder")

    def inputs(self, files: Iterable[Path]) -> InputFiles:
        """Return everything that the results of a clip made of `files` depend on."""
        return InputFiles((*files, *self.dependencies))

    def check_separate(self, folders: dict[str, Path]) -> None:
        """Raise InputError if results would lie among the input's files, given the folder of each clip's files."""
        output = self.output.resolve()
        inside = self.input.is_dir() and output.is_relative_to(self.input.resolve())
        if inside or any((output / name).resolve() == folder.resolve() for name, folder in folders.items()):
            raise InputError(f"--output {self.output} would put results among the input's files; give another")


class ClipOutput:
    """The folder of a clip's results. Those of other settings, or of inputs of other contents, are never mixed.

    Args:
      name: of the clip.
      command: "inverse" or "forward", which names the record; a folder may hold the results of one run of each.
      labels: of the images that the run writes, in the order in which they are shown.
      files: of the clip.
      below: a folder between the run's and the clip's.
      **settings: further ones that the results depend on.
    Raises:
      InputError: the folder holds other results, and the run does not `overwrite` them.
    """

    def __init__(
        self, run: RunConfig, name: str, command: str, labels: Sequence[str], files: Iterable[Path], below: str = "",
        **settings: Any,
    ):  # fmt: skip
        self.root, self.name, self.labels, self.format = run.output, name, tuple(labels), run.format
        self.path = self.root / below / name
        self._record_path = self.path / f"{command}.json"
        self._inputs = run.inputs(files)
        self._record = {
            "settings": run.settings | settings, "labels": sorted(labels), "chunks": [], "finished": False, "inputs": {}
        }  # fmt: skip
        existing = read_record(self._record_path)
        problem = self._other_results(existing)
        self._continued = bool(existing) and problem is None
        if self._continued:
            self._record |= existing
        elif run.overwrite:
            self._record["labels"] = sorted({*labels, *existing.get("labels", [])})
        elif problem:
            raise InputError(f"{self.path} holds {problem}; give another --output, or --overwrite")
        # `inverse` and `forward` may write to one folder; the second one's previews then have its command in the name.
        others = [read_record(path) for path in self.path.glob("*.json") if path != self._record_path]
        if not self._continued and any(record and not record.get("command_in_preview") for record in others):
            self._record["command_in_preview"] = True
        stem = f"{name}.{command}" if self._record.get("command_in_preview") is True else name
        self.video = self.path.with_name(f"{stem}.viz.mp4")
        self.sheet = self.root / f"{stem}.contact.png"
        self.light = self.path.with_name(f"{stem}.light.exr")

    def _other_results(self, existing: dict) -> str | None:
        """Return what the folder holds that this run, given its record, cannot continue; None: nothing."""
        if existing:
            if changes := differences(existing["settings"], self._record["settings"]):
                return f"results made with another {changes[0]}"
            if not self._inputs.match(existing.get("inputs", {})):
                return "results made from other contents of the same input files"
        elif images := self._images():
            return f"{images[0].name} and no record of a run that wrote it"
        return None

    def has(self, chunk: Chunk) -> bool:
        """Return whether all images of a chunk were completed, and exist: some may have been deleted since."""
        files = (self._file(chunk, i, label) for label in self.labels for i in range(chunk.num_frames))
        return chunk.index in self._record["chunks"] and all(file.exists() for file in files)

    def is_finished(self, chunks: Sequence[Chunk], quality: float | None = None) -> bool:
        """Return whether all images are complete, and the video of a quality, unless it is None."""
        has_video = self.video.exists() and self._record.get("quality", quality) == quality
        return self._record["finished"] and (has_video or quality is None) and all(map(self.has, chunks))

    def restart(self) -> None:
        """Treat existing results as those of other settings: they are replaced once the first new file is written."""
        self._continued = False
        self._record |= {"chunks": [], "finished": False}

    def remove_partial(self) -> None:
        """Delete the temporary files of a run that was killed."""
        remove_partial(self.path)
        for preview in (self.video, self.sheet):
            remove_partial(preview.parent, preview)

    # --- latents of an interrupted run ---

    def load_latents(self, chunk: Chunk, label: str) -> WindowedLatents | None:
        """Return the latents saved by an interrupted run, or None."""
        if not self._continued:
            return None
        try:
            with np.load(self._latents_path(chunk, label)) as found:
                windows = [slice(int(start), int(stop)) for start, stop in found["windows"].tolist()]
                latents = list(found["pieces"])
            lengths = [piece.shape[1] for piece in latents if piece.ndim == 5 and piece.dtype.kind == "f"]
            fit = lengths == [window.stop - window.start for window in windows] and windows[-1].stop == chunk.length
            return WindowedLatents(windows, latents) if fit else None
        except Exception:  # numpy and zipfile raise nearly anything for a damaged file, which only costs time
            return None

    def save_latents(self, chunk: Chunk, label: str, latents: WindowedLatents) -> WindowedLatents:
        """Save sampled latents until the chunk is complete, because sampling takes longest.

        Returns:
          the latents on the host, as `load_latents` returns them: a device would round the next operations differently.
        """
        self._begin()
        windows = [(window.start, window.stop) for window in latents.windows]
        pieces = [np.asarray(piece) for piece in latents.latents]
        with atomic_write(self._latents_path(chunk, label)) as temporary, open(temporary, "wb") as file:
            np.savez(file, windows=np.array(windows), pieces=np.stack(pieces))
        return WindowedLatents(latents.windows, pieces)

    # --- estimated light ---

    def load_light(self) -> Pixels | None:
        """Return the clip's own light that was saved for these results, or None."""
        return read_hdr(self.light, False) if self._continued and self.light.exists() else None

    def save_light(self, light: Pixels) -> None:
        """Save the clip's own light, as a map that other runs can take."""
        self._begin()
        write_hdr(self.light, light)

    # --- images ---

    def write(
        self, chunk: Chunk, label: str, batches: Iterable[np.ndarray], resize: ResizePlan
    ) -> Iterator[np.ndarray]:
        """Write batches `1 n h w 3` of one label at the output's size, without repeated frames, and pass them on."""
        frame = 0
        for batch in batches:
            for image in batch[0, : chunk.num_frames - frame]:
                self.write_frame(chunk, frame, label, resize.restore(image, label), self.format)
                frame += 1
            yield batch
        say(f"{self.name}: {label}, frames {chunk.start} to {chunk.stop - 1}, written")

    def write_frame(
        self, chunk: Chunk, frame: int, label: str, image: Float[np.ndarray, "h w 3"], format: ImageFormat
    ) -> None:
        self._begin()
        format.write(self._file(chunk, frame, label), image, label)

    def read(self, chunk: Chunk, frame: int, label: str) -> Float[np.ndarray, "h w 3"]:
        """Return a frame that was written, in the encoding of memory."""
        return read_labeled(self._file(chunk, frame, label), label)

    def readers(self, frames: Sequence[Frame]) -> dict[str, Reader]:
        """Return label -> function that reads the i-th of these frames."""
        return {label: lambda i, label=label: self.read(*frames[i], label) for label in self.labels}

    # --- progress ---

    def complete(self, chunk: Chunk) -> None:
        """Record that all files of the chunk are written."""
        self._save(chunks=sorted({*self._record["chunks"], chunk.index}))
        self._remove_latents(f"{chunk.index:04d}")

    def finish(self, frames: Iterable[np.ndarray] | None, fps: float, quality: float) -> None:
        """Write the video of `frames`, if any, and record the clip as finished, with its frame rate and quality."""
        if frames is not None:
            write_video(self.video, frames, fps, quality)
        self._remove_latents()  # a run killed right after `complete` wrote its record leaves them
        self._save(finished=True, fps=fps, quality=quality)

    def _begin(self) -> None:
        """Remove the results of other settings or inputs before the first new file is written."""
        if self._continued:
            return
        self._continued = True
        if existing := read_record(self._record_path):  # if this is interrupted, the rest must not count as complete
            self._write_record(existing | {"chunks": [], "finished": False})
        for path in (*self._images(), self.video, self.sheet, self.light):
            path.unlink(missing_ok=True)
        self._remove_latents()
        self._save()

    def _file(self, chunk: Chunk, frame: int, label: str) -> Path:
        return frame_path(self.path, chunk.index, frame, label, self.format.kind)

    def _latents_path(self, chunk: Chunk, label: str) -> Path:
        return self.path / f".{chunk.index:04d}.{label}.latents.npz"

    def _images(self) -> list[Path]:
        names = [f"*.{label}.{kind}" for label in self._record["labels"] for kind in KINDS]
        return [path for name in names for path in sorted(self.path.glob(name))]

    def _remove_latents(self, chunk: str = "*") -> None:
        for path in self.path.glob(f".{chunk}.*.latents.npz"):
            path.unlink()

    def _save(self, **changes) -> None:
        self._record |= changes | {"inputs": self._inputs.to_json()}
        self._write_record(self._record)

    def _write_record(self, record: dict) -> None:
        write_text(self._record_path, json.dumps(record, indent=1))
