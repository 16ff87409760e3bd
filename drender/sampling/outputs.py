"""What a run writes: frames, a record of what is complete, and a video that shows the clip's images side by side.

A clip's results lie in `O/{clip}/{chunk:04d}.{frame:04d}.{label}.png`, as the released scripts name them; the record
beside them lets an interrupted run go on where it stopped.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from drender.errors import InputError
from drender.files import atomic_write, first_difference
from drender.media.encodings import KINDS, ImageFormat, read_labeled
from drender.media.gbuffers import frame_path
from drender.media.resize import ResizePlan
from drender.media.video import write_video
from drender.renderers.windows import WindowedLatents
from drender.sampling.inputs import Chunk
from drender.sampling.record import read_record

PNG = ImageFormat()


class ClipOutput:
    """The folder of one clip's results, with the record of what is complete.

    Args:
      output: the run's folder; the clip's is `output/name`.
      command: "inverse" or "forward"; a folder may hold the results of one run of each.
      labels: of the images that the run writes.
      settings: what the results depend on, as JSON. Results of other settings are not mixed with these.
      overwrite: replace such results once there is something to replace them with, instead of raising InputError.
      format: of the images.
    """

    def __init__(
        self, output: Path, name: str, command: str, labels: Iterable[str], settings: dict, overwrite: bool = False,
        format: ImageFormat = PNG,
    ):  # fmt: skip
        self.format = format
        self.output, self.name = Path(output), name
        self.path = self.output / name
        self._record_path = self.path / f"{command}.json"
        settings = json.loads(json.dumps(settings))  # as it will be read back: lists for tuples
        self._record = {"settings": settings, "labels": sorted(labels), "chunks": [], "finished": False}
        found = read_record(self._record_path)
        # Is what lies in the folder of this run?
        self._continued = found.get("settings") == settings
        if self._continued:
            self._record |= found
        elif overwrite:
            self._record["labels"] = sorted({*self._record["labels"], *found.get("labels", [])})
        elif found:
            raise InputError(
                f"{self.path} holds results made with {first_difference(found['settings'], settings)}; "
                "give another --output, or --overwrite"
            )
        elif images := self._images():
            raise InputError(
                f"{self.path} holds {images[0].name} and no record of a run that wrote it; "
                "give another --output, or --overwrite"
            )

    @property
    def finished(self) -> bool:
        return self._record["finished"]

    @property
    def video(self) -> Path:
        """Where the side-by-side video is, or will be."""
        return self.output / f"{self.name}.viz.mp4"

    @property
    def done(self) -> set[int]:
        """Indices of the chunks whose files are all there."""
        return set(self._record["chunks"])

    def remember(self, chunk: Chunk, label: str) -> WindowedLatents | None:
        """What was sampled of an image kind before the run was stopped, if it was."""
        if not self._continued:
            return None
        try:
            with np.load(self._latents_path(chunk, label)) as found:
                windows = [slice(int(start), int(stop)) for start, stop in found["windows"].tolist()]
                pieces = list(found["pieces"])
            lengths = [piece.shape[1] for piece in pieces if piece.ndim == 5 and piece.dtype.kind == "f"]
            fit = lengths == [window.stop - window.start for window in windows] and windows[-1].stop == chunk.length
            return WindowedLatents(windows, pieces) if fit else None
        except Exception:  # of a damaged file numpy and zipfile raise nearly anything; what is lost is only time
            return None

    def sampled(self, chunk: Chunk, label: str, latents: WindowedLatents) -> WindowedLatents:
        """Keeps what was sampled until the clip is finished, should the run be stopped: it took the longest.

        Returns it as `remember` will, on the host: a device may round what follows otherwise.
        """
        self._begin()
        windows = [(window.start, window.stop) for window in latents.windows]
        pieces = [np.asarray(piece) for piece in latents.pieces]
        with atomic_write(self._latents_path(chunk, label)) as temporary, open(temporary, "wb") as file:
            np.savez(file, windows=np.array(windows), pieces=np.stack(pieces))
        return WindowedLatents(latents.windows, pieces)

    def write(
        self, chunk: Chunk, label: str, runs: Iterable[np.ndarray], placement: ResizePlan
    ) -> Iterator[np.ndarray]:
        """Writes frames, `1 n h w 3` at a time, of one image kind, without the repeated ones, and hands them on.

        They are of the network's size; the `placement` makes them what is written.
        """
        frame = 0
        for run in runs:
            for image in run[0, : chunk.num_frames - frame]:
                self.put(chunk, frame, label, placement.restore(image, label), self.format)
                frame += 1
            yield run

    def put(self, chunk: Chunk, frame: int, label: str, image: np.ndarray, format: ImageFormat) -> None:
        """Writes one image `h w 3`, in a format of the folder's kind."""
        self._begin()
        format.write(self._file(chunk, frame, label), image, label)

    def complete(self, chunk: Chunk) -> None:
        """Records that all files of the chunk are there."""
        self._save(chunks=sorted(self.done | {chunk.index}))
        self._forget(f".{chunk.index:04d}.*.latents.npz")

    def read(self, chunk: Chunk, frame: int, label: str) -> np.ndarray:
        """A frame that was written, as it is in memory."""
        return read_labeled(self._file(chunk, frame, label), label)

    def finish(self, frames: Iterable[np.ndarray] | None, fps: float, quality: float) -> None:
        """Writes the video of `frames`, if any, and records the clip as finished, with its frame rate."""
        if frames is not None:
            write_video(self.video, frames, fps, quality)
        self._forget(".*.latents.npz")  # of chunks after whose completion a run was killed at once
        self._save(finished=True, fps=fps)

    def _file(self, chunk: Chunk, frame: int, label: str) -> Path:
        return frame_path(self.path, chunk.index, frame, label, self.format.kind)

    def _begin(self) -> None:
        """Removes, when there is something to write, what a run of other settings left: it is not to be mixed in."""
        if self._continued:
            return
        self._continued = True
        if found := read_record(self._record_path):  # should this be stopped half-way, it is not taken for whole
            self._write_record(found | {"chunks": [], "finished": False})
        for path in self._images():
            path.unlink()
        self._forget(".*.latents.npz", ".*.part.*")
        self._save()

    def _forget(self, *patterns: str) -> None:
        """Removes hidden files."""
        for pattern in patterns:
            for path in self.path.glob(pattern):
                path.unlink()

    def _latents_path(self, chunk: Chunk, label: str) -> Path:
        return self.path / f".{chunk.index:04d}.{label}.latents.npz"

    def _save(self, **changes) -> None:
        self._record |= changes
        self._write_record(self._record)

    def _write_record(self, record: dict) -> None:
        with atomic_write(self._record_path) as temporary:
            temporary.write_text(json.dumps(record, indent=1))

    def _images(self) -> list[Path]:
        names = [f"*.{label}.{kind}" for label in self._record["labels"] for kind in KINDS]
        return [path for name in names for path in sorted(self.path.glob(name))]


def unique_frames(chunks: list[Chunk], overlap: int) -> Iterator[tuple[Chunk, int]]:
    """Every frame of the clip once: those that two chunks share are taken from the first."""
    for chunk in chunks:
        for i in range(overlap if chunk.index else 0, chunk.num_frames):
            yield chunk, i
