"""Runs over clips on disk: inverse, forward and both, chunk by chunk, resumed where a run was stopped."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .encodings import USUAL, Assumed, Format
from .errors import InputError
from .files import readable
from .fitting import Fit, Placement
from .gbuffers import find_gbuffer_clips
from .images import write_png
from .media import Clip, find_clips
from .renderers import ForwardRenderer, InverseRenderer
from .results import PNG, ClipFolder, contact_sheet, shown_frames, side_by_side, tile
from .sources import BufferChunks, Cut, Lights, rgb_chunks
from .windows import Chunk

Failed = Callable[[InputError], None]
Place = tuple[Chunk, int]  # of a frame: its chunk, and its number there
Tiles = Callable[[Chunk, int], list[np.ndarray]]  # the images that show a frame


@dataclass(frozen=True)
class Run:
    """What all runs share. `clips` and `folders` find what is wrong with input and output before models are loaded.

    Attributes:
      input, output: paths.
      cut, fit: how clips are cut and resized.
      sampling: keyword arguments of the renderers.
      settings: what the results depend on, for the record.
      format: of the images.
      video: write `{clip}.viz.mp4` and the contact sheet?
      quality: of the video, 0 to 10.
      overwrite: replace results of other settings?
    """

    input: Path
    output: Path
    cut: Cut
    fit: Fit
    sampling: dict
    settings: dict
    format: Format = PNG
    video: bool = True
    quality: float = 7.0
    overwrite: bool = False

    def folder(self, name: str, command: str, labels: Iterable[str], below: str = "") -> ClipFolder:
        return ClipFolder(self.output / below, name, command, labels, self.settings, self.overwrite, self.format)

    def sheet(self, name: str) -> Path:
        """Where the contact sheet of a clip is."""
        return self.output / f"{name}.contact.png"

    def draw_sheet(self, name: str, shown: Sequence[Place], tiles: Tiles) -> None:
        """Writes the contact sheet: a row each of the first, the middle and the last frame."""
        if self.video:
            rows = [tiles(*shown[i]) for i in sorted({0, len(shown) // 2, len(shown) - 1})]
            write_png(self.sheet(name), contact_sheet(rows))

    def finish(self, folder: ClipFolder, shown: Sequence[Place], tiles: Tiles, fps: float) -> None:
        """Writes the video and records the clip as finished."""
        frames = (side_by_side([tile(image) for image in tiles(*place)]) for place in shown)
        folder.finish(frames if self.video else None, fps, self.quality)


@dataclass(frozen=True)
class BuffersRun(Run):
    """A run that estimates G-buffers of RGB clips and writes them beside the RGB."""

    passes: Sequence[str] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        return ("rgb", *self.passes)

    def write_buffers(
        self, folder: ClipFolder, chunk: Chunk, rgb: np.ndarray, buffers: dict[str, np.ndarray], placement: Placement
    ) -> None:
        folder.write(chunk, {name: frames[0] for name, frames in ({"rgb": rgb} | buffers).items()}, placement)

    def buffer_tiles(self, folder: ClipFolder) -> Tiles:
        return lambda chunk, frame: [folder.read(chunk, frame, label) for label in self.labels]


@dataclass(frozen=True)
class InverseRun(BuffersRun):
    """RGB clips to G-buffers; `renderers` is one `InverseRenderer`."""

    def clips(self, failed: Failed) -> list[Clip]:
        return _rgb_clips(self.input, self.output, failed)

    def folders(self, clip: Clip) -> list[ClipFolder]:
        return [self.folder(clip.name, "inverse", self.labels)]

    def process(self, inverse: InverseRenderer, clip: Clip, progress: bool) -> Iterator[Chunk]:
        (folder,) = self.folders(clip)
        chunks = self.cut.plan(clip.num_frames)
        placement = self.fit.place(clip.size)
        for chunk, rgb in rgb_chunks(clip, chunks, placement, folder.done):
            buffers = inverse(rgb, self.passes, progress=progress, **self.sampling)
            self.write_buffers(folder, chunk, rgb, buffers, placement)
            yield chunk
        shown, tiles = list(shown_frames(chunks, self.cut.overlap)), self.buffer_tiles(folder)
        self.draw_sheet(clip.name, shown, tiles)
        self.finish(folder, shown, tiles, clip.fps)


@dataclass(frozen=True)
class ForwardRun(Run):
    """G-buffers to RGB clips under each environment; `renderers` is one `ForwardRenderer`.

    Attributes:
      conditions: the G-buffers that are used; `drop` names those that are not.
      fixed_frame: a frame of the clip to repeat as often as a chunk has frames.
      assumed: what the G-buffers hold, if their files do not say it.
    """

    lights: Lights | None = None
    conditions: Sequence[str] = ()
    drop: Sequence[str] = ()
    fixed_frame: int | None = None
    assumed: Assumed = USUAL

    def clips(self, failed: Failed) -> list[BufferChunks]:
        def plan(clip):
            chunks = BufferChunks.plan(clip, self.cut, self.fixed_frame)
            self.lights.check(clip.name, chunks.chunks[-1].stop)
            return chunks

        found = find_gbuffer_clips(self.input, self.conditions, failed, self.conditions, self.assumed)
        return readable(plan, [(clip,) for clip in found], failed)

    def folders(self, clip: BufferChunks) -> list[ClipFolder]:
        return [self.folder(clip.name, "forward", self.lights.labels)]

    def process(self, forward: ForwardRenderer, clip: BufferChunks, progress: bool) -> Iterator[Chunk]:
        (folder,) = self.folders(clip)
        names = self.conditions or clip.clip.labels[:1]  # one, even if dropped, tells the size
        total, placement = clip.chunks[-1].stop, self.fit.place(clip.size)
        for chunk in clip.chunks:
            if chunk.index in folder.done:
                continue
            buffers = {name: clip.read(chunk, name, placement)[None] for name in names}
            frames = self.lights.relight(
                forward, buffers, chunk, total, drop=self.drop, progress=progress, **self.sampling
            )
            folder.write(chunk, frames, placement)
            yield chunk
        shown = list(shown_frames(clip.chunks, clip.overlap))
        tiles = lambda chunk, frame: self.lights.tiles(folder, chunk, frame, total)
        self.draw_sheet(clip.name, shown, tiles)
        self.finish(folder, shown, tiles, clip.fps)


@dataclass(frozen=True)
class RelightRun(BuffersRun):
    """RGB clips to G-buffers and relit clips; float arrays, not files, go from one renderer to the other."""

    lights: Lights | None = None
    drop: Sequence[str] = ()

    def clips(self, failed: Failed) -> list[Clip]:
        def check(clip):
            self.lights.check(clip.name, self.cut.plan(clip.num_frames)[-1].stop)
            return clip

        return readable(check, [(clip,) for clip in _rgb_clips(self.input, self.output, failed)], failed)

    def folders(self, clip: Clip) -> list[ClipFolder]:
        gbuffers = self.folder(clip.name, "inverse", self.labels, "gbuffers")
        return [gbuffers, self.folder(clip.name, "forward", self.lights.labels, "relit")]

    def process(
        self, renderers: tuple[InverseRenderer, ForwardRenderer], clip: Clip, progress: bool
    ) -> Iterator[Chunk]:
        inverse, forward = renderers
        gbuffers, relit = self.folders(clip)
        chunks = self.cut.plan(clip.num_frames)
        total, placement = chunks[-1].stop, self.fit.place(clip.size)
        # The options of guidance are the forward renderer's; the inverse one is sampled without, as released.
        unguided = self.sampling | {"guidance": (1.0, 1.0)}
        for chunk, rgb in rgb_chunks(clip, chunks, placement, gbuffers.done & relit.done):
            buffers = inverse(rgb, self.passes, progress=progress, **unguided)
            self.write_buffers(gbuffers, chunk, rgb, buffers, placement)
            frames = self.lights.relight(
                forward, buffers, chunk, total, drop=self.drop, progress=progress, **self.sampling
            )
            relit.write(chunk, frames, placement)
            yield chunk
        shown, buffers = list(shown_frames(chunks, self.cut.overlap)), self.buffer_tiles(gbuffers)
        lit = lambda chunk, frame: self.lights.tiles(relit, chunk, frame, total)
        self.draw_sheet(clip.name, shown, lambda *place: buffers(*place) + lit(*place))
        self.finish(gbuffers, shown, buffers, clip.fps)
        self.finish(relit, shown, lambda *place: [gbuffers.read(*place, "rgb"), *lit(*place)], clip.fps)


def execute(run: Run, load: Callable[[jax.Device], Any], devices: list[jax.Device]) -> None:
    """Processes every clip that is not finished, on as many devices at a time as there are.

    Of several clips, one with an InputError does not stop the others. When interrupted, several devices first complete
    the chunks that they are at.

    Args:
      load: gives the renderers on a device; called once per device that is needed.
    Raises:
      InputError: of the only clip, or of what all share; of several clips, one that counts those that failed.
    """
    failures = []

    def failed(error: InputError) -> None:
        failures.append(error)
        print(f"failed: {error}", file=sys.stderr, flush=True)

    clips = []
    found = run.clips(failed)
    for clip in found:
        if all(folder.finished and (folder.video.exists() or not run.video) for folder in run.folders(clip)):
            print(f"{clip.name}: finished before, skipped", flush=True)
        else:
            clips.append(clip)
    total = len(found) + len(failures)
    queue, stopped = iter(clips), threading.Event()
    devices = devices[: len(clips)]

    def work(device: jax.Device) -> None:
        renderers = load(device)
        # `next` on a list's iterator is atomic: each clip goes to one device.
        while not stopped.is_set() and (clip := next(queue, None)) is not None:
            try:
                _process(run, renderers, clip, len(devices) == 1, stopped)
            except InputError as error:
                if total == 1:
                    raise
                failed(InputError(f"{clip.name}: {error}"))

    if clips:
        _writable(run.output)
    if len(devices) == 1:
        work(devices[0])  # in this thread, which an interruption stops at once
    elif devices:
        with ThreadPoolExecutor(len(devices)) as pool:
            try:
                for working in [pool.submit(work, device) for device in devices]:
                    working.result()
            finally:
                stopped.set()
    if failures:
        raise InputError(f"{len(failures)} of {total} clips failed, as said above; mend them and run again")


def _process(run: Run, renderers: Any, clip, progress: bool, stopped: threading.Event) -> None:
    began = time.perf_counter()
    for chunk in run.process(renderers, clip, progress):
        print(f"{clip.name}: frames {chunk.start} to {chunk.stop - 1} written", flush=True)
        if stopped.is_set():
            return
    where = ", ".join(str(folder.path) for folder in run.folders(clip))
    where += f"; {run.sheet(clip.name)} shows some of it" if run.video else ""
    print(f"{clip.name}: done in {time.perf_counter() - began:.1f} s, see {where}", flush=True)


def _rgb_clips(source: Path, output: Path, failed: Failed) -> list[Clip]:
    """The clips at `source`; InputError if results in `output` would count as input when the run is started again."""
    clips = find_clips(source, failed)
    inside = source.is_dir() and output.resolve().is_relative_to(source.resolve())
    if inside or any((output / clip.name).resolve() == clip.paths[0].resolve().parent for clip in clips):
        raise InputError(f"--output {output} would put results among the input's files; give another")
    return clips


def _writable(output: Path) -> None:
    """Makes the folder if need be; InputError if nothing can be written there."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {output} cannot be made: {error.strerror}; give another") from error
    if not os.access(output, os.W_OK):
        raise InputError(f"--output {output} cannot be written to; give another")
