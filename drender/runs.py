"""Runs over clips on disk: inverse, forward and both, chunk by chunk, resumed where a run was stopped."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .config import CONDITIONS
from .environment import camera_rotations, check_projection, light_angles, load_environment, project
from .errors import InputError
from .gbuffers import GBufferClip, find_gbuffer_clips
from .media import DEFAULT_FPS, Clip, find_clips, fit_cover
from .renderers import ForwardRenderer, InverseRenderer
from .results import ClipFolder, inset, read_record, shown_frames, side_by_side
from .windows import Chunk, plan_chunks


@dataclass(frozen=True)
class Cut:
    """How clips are cut and resized: frames per chunk, shared frames, chunk mode, size (height, width) to cover."""

    frames: int = 24
    overlap: int = 6
    mode: str = "all"
    size: tuple[int, int] | None = (512, 512)

    def __post_init__(self):
        plan_chunks(self.frames + 1, self.frames, self.overlap, self.mode)  # for its errors

    def plan(self, num_frames: int) -> list[Chunk]:
        return plan_chunks(num_frames, self.frames, self.overlap, self.mode)


# --- what is read ----------------------------------------------------------------------------------------------------


def fill(frames: np.ndarray, length: int) -> np.ndarray:
    """Repeats the last frame until there are `length`."""
    return np.concatenate([frames, np.repeat(frames[-1:], length - len(frames), axis=0)])


def rgb_chunks(
    clip: Clip, chunks: list[Chunk], size: tuple[int, int], done: set[int]
) -> Iterator[tuple[Chunk, np.ndarray]]:
    """The chunks that are not done, with their frames `1 f h w 3`; reads the clip once, and holds one chunk of it."""
    todo = [chunk for chunk in chunks if chunk.index not in done]
    frames, held = None, []
    for chunk in todo:
        if frames is None:
            position, frames = chunk.start, clip.frames(chunk.start)
        held = held[len(held) - max(position - chunk.start, 0) :]
        for _ in range(chunk.stop - position):
            held.append(fit_cover(next(frames), size))
        position = max(position, chunk.stop)
        held = held[-chunk.num_frames :]
        yield chunk, fill(np.stack(held), chunk.length)[None]


@dataclass(frozen=True)
class BufferChunks:
    """How the G-buffers of a clip on disk are read: in the chunks they were written in, or else cut like a video."""

    clip: GBufferClip
    chunks: list[Chunk]
    overlap: int
    fixed_frame: int | None = None

    @property
    def name(self) -> str:
        return self.clip.name

    @classmethod
    def plan(cls, clip: GBufferClip, cut: Cut, fixed_frame: int | None) -> "BufferChunks":
        if len(clip.chunks) == 1:
            (num_frames,) = clip.chunks.values()
            stored, overlap = cut.plan(num_frames), cut.overlap
        else:
            # The record of our inverse run tells the chunks' overlap; the released scripts leave none.
            folder = next(iter(clip.paths.values()))[0].parent
            overlap = read_record(folder / "inverse.json").get("settings", {}).get("overlap", cut.overlap)
            stored, start, length = [], 0, max(clip.chunks.values())
            for index, num_frames in clip.chunks.items():
                stored.append(Chunk(index, start, start + num_frames, length))
                start += num_frames - overlap
            stored = stored[:1] if cut.mode == "first" else stored
        if fixed_frame is None:
            return cls(clip, stored, overlap)
        total = sum(clip.chunks.values())
        if not 0 <= fixed_frame < total:
            raise InputError(f"--fixed-frame {fixed_frame}: clip {clip.name!r} has frames 0 to {total - 1}")
        return cls(clip, [Chunk(0, 0, cut.frames, cut.frames)], 0, fixed_frame)

    def read(self, chunk: Chunk, label: str) -> np.ndarray:
        """Frames `f h w 3` of one buffer, filled up to the chunk's length."""
        stored = list(self.clip.chunks)
        if self.fixed_frame is not None:
            frame = self.fixed_frame
            for index in stored:
                if frame < self.clip.chunks[index]:
                    break
                frame -= self.clip.chunks[index]
            return fill(self.clip.read(label, index, frame, frame + 1), chunk.length)
        if len(stored) > 1:
            return fill(self.clip.read(label, chunk.index), chunk.length)
        return fill(self.clip.read(label, stored[0], chunk.start, chunk.stop), chunk.length)


class Lights:
    """The environments of a run; what they light is computed chunk by chunk.

    Args:
      paths: lat-long images.
      rotation, flip, strength: as for `load_environment`.
      rotate_light, elevation, poses, projection: as for `environment_maps`; the light turns once over a whole clip.
      size: height and width of the maps; None: what suits the renderer.
    """

    def __init__(
        self, paths, rotation=180.0, flip=False, strength=1.0, rotate_light=False, elevation=0.0, poses=None,
        projection="frame", size=None,
    ):  # fmt: skip
        check_projection(size or (1, 1), projection)
        self.cubes = [load_environment(path, rotation, flip, strength) for path in paths]
        self.rotate_light, self.elevation, self.poses = rotate_light, elevation, poses
        self.projection, self.size = projection, size

    def maps(self, index: int, frames: Sequence[int], total: int, size: tuple[int, int]) -> dict:
        """The maps of environment `index` for these frames of a clip of `total`; of one frame if all are lit alike."""
        if not self.rotate_light and self.poses is None:
            frames = frames[:1]
        rotations = camera_rotations(total, self.elevation, self.poses)[frames]
        return project(
            self.cubes[index], size, rotations, light_angles(total, self.rotate_light)[frames], self.projection
        )

    def relight(
        self, forward: ForwardRenderer, buffers: dict, chunk: Chunk, total: int, **how
    ) -> dict[str, np.ndarray]:
        """The chunk of a clip of `total` frames under every environment: label -> `f h w 3`."""
        frames = np.minimum(np.arange(chunk.start, chunk.start + chunk.length), chunk.stop - 1)
        size = self.size or forward.environment_size
        maps = (self.maps(index, frames, total, size) for index in range(len(self.cubes)))
        return {f"env{index:04d}": forward(buffers, light, **how)[0] for index, light in enumerate(maps)}

    def tiles(self, folder: ClipFolder, chunk: Chunk, i: int, total: int) -> list[np.ndarray]:
        """A frame under every environment, each with the environment in its lower left corner."""
        tiles = []
        for index in range(len(self.cubes)):
            image = folder.read(chunk, i, f"env{index:04d}")
            side = min(image.shape[:2]) // 4
            light = self.maps(index, [chunk.start + i], total, (side, side))["env_ldr"]
            tiles.append(inset(image, np.asarray(light[0])))
        return tiles


# --- the runs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What all runs share.

    Attributes:
      input, output: paths.
      cut: how clips are cut and resized.
      sampling: keyword arguments of the renderers.
      settings: what the results depend on, for the record.
      bits: of the PNG files, 8 or 16.
      video: write `{clip}.viz.mp4`?
      overwrite: replace results of other settings?
    """

    input: Path
    output: Path
    cut: Cut
    sampling: dict
    settings: dict
    bits: int = 8
    video: bool = True
    overwrite: bool = False

    def folder(self, name: str, command: str, below: str = "") -> ClipFolder:
        return ClipFolder(self.output / below, name, command, self.settings, self.overwrite)

    def finish(self, folder: ClipFolder, tiles: Iterable[list[np.ndarray]], fps: float) -> None:
        folder.finish(map(side_by_side, tiles) if self.video else None, fps)


@dataclass(frozen=True)
class InverseRun(Run):
    """RGB clips to G-buffers; `renderers` is one `InverseRenderer`."""

    passes: Sequence[str] = ()

    def clips(self) -> list[Clip]:
        return find_clips(self.input)

    def folders(self, clip: Clip) -> list[ClipFolder]:
        return [self.folder(clip.name, "inverse")]

    def process(self, inverse: InverseRenderer, clip: Clip, progress: bool) -> None:
        (folder,) = self.folders(clip)
        chunks = self.cut.plan(clip.num_frames)
        for chunk, rgb in rgb_chunks(clip, chunks, self.cut.size, folder.done):
            buffers = inverse(rgb, self.passes, progress=progress, **self.sampling)
            folder.write(chunk, {"rgb": rgb[0]} | {name: frames[0] for name, frames in buffers.items()}, self.bits)
            _report(clip, chunk, chunks)
        shown = shown_frames(chunks, self.cut.overlap)
        self.finish(folder, ([folder.read(*at, name) for name in ("rgb", *self.passes)] for at in shown), clip.fps)


@dataclass(frozen=True)
class ForwardRun(Run):
    """G-buffers to RGB clips under each environment; `renderers` is one `ForwardRenderer`."""

    lights: Lights | None = None
    drop: Sequence[str] = ()
    fixed_frame: int | None = None

    def needed(self) -> list[str]:
        return [name for name in CONDITIONS if name not in self.drop]

    def clips(self) -> list[BufferChunks]:
        found = find_gbuffer_clips(self.input, self.needed())
        return [BufferChunks.plan(clip, self.cut, self.fixed_frame) for clip in found]

    def folders(self, clip: BufferChunks) -> list[ClipFolder]:
        return [self.folder(clip.name, "forward")]

    def process(self, forward: ForwardRenderer, clip: BufferChunks, progress: bool) -> None:
        (folder,) = self.folders(clip)
        names = self.needed() or clip.clip.labels[:1]  # one, even if dropped, tells the size
        total = clip.chunks[-1].stop
        for chunk in clip.chunks:
            if chunk.index in folder.done:
                continue
            buffers = {name: fit_cover(clip.read(chunk, name), self.cut.size)[None] for name in names}
            frames = self.lights.relight(
                forward, buffers, chunk, total, drop=self.drop, progress=progress, **self.sampling
            )
            folder.write(chunk, frames, self.bits)
            _report(clip, chunk, clip.chunks)
        shown = shown_frames(clip.chunks, clip.overlap)
        self.finish(folder, (self.lights.tiles(folder, *at, total) for at in shown), DEFAULT_FPS)


@dataclass(frozen=True)
class RelightRun(Run):
    """RGB clips to G-buffers and relit clips; float arrays, not files, go from one renderer to the other."""

    lights: Lights | None = None
    passes: Sequence[str] = ()
    drop: Sequence[str] = ()

    def clips(self) -> list[Clip]:
        return find_clips(self.input)

    def folders(self, clip: Clip) -> list[ClipFolder]:
        return [self.folder(clip.name, "inverse", "gbuffers"), self.folder(clip.name, "forward", "relit")]

    def process(self, renderers: tuple[InverseRenderer, ForwardRenderer], clip: Clip, progress: bool) -> None:
        inverse, forward = renderers
        gbuffers, relit = self.folders(clip)
        chunks = self.cut.plan(clip.num_frames)
        total = chunks[-1].stop
        # The options of guidance are the forward renderer's; the inverse one is sampled without, as released.
        unguided = self.sampling | {"guidance": (1.0, 1.0)}
        for chunk, rgb in rgb_chunks(clip, chunks, self.cut.size, gbuffers.done & relit.done):
            buffers = inverse(rgb, self.passes, progress=progress, **unguided)
            gbuffers.write(chunk, {"rgb": rgb[0]} | {name: frames[0] for name, frames in buffers.items()}, self.bits)
            frames = self.lights.relight(
                forward, buffers, chunk, total, drop=self.drop, progress=progress, **self.sampling
            )
            relit.write(chunk, frames, self.bits)
            _report(clip, chunk, chunks)
        shown = list(shown_frames(chunks, self.cut.overlap))
        self.finish(gbuffers, ([gbuffers.read(*at, name) for name in ("rgb", *self.passes)] for at in shown), clip.fps)
        tiles = ([gbuffers.read(*at, "rgb"), *self.lights.tiles(relit, *at, total)] for at in shown)
        self.finish(relit, tiles, clip.fps)


def execute(run: Run, load: Callable[[jax.Device], Any], devices: list[jax.Device]) -> None:
    """Processes every clip that is not finished, on as many devices at a time as there are.

    A clip with an InputError does not stop the others; it is named in the InputError at the end.

    Args:
      load: gives the renderers on a device; called once per device that is needed.
    """
    clips = []
    for clip in run.clips():
        if all(folder.finished for folder in run.folders(clip)):
            print(f"{clip.name}: finished before, skipped")
        else:
            clips.append(clip)
    if not clips:
        return
    queue, failures = iter(clips), []
    devices = devices[: len(clips)]

    def work(device: jax.Device) -> None:
        renderers = load(device)
        # `next` on a list's iterator is atomic: each clip goes to one device.
        while (clip := next(queue, None)) is not None:
            began = time.perf_counter()
            try:
                run.process(renderers, clip, progress=len(devices) == 1)
                where = ", ".join(str(folder.path) for folder in run.folders(clip))
                print(f"{clip.name}: done in {time.perf_counter() - began:.1f} s, see {where}", flush=True)
            except InputError as error:
                failures.append(clip.name)
                if len(clips) == 1:
                    raise
                print(f"{clip.name}: failed: {error}", flush=True)

    with ThreadPoolExecutor(len(devices)) as pool:
        list(pool.map(work, devices))
    if failures:
        raise InputError(
            f"{len(failures)} of {len(clips)} clips failed: {', '.join(failures)}; mend them and run again"
        )


def _report(clip, chunk: Chunk, chunks: list[Chunk]) -> None:
    print(f"{clip.name}: frames {chunk.start} to {chunk.stop - 1} of {chunks[-1].stop} written", flush=True)


def writable_folder(path: str | Path) -> Path:
    """The folder, made if need be; InputError if nothing can be written there."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {path} cannot be made: {error.strerror}; give another") from error
    if not os.access(path, os.W_OK):
        raise InputError(f"--output {path} cannot be written to; give another")
    return path
