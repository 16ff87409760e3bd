"""Jobs: what `inverse`, `forward` and `relight` do to each clip. `execute.py` runs a job."""

import collections
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Float

from drender.config import Sampling
from drender.errors import OnFailure
from drender.files import map_collecting_errors
from drender.media.encodings import DEFAULT, Cameras, InputEncoding
from drender.media.gbuffers import GBufferClip, find_gbuffer_clips
from drender.media.images import read_hdr
from drender.media.video import find_clips
from drender.renderers.base import Renderer
from drender.renderers.forward import ForwardRenderer
from drender.renderers.inverse import InverseRenderer
from drender.sampling.base import ClipJob
from drender.sampling.inputs import BufferChunks, Chunk, ChunkedClip, RgbChunks, require_finished
from drender.sampling.lights import Lights, require_for_own_light
from drender.sampling.outputs import ClipOutput, RunConfig
from drender.sampling.report import Reader

Batches = Iterator[Float[np.ndarray, "1 n h w 3"]]  # the frames of a chunk
Latents = Float[np.ndarray, "1 f h w c"]


@dataclass(frozen=True)
class InverseJob(ClipJob):
    """RGB clips to G-buffers; `renderers` is an `InverseRenderer`."""

    title: ClassVar[str] = "Inverse rendering"

    run: RunConfig
    passes: Sequence[str]
    encoding: InputEncoding = DEFAULT

    def discover(self, on_failure: OnFailure) -> list[RgbChunks]:
        clips = find_clips(self.run.input, on_failure, assumed=self.encoding)
        self.run.check_separate({clip.name: clip.paths[0].parent for clip in clips})
        return map_collecting_errors(partial(RgbChunks.plan, config=self.run.chunks), clips, on_failure)

    def outputs(self, clip: RgbChunks) -> list[ClipOutput]:
        return [self.output(clip)]

    def output(self, clip: RgbChunks, below: str = "") -> ClipOutput:
        return ClipOutput(self.run, clip.name, "inverse", ("rgb", *self.passes), clip.files(), below)

    def run_chunk(self, inverse: InverseRenderer, clip: RgbChunks, chunk: Chunk, outputs, **control: Any) -> None:
        for _, batches in self.estimate(inverse, clip, chunk, outputs[0], **control):
            consume(batches)

    def estimate(
        self, inverse: InverseRenderer, clip: RgbChunks, chunk: Chunk, output: ClipOutput, **control: Any
    ) -> Iterator[tuple[str, Batches]]:
        """Write a chunk's RGB, and yield name and batches `1 n h w 3` of each G-buffer, written as they are taken."""
        sampling = inverse.sampling(self.run.sampling)
        resize = self.run.resize.place(clip.size)
        latents = {name: output.load_latents(chunk, name) for name in self.passes}
        known = {name for name, saved in latents.items() if saved is not None}
        if known != latents.keys():
            encoded = encode_clip(inverse, clip.batches(chunk, resize), sampling, np.random.default_rng(sampling.seed))
            noise = inverse.initial_noise(None, sampling, encoded.shape)
            for name, estimated in inverse.estimate(encoded, self.passes, sampling, noise, known=known, **control):
                latents[name] = output.save_latents(chunk, name, estimated)
        consume(output.write(chunk, "rgb", clip.batches(chunk, resize), resize))
        for name in self.passes:
            images = inverse.decode_buffer(name, latents[name], sampling)
            yield name, output.write(chunk, name, images, resize)


@dataclass(frozen=True)
class ForwardJob(ClipJob):
    """G-buffers to RGB clips under each environment; `renderers` is a `ForwardRenderer`."""

    title: ClassVar[str] = "Forward rendering"

    run: RunConfig
    lights: Lights
    conditions: Sequence[str]  # names of the G-buffers that are used
    drop: Sequence[str] = ()  # conditions, or "environment", that are not
    fixed_frame: int | None = None  # frame of the clip to render as often as a chunk has frames
    encoding: InputEncoding = DEFAULT  # of input files that do not state theirs
    cameras: Cameras = None  # camera-to-world rotations of the frames, for normals in world space

    def discover(self, on_failure: OnFailure) -> list[BufferChunks]:
        def plan(clip: GBufferClip) -> BufferChunks:
            chunked = BufferChunks.plan(clip, self.run.chunks, self.fixed_frame, self.cameras)
            self.lights.check(clip.name, chunked.num_frames)
            if self.lights.has_own:
                require_for_own_light(clip.labels, f"--environment clip: clip {clip.name!r} has")
            return chunked

        labels = (*self.conditions, "rgb")
        clips = find_gbuffer_clips(self.run.input, self.conditions, on_failure, labels, require_finished, self.encoding)
        return map_collecting_errors(plan, clips, on_failure)

    def outputs(self, clip: BufferChunks) -> list[ClipOutput]:
        light = [clip.kept_light] if self.lights.has_own and clip.kept_light else []
        return [self.output(clip, [*clip.files(self._labels(clip)), *light])]

    def output(self, clip: ChunkedClip, files: Iterable[Path], below: str = "") -> ClipOutput:
        return ClipOutput(self.run, clip.name, "forward", self.lights.labels, files, below)

    def run_chunk(self, forward: ForwardRenderer, clip: BufferChunks, chunk: Chunk, outputs, **control: Any) -> None:
        resize = self.run.resize.place(clip.size)
        encoded = self.encode(forward, ((name, clip.batches(chunk, name, resize)) for name in self._labels(clip)))
        if self.lights.has_own and clip.kept_light and outputs[0].load_light() is None:
            outputs[0].save_light(read_hdr(clip.kept_light, False))
        self.lights.keep_own(outputs[0], partial(clip.read, chunk), clip.clip.labels, chunk, clip.num_frames)
        self.render(forward, encoded, clip, chunk, outputs[0], **control)

    def encode(self, forward: ForwardRenderer, buffers: Iterable[tuple[str, Batches]]) -> dict[str, Latents]:
        """Return the latents of G-buffers, given name and batches `1 n h w 3` of each; all are read, used or not."""
        sampling = forward.sampling(self.run.sampling)
        rng = np.random.default_rng(sampling.seed)
        return {name: encode_clip(forward, batches, sampling, rng) for name, batches in buffers}

    def render(
        self, forward: ForwardRenderer, encoded: dict[str, Latents], clip: ChunkedClip, chunk: Chunk,
        output: ClipOutput, **control: Any,
    ) -> None:  # fmt: skip
        """Write a chunk under every environment."""
        sampling = forward.sampling(self.run.sampling)
        noise = forward.initial_noise(None, sampling, next(iter(encoded.values())).shape)
        conditions = {name: encoded[name] for name in self.conditions}
        lights, resize = self.lights_of([output]), self.run.resize.place(clip.size)
        for index, label in enumerate(lights.labels):
            latents = output.load_latents(chunk, label)
            if latents is None:
                unlit = "environment" in self.drop
                light = None if unlit else lights.latents(index, forward, chunk, clip.num_frames)
                latents = forward.render(conditions, light, sampling, noise, **control)
                latents = output.save_latents(chunk, label, latents)
            consume(output.write(chunk, label, forward.decode(latents, sampling), resize))

    def compile(self, forward: ForwardRenderer, clip: ChunkedClip, chunk: Chunk) -> None:
        """Compile what `render` runs under the first environment, without running it."""
        forward, sampling = forward.compiling(), forward.sampling(self.run.sampling)
        chunk = replace(chunk, length=min(chunk.length, sampling.frames + 1))  # all windows have the same length
        h, w = (side // forward.config.vae.downscale for side in self.run.resize.place(clip.size).outer)
        noise = np.zeros((1, chunk.length, h, w, forward.config.vae.latent_channels), np.float32)
        light = None if "environment" in self.drop else self.lights.latents(0, forward, chunk, clip.num_frames)
        forward.render({}, light, sampling, noise, progress=False)

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


class RelightJob(ClipJob):
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
        def check(clip: RgbChunks) -> RgbChunks:
            self.lights.check(clip.name, clip.num_frames)
            return clip

        return map_collecting_errors(check, self.inverse.discover(on_failure), on_failure)

    def lights_of(self, outputs: list[ClipOutput]) -> Lights:
        return self.forward.lights_of(outputs)

    def outputs(self, clip: RgbChunks) -> list[ClipOutput]:
        return [self.inverse.output(clip, "gbuffers"), self.forward.output(clip, clip.files(), "relit")]

    def run_chunk(self, renderers, clip: RgbChunks, chunk: Chunk, outputs, **control: Any) -> None:
        inverse, forward = renderers
        gbuffers, relit = outputs
        # A generator: each G-buffer is decoded and written while it is encoded again.
        estimated = self.inverse.estimate(inverse, clip, chunk, gbuffers, **control)
        with ThreadPoolExecutor(1) as pool:
            if jax.default_backend() == "cpu" and chunk.index == clip.chunks[0].index and not relit.has(chunk):
                # Half of the first command is compiling, half runs on one core. On GPUs XLA times kernels while it
                # compiles, which estimating would disturb. What fails here fails again, and is raised, in `render`.
                pool.submit(self.forward.compile, forward, clip, chunk)
            encoded = self.forward.encode(forward, estimated)
        self.forward.lights.keep_own(relit, partial(gbuffers.read, chunk), gbuffers.labels, chunk, clip.num_frames)
        self.forward.render(forward, encoded, clip, chunk, relit, **control)


def encode_clip(renderer: Renderer, batches: Batches, sampling: Sampling, rng: np.random.Generator) -> Latents:
    """Return the latents of a clip's batches of frames; `rng` draws the noise that is added to the frames."""
    return np.concatenate([renderer.encode(batch, sampling, rng) for batch in batches], axis=1)


consume = collections.deque(maxlen=0).extend  # run an iterator to its end, and keep nothing
