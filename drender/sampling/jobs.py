"""Jobs: what `inverse`, `forward` and `relight` do to each clip. `execute.py` runs a job and draws its previews."""

import abc
import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from drender.config import Sampling
from drender.errors import InputError
from drender.files import map_collecting_errors
from drender.media.encodings import DEFAULT, ImageFormat, InputEncoding
from drender.media.gbuffers import find_gbuffer_clips
from drender.media.images import read_hdr
from drender.media.resize import ResizeConfig
from drender.media.video import find_clips
from drender.renderers.base import Renderer
from drender.renderers.forward import GUIDANCE, ForwardRenderer
from drender.renderers.inverse import InverseRenderer
from drender.sampling.inputs import BufferChunks, Chunk, ChunkConfig, ChunkedClip, RgbChunks, require_finished
from drender.sampling.lights import Lights, require_for_own_light
from drender.sampling.outputs import PNG, ClipOutput
from drender.sampling.record import InputFiles
from drender.sampling.report import Reader

OnFailure = Callable[[InputError], None]


@dataclass(frozen=True)
class RunConfig:
    """Input, output and settings of a run.

    Attributes:
      input, output: paths.
      settings: JSON values that the results depend on, for the record and the HTML page.
      dependencies: files and folders that the results depend on besides a clip's own: checkpoints, environments, masks.
      chunks, resize: how clips are cut and resized.
      sampling: keyword arguments of the renderers.
      format: of the images.
      video: write `{clip}.viz.mp4` and the contact sheet.
      quality: of the video, 0 to 10.
      overwrite: replace results of other settings or inputs.
      html: write `index.html`, a page that shows all clips.
    """

    input: Path
    output: Path
    settings: dict
    dependencies: tuple[Path, ...] = ()
    chunks: ChunkConfig = field(default_factory=ChunkConfig)
    resize: ResizeConfig = field(default_factory=ResizeConfig)
    sampling: dict = field(default_factory=dict)
    format: ImageFormat = PNG
    video: bool = True
    quality: float = 7.0
    overwrite: bool = False
    html: bool = False

    def clip_output(
        self, clip: ChunkedClip, command: str, labels: Sequence[str], files: Iterable[Path], below: str = "", **settings
    ) -> ClipOutput:
        """Return the output of a clip made of `files`; raise InputError if it holds other results."""
        inputs = InputFiles((*files, *self.dependencies))
        settings = self.settings | settings
        return ClipOutput(self.output, clip.name, command, labels, settings, inputs, self.overwrite, self.format, below)


class Job(abc.ABC):
    """What a command does to each clip. Everything wrong with input and output is found before models are loaded."""

    title: ClassVar[str]  # of the HTML page
    run: RunConfig
    lights: Lights | None  # the environments of images with their labels

    @abc.abstractmethod
    def discover(self, on_failure: OnFailure) -> list[ChunkedClip]:
        """Return the clips; of several, those that cannot be read go to `on_failure`."""

    @abc.abstractmethod
    def outputs(self, clip: ChunkedClip) -> list[ClipOutput]:
        """Return the folders that the clip's results go to; raise InputError if one holds other results."""

    @abc.abstractmethod
    def run_chunk(
        self, renderers: Any, clip: ChunkedClip, chunk: Chunk, outputs: list[ClipOutput], progress: bool, stop: Event
    ) -> None:
        """Write all images of a chunk to the outputs. Chunks come in order; completed ones are left out.

        Args:
          progress: show a bar on a terminal.
          stop: setting this event from another thread aborts sampling with KeyboardInterrupt.
        """

    def lights_of(self, outputs: list[ClipOutput]) -> Lights | None:
        """Return the environments of a clip whose results are in `outputs`."""
        return self.lights

    def source_readers(self, clip: ChunkedClip) -> dict[str, Reader]:
        """Return readers of input images that the HTML page shows beside the results."""
        return {}


@dataclass(frozen=True)
class InverseJob(Job):
    """RGB clips to G-buffers; `renderers` is an `InverseRenderer`."""

    title: ClassVar[str] = "Inverse rendering"
    lights: ClassVar[None] = None

    run: RunConfig
    passes: Sequence[str]
    encoding: InputEncoding = DEFAULT

    def discover(self, on_failure: OnFailure) -> list[RgbChunks]:
        clips = find_clips(self.run.input, on_failure, assumed=self.encoding)
        check_separate(self.run, {clip.name: clip.paths[0].parent for clip in clips})
        return [RgbChunks.plan(clip, self.run.chunks) for clip in clips]

    def outputs(self, clip: RgbChunks) -> list[ClipOutput]:
        return [self.output(clip)]

    def output(self, clip: RgbChunks, below: str = "") -> ClipOutput:
        return self.run.clip_output(clip, "inverse", ("rgb", *self.passes), clip.files, below)

    def run_chunk(
        self,
        inverse: InverseRenderer,
        clip: RgbChunks,
        chunk: Chunk,
        outputs: list[ClipOutput],
        progress: bool,
        stop: Event,
    ) -> None:
        for _, batches in self.estimate(inverse, clip, chunk, outputs[0], progress, stop):
            consume(batches)

    def estimate(
        self, inverse: InverseRenderer, clip: RgbChunks, chunk: Chunk, output: ClipOutput, progress: bool, stop: Event
    ) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
        """Write a chunk's RGB and estimate its G-buffers.

        Yields:
          name and batches `1 n h w 3` of each G-buffer. A batch is written to disk when it is taken.
        """
        sampling = inverse.sampling(self.run.sampling)
        resize = self.run.resize.place(clip.size)
        latents = {name: output.load_latents(chunk, name) for name in self.passes}
        known = {name for name, saved in latents.items() if saved is not None}
        if known != latents.keys():
            encoded = encode(inverse, clip.batches(chunk, resize), sampling)
            noise = inverse.initial_noise(None, sampling, encoded.shape)
            for name, estimated in inverse.estimate(encoded, self.passes, sampling, noise, progress, known, stop):
                latents[name] = output.save_latents(chunk, name, estimated)
        consume(output.write(chunk, "rgb", clip.batches(chunk, resize), resize))
        for name in self.passes:
            images = inverse.decode_buffer(name, latents[name], sampling)
            yield name, output.write(chunk, name, images, resize)


@dataclass(frozen=True)
class ForwardJob(Job):
    """G-buffers to RGB clips under each environment; `renderers` is a `ForwardRenderer`.

    Attributes:
      lights: the environments.
      conditions: names of the G-buffers that are used.
      drop: conditions, or "environment", that are not.
      fixed_frame: frame of the clip to render as often as a chunk has frames.
      encoding: of input files that do not state theirs.
      cameras: camera-to-world rotations of the frames, for normals in world space.
    """

    title: ClassVar[str] = "Forward rendering"

    run: RunConfig
    lights: Lights
    conditions: Sequence[str]
    drop: Sequence[str] = ()
    fixed_frame: int | None = None
    encoding: InputEncoding = DEFAULT
    cameras: Float[np.ndarray, "f 3 3"] | None = None

    def discover(self, on_failure: OnFailure) -> list[BufferChunks]:
        def plan(clip):
            chunked = BufferChunks.plan(clip, self.run.chunks, self.fixed_frame, self.cameras)
            self.lights.check(clip.name, chunked.num_frames)
            if self.lights.has_own:
                require_for_own_light(clip.labels, f"--environment clip: clip {clip.name!r} has")
            return chunked

        labels = (*self.conditions, "rgb")
        clips = find_gbuffer_clips(self.run.input, self.conditions, on_failure, labels, require_finished, self.encoding)
        return map_collecting_errors(plan, [(clip,) for clip in clips], on_failure)

    def outputs(self, clip: BufferChunks) -> list[ClipOutput]:
        light = [clip.kept_light] if self.lights.has_own and clip.kept_light else []
        return [self.output(clip, [*clip.files(self._labels(clip)), *light])]

    def output(self, clip: ChunkedClip, files: Iterable[Path], below: str = "") -> ClipOutput:
        return self.run.clip_output(clip, "forward", self.lights.labels, files, below)

    def run_chunk(
        self,
        forward: ForwardRenderer,
        clip: BufferChunks,
        chunk: Chunk,
        outputs: list[ClipOutput],
        progress: bool,
        stop: Event,
    ) -> None:
        resize = self.run.resize.place(clip.size)
        buffers = ((name, clip.batches(chunk, name, resize)) for name in self._labels(clip))
        read = lambda label, i: clip.read(chunk, i, label)
        if self.lights.has_own and clip.kept_light and outputs[0].load_light() is None:
            outputs[0].save_light(read_hdr(clip.kept_light, False))
        self.render(forward, buffers, clip, chunk, outputs[0], progress, stop, read, clip.clip.labels)

    def render(
        self,
        forward: ForwardRenderer,
        buffers: Iterable[tuple[str, Iterator[np.ndarray]]],
        clip: ChunkedClip,
        chunk: Chunk,
        output: ClipOutput,
        progress: bool,
        stop: Event,
        read: Callable[[str, int], np.ndarray],
        labels: Sequence[str],
    ) -> None:
        """Write a chunk under every environment.

        Args:
          buffers: name and batches `1 n h w 3` of each buffer; all are read, used or not.
          read: once the buffers are read, return the image of a label and a frame of the chunk.
          labels: that `read` accepts.
        """
        sampling = forward.sampling(self.run.sampling, GUIDANCE)
        rng = np.random.default_rng(sampling.seed)
        encoded = {name: encode(forward, batches, sampling, rng) for name, batches in buffers}
        noise = forward.initial_noise(None, sampling, next(iter(encoded.values())).shape)
        conditions = {name: encoded[name] for name in self.conditions}
        if self.lights.has_own and output.load_light() is None:
            output.save_light(self.lights.estimate_own(read, labels, chunk, clip.num_frames).light)
        lights = self.lights_of([output])
        for index, label in enumerate(lights.labels):
            latents = output.load_latents(chunk, label)
            if latents is None:
                light = None
                if "environment" not in self.drop:
                    light = lights.encode(index, forward, chunk, clip.num_frames)
                latents = forward.render(conditions, light, sampling, noise, progress, stop)
                latents = output.save_latents(chunk, label, latents)
            images = forward.decode(latents, sampling)
            consume(output.write(chunk, label, images, self.run.resize.place(clip.size)))

    def lights_of(self, outputs: list[ClipOutput]) -> Lights:
        return self.lights.with_own(outputs[-1].load_light()) if self.lights.has_own else self.lights

    def source_readers(self, clip: BufferChunks) -> dict[str, Reader]:
        frames, resize = clip.frames, self.run.resize.place(clip.size)

        def read(name: str, i: int) -> np.ndarray:
            return resize.restore(resize.fit(clip.read(*frames[i], name)), name)

        return {name: partial(read, name) for name in ("rgb", *self.conditions) if name in clip.clip.labels}

    def _labels(self, clip: BufferChunks) -> Sequence[str]:
        """Return the buffers to read: if all are dropped, any one of them gives the size."""
        return self.conditions or clip.clip.labels[:1]


class RelightJob(Job):
    """RGB clips to G-buffers to relit clips; `renderers` is an inverse and a forward one.

    The forward renderer gets the estimated G-buffers as arrays, not from the files.
    """

    title = "Relighting"

    def __init__(
        self, run: RunConfig, passes: Sequence[str], lights: Lights, conditions: Sequence[str],
        drop: Sequence[str] = (), encoding: InputEncoding = DEFAULT,
    ):  # fmt: skip
        # As released, the option of guidance applies to the forward renderer only.
        unguided = replace(run, sampling=run.sampling | {"guidance": (1.0, 1.0)})
        self.run, self.lights = run, lights
        if lights.has_own:
            require_for_own_light(("rgb", *passes), "--environment clip: --passes has")
        self.inverse = InverseJob(unguided, passes, encoding)
        self.forward = ForwardJob(run, lights, conditions, drop)

    def discover(self, on_failure: OnFailure) -> list[RgbChunks]:
        def check(clip):
            self.lights.check(clip.name, clip.num_frames)
            return clip

        return map_collecting_errors(check, [(clip,) for clip in self.inverse.discover(on_failure)], on_failure)

    def lights_of(self, outputs: list[ClipOutput]) -> Lights:
        return self.forward.lights_of(outputs)

    def outputs(self, clip: RgbChunks) -> list[ClipOutput]:
        return [self.inverse.output(clip, "gbuffers"), self.forward.output(clip, clip.files, "relit")]

    def run_chunk(
        self,
        renderers: tuple[InverseRenderer, ForwardRenderer],
        clip: RgbChunks,
        chunk: Chunk,
        outputs: list[ClipOutput],
        progress: bool,
        stop: Event,
    ) -> None:
        inverse, forward = renderers
        gbuffers, relit = outputs
        # A generator: each G-buffer is decoded and written while `render` encodes it.
        buffers = self.inverse.estimate(inverse, clip, chunk, gbuffers, progress, stop)
        read = lambda label, i: gbuffers.read(chunk, i, label)
        self.forward.render(forward, buffers, clip, chunk, relit, progress, stop, read, gbuffers.labels)


def encode(
    renderer: Renderer, batches: Iterable[np.ndarray], sampling: Sampling, rng: np.random.Generator | None = None
) -> Float[np.ndarray, "1 f h w c"]:
    """Return the latents of batches of frames.

    Args:
      rng: generator of the noise that is added to the frames, shared by the G-buffers of a clip; None: a new one.
    """
    rng = rng or np.random.default_rng(sampling.seed)
    return np.concatenate([renderer.encode(batch, sampling, rng) for batch in batches], axis=1)


consume = collections.deque(maxlen=0).extend  # run an iterator to its end, and keep nothing


def check_separate(run: RunConfig, folders: dict[str, Path]) -> None:
    """Raise InputError if results would lie among the input's files, given the folder of each clip's files."""
    inside = run.input.is_dir() and run.output.resolve().is_relative_to(run.input.resolve())
    if inside or any((run.output / name).resolve() == folder.resolve() for name, folder in folders.items()):
        raise InputError(f"--output {run.output} would put results among the input's files; give another")
