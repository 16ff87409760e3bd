"""Runs over clips on disk: inverse, forward and both, chunk by chunk; `execution.py` goes through the clips."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from drender.config import Sampling
from drender.errors import InputError
from drender.files import map_collecting_errors
from drender.media.encodings import DEFAULT, ImageFormat, InputEncoding
from drender.media.gbuffers import find_gbuffer_clips
from drender.media.images import write_png
from drender.media.montage import contact_sheet, side_by_side, tile
from drender.media.resize import ResizeConfig, ResizePlan
from drender.media.video import Clip, find_clips
from drender.renderers.base import Renderer
from drender.renderers.forward import GUIDANCE, ForwardRenderer
from drender.renderers.inverse import InverseRenderer
from drender.sampling.inputs import BufferChunks, Chunk, ChunkConfig, require_finished, rgb_runs
from drender.sampling.lights import Lights
from drender.sampling.outputs import PNG, ClipOutput, unique_frames
from drender.sampling.report import PageClip, Reader

Failed = Callable[[InputError], None]
Place = tuple[Chunk, int]  # of a frame: its chunk, and its number there
Tiles = Callable[[Chunk, int], list[np.ndarray]]  # the images that show a frame


@dataclass(frozen=True)
class Job:
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
      html: write `index.html`, a page to look at all clips?
    """

    title: ClassVar[str]  # of the page

    input: Path
    output: Path
    cut: ChunkConfig
    fit: ResizeConfig
    sampling: dict
    settings: dict
    format: ImageFormat = PNG
    video: bool = True
    quality: float = 7.0
    overwrite: bool = False
    html: bool = False

    def folder(self, name: str, command: str, labels: Iterable[str], below: str = "") -> ClipOutput:
        return ClipOutput(self.output / below, name, command, labels, self.settings, self.overwrite, self.format)

    def write(
        self, folder: ClipOutput, chunk: Chunk, label: str, runs: Iterable[np.ndarray], placement: ResizePlan
    ) -> Iterator[np.ndarray]:
        """Writes frames of one image kind, `1 n h w 3` at a time, and hands them on; says so at the end."""
        yield from folder.write(chunk, label, runs, placement)
        print(f"{folder.name}: {label}, frames {chunk.start} to {chunk.stop - 1}, written", flush=True)

    def sheet(self, name: str) -> Path:
        """Where the contact sheet of a clip is."""
        return self.output / f"{name}.contact.png"

    def draw_sheet(self, name: str, shown: Sequence[Place], tiles: Tiles) -> None:
        """Writes the contact sheet: a row each of the first, the middle and the last frame."""
        if self.video:
            rows = [tiles(*shown[i]) for i in sorted({0, len(shown) // 2, len(shown) - 1})]
            write_png(self.sheet(name), contact_sheet(rows))

    def finish(self, folder: ClipOutput, shown: Sequence[Place], tiles: Tiles, fps: float) -> None:
        """Writes the video and records the clip as finished."""
        frames = (side_by_side([tile(image) for image in tiles(*place)]) for place in shown)
        folder.finish(frames if self.video else None, fps, self.quality)


@dataclass(frozen=True)
class BuffersJob(Job):
    """A run that estimates G-buffers of RGB clips and writes them beside the RGB."""

    passes: Sequence[str] = ()
    unguided: ClassVar[bool] = False

    @property
    def labels(self) -> tuple[str, ...]:
        return ("rgb", *self.passes)

    def estimate(
        self,
        inverse: InverseRenderer,
        clip: Clip,
        chunk: Chunk,
        folder: ClipOutput,
        placement: ResizePlan,
        progress: bool,
    ) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
        """Estimates a chunk's G-buffers: name -> its frames, `1 n h w 3` at a time, written as they are taken.

        The RGB is written beside them.
        """
        # The option of guidance is the forward renderer's; the inverse one is sampled without, as released.
        options = self.sampling | ({"guidance": (1.0, 1.0)} if self.unguided else {})
        sampling = inverse.sampling(options)
        rgb = lambda: rgb_runs(clip, chunk, placement)
        remembered = {name: folder.remember(chunk, name) for name in self.passes}
        known = {name for name, latents in remembered.items() if latents is not None}
        if known != remembered.keys():
            latents = encoded(inverse, rgb(), sampling)
            noise = inverse.initial_noise(None, sampling.seed, latents.shape)
            for name, buffer in inverse.estimate(latents, self.passes, sampling, noise, progress, known):
                remembered[name] = folder.sampled(chunk, name, buffer)
        consume(self.write(folder, chunk, "rgb", rgb(), placement))
        for name, buffer in remembered.items():
            frames = inverse.decode_buffer(name, buffer, sampling)
            yield name, self.write(folder, chunk, name, frames, placement)

    def buffer_tiles(self, folder: ClipOutput) -> Tiles:
        return lambda chunk, frame: [folder.read(chunk, frame, label) for label in self.labels]


@dataclass(frozen=True)
class InverseJob(BuffersJob):
    """RGB clips to G-buffers; `renderers` is one `InverseRenderer`."""

    title: ClassVar[str] = "Inverse rendering"

    def clips(self, failed: Failed) -> list[Clip]:
        return _rgb_clips(self.input, self.output, failed)

    def folders(self, clip: Clip) -> list[ClipOutput]:
        return [self.folder(clip.name, "inverse", self.labels)]

    def process(self, inverse: InverseRenderer, clip: Clip, progress: bool) -> Iterator[Chunk]:
        (folder,) = self.folders(clip)
        chunks, placement = self.cut.plan(clip.num_frames), self.fit.place(clip.size)
        for chunk in chunks:
            if chunk.index in folder.done:
                continue
            for _, frames in self.estimate(inverse, clip, chunk, folder, placement, progress):
                consume(frames)
            folder.complete(chunk)
            yield chunk
        shown, tiles = list(unique_frames(chunks, self.cut.overlap)), self.buffer_tiles(folder)
        self.draw_sheet(clip.name, shown, tiles)
        self.finish(folder, shown, tiles, clip.fps)

    def page_clip(self, clip: Clip) -> PageClip:
        shown = list(unique_frames(self.cut.plan(clip.num_frames), self.cut.overlap))
        (folder,) = self.folders(clip)
        return PageClip(clip.name, clip.fps, len(shown), readers(folder, shown, self.labels))


@dataclass(frozen=True)
class LitJob(Job):
    """A run that renders G-buffers under each environment.

    Attributes:
      conditions: the G-buffers that are used; the others are `drop`.
    """

    title: ClassVar[str] = "Forward rendering"

    lights: Lights | None = None
    conditions: Sequence[str] = ()
    drop: Sequence[str] = ()

    def render(
        self,
        forward: ForwardRenderer,
        buffers: Iterable[tuple[str, Iterator[np.ndarray]]],
        chunk: Chunk,
        total: int,
        folder: ClipOutput,
        placement: ResizePlan,
        progress: bool,
    ) -> None:
        """Writes a chunk of a clip of `total` frames under every environment.

        buffers: name -> its frames, `1 n h w 3` at a time; all are taken, whether used or not.
        """
        sampling = forward.sampling(self.sampling, GUIDANCE)
        rng = np.random.default_rng(sampling.seed)
        latents = {name: encoded(forward, runs, sampling, rng) for name, runs in buffers}
        noise = forward.initial_noise(None, sampling.seed, next(iter(latents.values())).shape)
        used = {name: latents[name] for name in self.conditions}
        for index, label in enumerate(self.lights.labels):
            result = folder.remember(chunk, label)
            if result is None:
                light = None
                if "environment" not in self.drop:
                    light = self.lights.encode(index, forward, chunk, total)
                result = forward.render(used, light, sampling, noise, progress)
                result = folder.sampled(chunk, label, result)
            consume(self.write(folder, chunk, label, forward.decode(result, sampling), placement))
        folder.complete(chunk)


@dataclass(frozen=True)
class ForwardJob(LitJob):
    """G-buffers to RGB clips under each environment; `renderers` is one `ForwardRenderer`.

    Attributes:
      fixed_frame: a frame of the clip to repeat as often as a chunk has frames.
      assumed: what the G-buffers hold, if their files do not say it.
    """

    fixed_frame: int | None = None
    assumed: InputEncoding = DEFAULT

    def clips(self, failed: Failed) -> list[BufferChunks]:
        def plan(clip):
            chunks = BufferChunks.plan(clip, self.cut, self.fixed_frame)
            self.lights.check(clip.name, chunks.chunks[-1].stop)
            return chunks

        labels = (*self.conditions, "rgb")
        found = find_gbuffer_clips(self.input, self.conditions, failed, labels, require_finished, self.assumed)
        return map_collecting_errors(plan, [(clip,) for clip in found], failed)

    def folders(self, clip: BufferChunks) -> list[ClipOutput]:
        return [self.folder(clip.name, "forward", self.lights.labels)]

    def process(self, forward: ForwardRenderer, clip: BufferChunks, progress: bool) -> Iterator[Chunk]:
        (folder,) = self.folders(clip)
        total, placement = clip.chunks[-1].stop, self.fit.place(clip.size)
        for chunk in clip.chunks:
            if chunk.index in folder.done:
                continue
            names = self.conditions or clip.clip.labels[:1]  # one, even if dropped, tells the size
            buffers = ((name, clip.runs(chunk, name, placement)) for name in names)
            self.render(forward, buffers, chunk, total, folder, placement, progress)
            yield chunk
        shown = list(unique_frames(clip.chunks, clip.overlap))
        tiles = lambda chunk, frame: self.lights.tiles(folder, chunk, frame, total)
        self.draw_sheet(clip.name, shown, tiles)
        self.finish(folder, shown, tiles, clip.fps)

    def page_clip(self, clip: BufferChunks) -> PageClip:
        shown = list(unique_frames(clip.chunks, clip.overlap))
        (folder,), total = self.folders(clip), clip.chunks[-1].stop
        given = [name for name in ("rgb", *self.conditions) if name in clip.clip.labels]
        placement = self.fit.place(clip.size)
        read = lambda name, i: placement.restore(placement.fit(clip.read(*shown[i], name)), name)
        frames = {name: partial(read, name) for name in given} | readers(folder, shown, self.lights.labels)
        return PageClip(clip.name, clip.fps, len(shown), frames, self.lights.on_page(total))


@dataclass(frozen=True)
class RelightJob(BuffersJob, LitJob):
    """RGB clips to G-buffers and relit clips; float arrays, not files, go from one renderer to the other."""

    title: ClassVar[str] = "Relighting"
    unguided: ClassVar[bool] = True

    def clips(self, failed: Failed) -> list[Clip]:
        def check(clip):
            self.lights.check(clip.name, self.cut.plan(clip.num_frames)[-1].stop)
            return clip

        return map_collecting_errors(check, [(clip,) for clip in _rgb_clips(self.input, self.output, failed)], failed)

    def folders(self, clip: Clip) -> list[ClipOutput]:
        gbuffers = self.folder(clip.name, "inverse", self.labels, "gbuffers")
        return [gbuffers, self.folder(clip.name, "forward", self.lights.labels, "relit")]

    def process(
        self, renderers: tuple[InverseRenderer, ForwardRenderer], clip: Clip, progress: bool
    ) -> Iterator[Chunk]:
        inverse, forward = renderers
        gbuffers, relit = self.folders(clip)
        chunks = self.cut.plan(clip.num_frames)
        total, placement = chunks[-1].stop, self.fit.place(clip.size)
        for chunk in chunks:
            if chunk.index in gbuffers.done & relit.done:
                continue
            buffers = self.estimate(inverse, clip, chunk, gbuffers, placement, progress)
            self.render(forward, buffers, chunk, total, relit, placement, progress)
            gbuffers.complete(chunk)
            yield chunk
        shown, buffers = list(unique_frames(chunks, self.cut.overlap)), self.buffer_tiles(gbuffers)
        lit = lambda chunk, frame: self.lights.tiles(relit, chunk, frame, total)
        self.draw_sheet(clip.name, shown, lambda *place: buffers(*place) + lit(*place))
        self.finish(gbuffers, shown, buffers, clip.fps)
        self.finish(relit, shown, lambda *place: [gbuffers.read(*place, "rgb"), *lit(*place)], clip.fps)

    def page_clip(self, clip: Clip) -> PageClip:
        chunks = self.cut.plan(clip.num_frames)
        shown = list(unique_frames(chunks, self.cut.overlap))
        gbuffers, relit = self.folders(clip)
        frames = readers(gbuffers, shown, self.labels) | readers(relit, shown, self.lights.labels)
        return PageClip(clip.name, clip.fps, len(shown), frames, self.lights.on_page(chunks[-1].stop))


def encoded(
    renderer: Renderer, runs: Iterable[np.ndarray], sampling: Sampling, rng: np.random.Generator | None = None
) -> Float[np.ndarray, "1 f h w c"]:
    """The latents of frames that come `1 n h w 3` at a time; rng: of noise that is added, where it goes on."""
    rng = rng or np.random.default_rng(sampling.seed)
    return np.concatenate([renderer.encode(run, sampling, rng) for run in runs], axis=1)


consume = collections.deque(maxlen=0).extend


def readers(folder: ClipOutput, shown: Sequence[Place], labels: Iterable[str]) -> dict[str, Reader]:
    """The frames of a finished clip for its page."""
    read = lambda label, i: folder.read(*shown[i], label)
    return {label: partial(read, label) for label in labels}


def _rgb_clips(source: Path, output: Path, failed: Failed) -> list[Clip]:
    """The clips at `source`; InputError if results in `output` would count as input when the run is started again."""
    clips = find_clips(source, failed)
    keep_apart(source, output, {clip.name: clip.paths[0].parent for clip in clips})
    return clips


def keep_apart(source: Path, output: Path, folders: dict[str, Path]) -> None:
    """InputError if the results of clips, whose files lie in these folders, would lie among the input's files."""
    inside = source.is_dir() and output.resolve().is_relative_to(source.resolve())
    if inside or any((output / name).resolve() == folder.resolve() for name, folder in folders.items()):
        raise InputError(f"--output {output} would put results among the input's files; give another")
