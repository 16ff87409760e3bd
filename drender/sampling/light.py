"""The job of `light`: estimate the light of clips, as maps that `--environment` takes."""

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event

import numpy as np

from drender.errors import InputError, OnFailure
from drender.files import map_collecting_errors
from drender.lighting.environment import environment_maps
from drender.lighting.estimation import shade
from drender.locks import PREFIX, lock
from drender.media.encodings import Cameras, InputEncoding
from drender.media.gbuffers import find_gbuffer_clips
from drender.media.images import load_image, write_hdr, write_png
from drender.media.montage import contact_sheet
from drender.media.resize import resize
from drender.media.video import find_clips
from drender.renderers.inverse import InverseRenderer
from drender.sampling.base import Job
from drender.sampling.inputs import BufferChunks, ChunkedClip, RgbChunks, require_finished
from drender.sampling.lights import ESTIMATED_FROM, Lights, OwnLight, require_for_own_light
from drender.sampling.outputs import RunConfig

BALL_SIDE = 256  # pixels
SOURCE = "drender:source"  # attribute of a map: hash of its inputs and options


@dataclass(frozen=True)
class LightJob(Job):
    """Clips to a map of their light each, a mirror ball, and the frames beside a rendering under the map.

    `renderers` is an `InverseRenderer`, or None for G-buffers. A clip has one chunk: the frames that are used.
    """

    run: RunConfig
    lights: Lights  # the clip's own
    from_gbuffers: bool  # the input holds G-buffers; else RGB clips, whose G-buffers are estimated first
    file: Path | None  # of the map, for a single clip; None: `{output}/{clip}.exr`
    encoding: InputEncoding  # of input files that do not state theirs
    cameras: Cameras = None  # camera-to-world rotations of the frames, for normals in world space

    def discover(self, on_failure: OnFailure) -> list[ChunkedClip]:
        def check(clip: ChunkedClip) -> ChunkedClip:
            self.lights.check(clip.name, clip.num_frames)
            if isinstance(clip, BufferChunks):
                require_for_own_light(clip.clip.labels, f"clip {clip.name!r} has")
            return clip

        if self.from_gbuffers:
            labels = ("rgb", *ESTIMATED_FROM)
            plan = partial(BufferChunks.plan, config=self.run.chunks, cameras=self.cameras)
            found = find_gbuffer_clips(self.run.input, (), on_failure, labels, require_finished, self.encoding)
        else:
            plan = partial(RgbChunks.plan, config=self.run.chunks)
            found = find_clips(self.run.input, on_failure, assumed=self.encoding)
        clips = map_collecting_errors(plan, found, on_failure)
        if self.file and len(clips) > 1:
            raise InputError(f"--output {self.file} is one file, for {len(clips)} clips; give a folder")
        return map_collecting_errors(check, clips, on_failure)

    def path(self, clip: ChunkedClip) -> Path:
        """Return the path of a clip's map."""
        return self.file or self.run.output / f"{clip.name}.exr"

    def source(self, clip: ChunkedClip) -> str:
        """Return a hash of what a clip's light depends on."""
        parts = [self.run.settings, self.run.inputs(clip.files()).content]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def is_finished(self, clip: ChunkedClip) -> bool:
        path = self.path(clip)
        if self.run.overwrite or not path.exists():
            return False
        if load_image(path).attributes.get(SOURCE) != self.source(clip):
            problem = f"{path} was made with other options or of other inputs"
            raise InputError(f"{problem}; give another --output, or --overwrite")
        return True

    def locks(self, clip: ChunkedClip) -> list:
        path = self.path(clip)
        return [lock(path.with_name(f"{PREFIX}.{path.name}"), path)]

    def run_clip(self, renderers: InverseRenderer | None, clip: ChunkedClip, *, progress: bool, stop: Event) -> str:
        (chunk,) = clip.chunks
        if isinstance(clip, BufferChunks):
            read, labels = partial(clip.read, chunk), clip.clip.labels
        else:
            rgb = np.concatenate(list(clip.batches(chunk, self.run.resize.place(clip.size))), axis=1)
            passes = [name for name in ESTIMATED_FROM if name in renderers.config.domains]
            images = {"rgb": rgb} | renderers(rgb, passes, progress=progress, stop=stop, **self.run.sampling)
            read, labels = lambda i, label: images[label][0, i], list(images)
        own = self.lights.estimate_own(read, labels, chunk, clip.num_frames)
        return ", ".join(map(str, self._write(self.path(clip), own, self.source(clip))))

    def _write(self, path: Path, own: OwnLight, source: str) -> tuple[Path, Path, Path]:
        """Write the map, a mirror ball as the camera sees it, and the comparison, and return their paths."""
        ball_path, comparison_path = (path.with_suffix(f".{name}.png") for name in ("ball", "comparison"))
        ball = environment_maps(own.light, 1, (BALL_SIDE, BALL_SIDE), poses=own.poses[:1], projection="ball")
        write_png(ball_path, np.asarray(ball["env_ldr"][0]))
        frames = sorted({0, len(own.rgb) // 2, len(own.rgb) - 1})
        buffers = {name: images[frames] for name, images in own.buffers.items()}
        shaded = shade(own.light, buffers, self.lights.fov, own.poses[frames])
        rgb = [resize(frame, shaded.shape[1:3]) for frame in own.rgb[frames]]
        write_png(comparison_path, contact_sheet([list(pair) for pair in zip(rgb, shaded, strict=True)]))
        write_hdr(path, own.light, {SOURCE: source})  # last: it marks the clip as done
        return path, ball_path, comparison_path
