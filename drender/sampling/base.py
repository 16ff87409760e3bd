"""What jobs share: clips that are run in chunks, with records, previews and a page."""

import abc
import contextlib
from collections.abc import Iterator
from threading import Event
from typing import Any, ClassVar

import numpy as np
from tqdm import tqdm

from drender.errors import OnFailure, say
from drender.files import remove_partial
from drender.locks import lock_folder
from drender.media.images import write_png
from drender.media.montage import contact_sheet, side_by_side, tile
from drender.sampling.inputs import Chunk, ChunkedClip, Frame
from drender.sampling.lights import Lights
from drender.sampling.outputs import ClipOutput, RunConfig
from drender.sampling.report import PageClip, Reader, write_page


class Job(abc.ABC):
    """What a command does to each clip. Everything wrong with input and output is found before models are loaded."""

    run: RunConfig

    @abc.abstractmethod
    def discover(self, on_failure: OnFailure) -> list[ChunkedClip]:
        """Return the clips; of several, those that cannot be read go to `on_failure`."""

    @abc.abstractmethod
    def is_finished(self, clip: ChunkedClip) -> bool:
        """Return whether the clip's results are complete; raise InputError if others are in their place."""

    @abc.abstractmethod
    def locks(self, clip: ChunkedClip) -> list[contextlib.AbstractContextManager]:
        """Return locks on all that is written for the clip."""

    def hold(self, clips: list[ChunkedClip], process: tuple[int, int]) -> contextlib.AbstractContextManager:
        """Return a lock on what the clips of a run share; on leaving, write the page of all that are finished."""
        return contextlib.nullcontext()

    @abc.abstractmethod
    def run_clip(self, renderers: Any, clip: ChunkedClip, *, progress: bool, stop: Event) -> str:
        """Write the results of the clip that are not complete, and return where they are.

        `progress` shows a bar on a terminal. Setting `stop` from another thread aborts sampling with KeyboardInterrupt.
        """


class ClipJob(Job):
    """A job that writes folders of images, a chunk of the clip at a time, with a video and a contact sheet of them."""

    title: ClassVar[str]  # of the HTML page

    @abc.abstractmethod
    def outputs(self, clip: ChunkedClip) -> list[ClipOutput]:
        """Return the folders that the clip's results go to; raise InputError if one holds other results."""

    @abc.abstractmethod
    def run_chunk(
        self, renderers: Any, clip: ChunkedClip, chunk: Chunk, outputs: list[ClipOutput], **control: Any
    ) -> None:
        """Write all images of a chunk; chunks come in order. `control` is `progress` and `stop` of `run_clip`."""

    def lights_of(self, outputs: list[ClipOutput]) -> Lights | None:
        """Return the environments of a clip whose results are in `outputs`; None if it is not relit."""
        return None

    def source_readers(self, clip: ChunkedClip) -> dict[str, Reader]:
        """Return readers of input images that the HTML page shows beside the results."""
        return {}

    def is_finished(self, clip: ChunkedClip) -> bool:
        quality = self.run.quality if self.run.video else None
        return all(output.is_finished(clip.chunks, quality) for output in self.outputs(clip))

    def locks(self, clip: ChunkedClip) -> list[contextlib.AbstractContextManager]:
        return [lock_folder(output.path) for output in self.outputs(clip)]

    @contextlib.contextmanager
    def hold(self, clips: list[ChunkedClip], process: tuple[int, int]) -> Iterator[None]:
        with lock_folder(self.run.output, process):
            if process[1] == 1:
                remove_partial(self.run.output)
            yield
            if self.run.html:
                self._write_page(clips)

    def run_clip(self, renderers: Any, clip: ChunkedClip, *, progress: bool, stop: Event) -> str:
        outputs = self.outputs(clip)
        restart = self.run.overwrite and all(output.is_finished(clip.chunks) for output in outputs)
        for output in outputs:
            output.remove_partial()
            if restart:
                output.restart()
        for chunk in clip.chunks:
            if all(output.has(chunk) for output in outputs):
                continue
            self.run_chunk(renderers, clip, chunk, outputs, progress=progress, stop=stop)
            for output in outputs:
                output.complete(chunk)
            if stop.is_set():
                raise KeyboardInterrupt
        self._finish(clip, outputs)
        sheet = f"; {outputs[0].sheet} shows three frames" if self.run.video else ""
        return ", ".join(str(output.path) for output in outputs) + sheet

    # --- previews ---

    def _finish(self, clip: ChunkedClip, outputs: list[ClipOutput]) -> None:
        """Draw the contact sheet (the first, middle and last frame) and the videos, and record the clip as finished."""
        frames, lights = clip.frames, self.lights_of(outputs)

        def preview(output: ClipOutput, frame: Frame) -> list[np.ndarray]:
            """Return an output's images of a frame, relit ones with their environment in the corner."""
            chunk, i = frame
            images = {label: output.read(chunk, i, label) for label in output.labels}
            for index, label in enumerate(lights.labels if lights else ()):
                if label in images:
                    images[label] = lights.inset(images[label], index, chunk.start + i, clip.num_frames)
            return list(images.values())

        def picture(output: ClipOutput, frame: Frame) -> np.ndarray:
            """Return an output's images side by side; the second output's follow the RGB of the first."""
            rgb = [] if output is outputs[0] else [outputs[0].read(*frame, "rgb")]
            return side_by_side([tile(image) for image in rgb + preview(output, frame)])

        if self.run.video:
            rows = [frames[i] for i in sorted({0, len(frames) // 2, len(frames) - 1})]
            images = [[image for output in outputs for image in preview(output, frame)] for frame in rows]
            write_png(outputs[0].sheet, contact_sheet(images))
        for output in outputs:
            video = (picture(output, frame) for frame in frames) if self.run.video else None
            output.finish(video, clip.fps, self.run.quality)

    def _write_page(self, clips: list[ChunkedClip]) -> None:
        """Write the HTML page of all finished clips, of this run or an earlier one."""
        shown = []
        for clip in clips:
            outputs = self.outputs(clip)
            if all(output.is_finished(clip.chunks) for output in outputs):
                readers = self.source_readers(clip)
                for output in outputs:
                    readers |= output.readers(clip.frames)
                lights = self.lights_of(outputs)
                thumbnails = lights.on_page(clip.num_frames) if lights else {}
                shown.append(PageClip(clip.name, clip.fps, len(clip.frames), readers, thumbnails))
        if shown:
            page = self.run.output / "index.html"
            write_page(page, self.title, shown, self.run.settings)
            say(f"{page}: a page to look at the results, {tqdm.format_sizeof(page.stat().st_size, 'B')}")
