"""What runs read: clips and G-buffers, chunk by chunk, and the environments that light them."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from .environment import camera_rotations, check_projection, light_angles, load_environment, project
from .errors import InputError
from .gbuffers import GBufferClip, each_frame
from .media import Clip, fit_cover
from .page import PageLight
from .renderers import ForwardRenderer
from .results import ClipFolder, inset, read_record
from .windows import Chunk, plan_chunks, select

READ_RUN = 8  # frames that are held at a time


@dataclass(frozen=True)
class Cut:
    """How clips are cut and resized.

    Attributes:
      frames, overlap: of a chunk, and those that neighbours share.
      mode: of the chunks, see `plan_chunks`.
      size: height and width to cover.
    """

    frames: int = 24
    overlap: int = 6
    mode: str = "blend"
    size: tuple[int, int] | None = (512, 512)

    def __post_init__(self):
        plan_chunks(self.frames + 1, self.frames, self.overlap, self.mode)  # for its errors
        if self.size is not None and min(self.size) < 1:
            raise InputError(f"size is {self.size[0]} {self.size[1]}; both sides must be 1 or more")

    def plan(self, num_frames: int) -> list[Chunk]:
        return plan_chunks(num_frames, self.frames, self.overlap, self.mode)


def in_runs(frames: Iterator[np.ndarray], length: int) -> Iterator[Float[np.ndarray, "1 n h w 3"]]:
    """Frames as clips of at most READ_RUN; the last is repeated until there are `length`."""
    last = None
    for start in range(0, length, READ_RUN):
        run = list(itertools.islice(frames, min(READ_RUN, length - start)))
        last = run[-1] if run else last
        run += [last] * (min(READ_RUN, length - start) - len(run))
        yield np.stack(run)[None]


def rgb_runs(clip: Clip, chunk: Chunk, size: tuple[int, int]) -> Iterator[Float[np.ndarray, "1 n h w 3"]]:
    """The frames of a chunk, some at a time."""
    return in_runs((fit_cover(frame, size) for frame in clip.frames(chunk.start, chunk.stop)), chunk.length)


def require_finished(name: str, folder: Path) -> None:
    """InputError if the inverse run that writes the G-buffers in a clip's folder is not finished."""
    if read_record(folder / "inverse.json").get("finished") is False:
        raise InputError(f"clip {name!r}: the inverse run that writes it is not finished; run it again first")


@dataclass(frozen=True)
class BufferChunks:
    """G-buffers of a clip on disk, and the chunks they are rendered in.

    Attributes:
      clip: the files, which lie in chunks of their own.
      chunks: as they are rendered.
      places: of a chunk's frames: (chunk, frame) as the files are numbered.
      overlap: frames that neighbouring chunks share.
    """

    clip: GBufferClip
    chunks: list[Chunk]
    places: dict[Chunk, list[tuple[int, int]]]
    overlap: int

    @property
    def name(self) -> str:
        return self.clip.name

    @classmethod
    def plan(cls, clip: GBufferClip, cut: Cut, fixed_frame: int | None) -> "BufferChunks":
        """The chunks that the files lie in, or, of one such or to be blended, those of a video.

        fixed_frame: a frame of the clip to repeat, and nothing else.
        InputError if there is no such frame, or if the files' chunks do not fit together.
        """
        # The record of our inverse run tells the chunks' overlap; the released scripts leave none.
        record = read_record(next(iter(clip.paths.values()))[0].parent / "inverse.json")
        overlap = record.get("settings", {}).get("overlap", cut.overlap) if len(clip.chunks) > 1 else cut.overlap
        stored, places, length = [], [], max(clip.chunks.values())
        for index, num_frames in clip.chunks.items():
            if num_frames <= overlap and len(clip.chunks) > 1:
                raise InputError(
                    f"clip {clip.name!r}: chunk {index} has no more than the {overlap} frames that chunks share; "
                    "give the --overlap it was written with"
                )
            new = [(index, i) for i in range(overlap if stored else 0, num_frames)]
            start = len(places) + len(new) - num_frames
            places += new
            stored.append(Chunk(index, start, start + num_frames, length))
        if fixed_frame is not None:
            if not 0 <= fixed_frame < len(places):
                raise InputError(f"--fixed-frame {fixed_frame}: clip {clip.name!r} has frames 0 to {len(places) - 1}")
            still = Chunk(0, 0, cut.frames, cut.frames)
            return cls(clip, [still], {still: [places[fixed_frame]] * cut.frames}, 0)
        if len(stored) > 1 and cut.mode != "blend":
            chunks = select(stored, cut.mode)
            return cls(clip, chunks, {c: [(c.index, i) for i in range(c.num_frames)] for c in chunks}, overlap)
        chunks = cut.plan(len(places))
        return cls(clip, chunks, {chunk: places[chunk.start : chunk.stop] for chunk in chunks}, overlap)

    def read(self, chunk: Chunk, frame: int, label: str) -> np.ndarray:
        """A frame of one buffer, as stored."""
        stored, i = self.places[chunk][frame]
        return self.clip.read(label, stored, i, i + 1)[0]

    def runs(self, chunk: Chunk, label: str, size: tuple[int, int] | None) -> Iterator[Float[np.ndarray, "1 n h w 3"]]:
        """The frames of one buffer, some at a time, the last repeated up to the chunk's length."""
        files = [self.clip.paths[label, stored][frame] for stored, frame in self.places[chunk]]
        return in_runs((fit_cover(frame, size) for frame in each_frame(files)), chunk.length)


class Lights:
    """The environments of a run; what they light is computed chunk by chunk.

    Args:
      paths: lat-long images.
      rotation, flip, strength: as for `load_environment`.
      rotate_light, elevation, poses, projection: as for `environment_maps`; the light turns once over a whole clip, and
        poses beyond the clip's last frame are not used.
      size: height and width of the maps; None: what suits the renderer.
    Raises:
      InputError: an environment that cannot be read, or values that make no sense.
    """

    def __init__(
        self, paths, rotation=180.0, flip=False, strength=1.0, rotate_light=False, elevation=0.0, poses=None,
        projection="frame", size=None,
    ):  # fmt: skip
        check_projection(size or (1, 1), projection)
        camera_rotations(1 if poses is None else len(poses), elevation, poses)  # for its errors
        self.cubes = [load_environment(path, rotation, flip, strength) for path in paths]
        self.names = [Path(path).stem for path in paths]
        self.rotate_light, self.elevation, self.poses = rotate_light, elevation, poses
        self.projection, self.size = projection, size

    @property
    def labels(self) -> list[str]:
        """What the results under each environment are called."""
        return [f"env{index:04d}" for index in range(len(self.cubes))]

    @property
    def moves(self) -> bool:
        """Are frames lit differently?"""
        return self.rotate_light or self.poses is not None

    def check(self, name: str, total: int) -> None:
        """InputError if the clip of that name has more frames than there are poses."""
        if self.poses is not None and len(self.poses) < total:
            raise InputError(f"clip {name!r} has {total} frames, but --poses only {len(self.poses)}; give one for each")

    def maps(self, index: int, frames: Int[np.ndarray, "f"], total: int, size: tuple[int, int]) -> dict:
        """The maps of environment `index` for these frames of a clip of `total`; of one frame if all are lit alike."""
        frames = frames if self.moves else frames[:1]
        poses = None if self.poses is None else self.poses[:total]
        rotations = camera_rotations(total, self.elevation, poses)[frames]
        return project(
            self.cubes[index], size, rotations, light_angles(total, self.rotate_light)[frames], self.projection
        )

    def encode(self, index: int, forward: ForwardRenderer, chunk: Chunk, total: int) -> Float[np.ndarray, "1 f h w c"]:
        """Environment `index` as the renderer takes it, for the frames of a chunk of a clip of `total`."""
        frames = np.minimum(np.arange(chunk.start, chunk.start + chunk.length), chunk.stop - 1)
        frames = frames if self.moves else frames[:1]
        size = self.size or forward.environment_size
        runs = (frames[i : i + READ_RUN] for i in range(0, len(frames), READ_RUN))
        maps = (self.maps(index, run, total, size) for run in runs)
        return np.concatenate([forward.encode_environment(some) for some in maps], axis=1)

    def tiles(self, folder: ClipFolder, chunk: Chunk, i: int, total: int) -> list[np.ndarray]:
        """A frame under every environment, each with the environment in its lower left corner."""
        tiles = []
        for index, label in enumerate(self.labels):
            image = folder.read(chunk, i, label)
            side = min(image.shape[:2]) // 4
            light = self.maps(index, np.array([chunk.start + i]), total, (side, side))["env_ldr"]
            tiles.append(inset(image, np.asarray(light[0])))
        return tiles

    def on_page(self, total: int) -> dict[str, PageLight]:
        """What a page shows of the environments that light a clip of `total` frames, by label."""
        size = (256, 512 if self.projection == "frame" else 256)  # then scaled down, so that no small light is missed

        def thumbnail(index: int, frame: int) -> np.ndarray:
            light = self.maps(index, np.array([frame]), total, size)["env_ldr"][0]
            return fit_cover(np.asarray(light), (size[0] // 4, size[1] // 4), multiple=1)

        named = enumerate(zip(self.labels, self.names, strict=True))
        return {label: PageLight(name, partial(thumbnail, index)) for index, (label, name) in named}
