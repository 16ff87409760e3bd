"""What runs read: clips and G-buffers, chunk by chunk, and the environments that light them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from .environment import camera_rotations, check_projection, light_angles, load_environment, project
from .errors import InputError
from .fitting import Placement
from .gbuffers import GBufferClip
from .media import DEFAULT_FPS, Clip
from .renderers import ForwardRenderer
from .results import ClipFolder, inset, read_record
from .windows import Chunk, plan_chunks, select


@dataclass(frozen=True)
class Cut:
    """How clips are cut: frames per chunk, shared frames, chunk mode."""

    frames: int = 24
    overlap: int = 6
    mode: str = "all"

    def __post_init__(self):
        plan_chunks(self.frames + 1, self.frames, self.overlap, self.mode)  # for its errors

    def plan(self, num_frames: int) -> list[Chunk]:
        return plan_chunks(num_frames, self.frames, self.overlap, self.mode)


def fill(frames: np.ndarray, length: int) -> np.ndarray:
    """Repeats the last frame until there are `length`."""
    return np.concatenate([frames, np.repeat(frames[-1:], length - len(frames), axis=0)])


def rgb_chunks(
    clip: Clip, chunks: list[Chunk], placement: Placement, done: set[int]
) -> Iterator[tuple[Chunk, np.ndarray]]:
    """The chunks that are not done, with their frames `1 f h w 3`; reads the clip once, and holds one chunk of it."""
    todo = [chunk for chunk in chunks if chunk.index not in done]
    frames, held = None, []
    for chunk in todo:
        if frames is None:
            position, frames = chunk.start, clip.frames(chunk.start)
        held = held[len(held) - max(position - chunk.start, 0) :]
        for _ in range(chunk.stop - position):
            held.append(placement.fit(next(frames)))
        position = max(position, chunk.stop)
        held = held[-chunk.num_frames :]
        yield chunk, fill(np.stack(held), chunk.length)[None]


@dataclass(frozen=True)
class BufferChunks:
    """How the G-buffers of a clip on disk are read: in the chunks they were written in, or else cut like a video."""

    clip: GBufferClip
    stored: list[Chunk]  # as the files are numbered
    chunks: list[Chunk]  # as they are rendered
    overlap: int
    fps: float = DEFAULT_FPS  # as the record of the run that wrote it says
    fixed_frame: int | None = None

    @property
    def name(self) -> str:
        return self.clip.name

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its frames, of which the first is read for it."""
        return next(self.clip.frames(*next(iter(self.clip.paths)))).shape[:2]

    @classmethod
    def plan(cls, clip: GBufferClip, cut: Cut, fixed_frame: int | None) -> "BufferChunks":
        """InputError if the inverse run that wrote the clip is not finished, or if there is no such frame."""
        record = read_record(next(iter(clip.paths.values()))[0].parent / "inverse.json")
        if record.get("finished") is False:
            raise InputError(f"clip {clip.name!r}: the inverse run that writes it is not finished; run it again first")
        fps = record.get("fps", DEFAULT_FPS)
        # The record of our inverse run tells the chunks' overlap; the released scripts leave none.
        overlap = record.get("settings", {}).get("overlap", cut.overlap) if len(clip.chunks) > 1 else cut.overlap
        stored, start, length = [], 0, max(clip.chunks.values())
        for index, num_frames in clip.chunks.items():
            if num_frames <= overlap and len(clip.chunks) > 1:
                raise InputError(
                    f"clip {clip.name!r}: chunk {index} has no more than the {overlap} frames that chunks share; "
                    "give the --overlap it was written with"
                )
            stored.append(Chunk(index, start, start + num_frames, length))
            start += num_frames - overlap
        total = stored[-1].stop
        if fixed_frame is not None:
            if not 0 <= fixed_frame < total:
                raise InputError(f"--fixed-frame {fixed_frame}: clip {clip.name!r} has frames 0 to {total - 1}")
            return cls(clip, stored, [Chunk(0, 0, cut.frames, cut.frames)], 0, fps, fixed_frame)
        return cls(clip, stored, select(stored, cut.mode) if len(stored) > 1 else cut.plan(total), overlap, fps)

    def read(self, chunk: Chunk, label: str, placement: Placement) -> np.ndarray:
        """Frames `f h w 3` of one buffer as the network sees them, filled up to the chunk's length."""
        if self.fixed_frame is not None:
            start, stop = self.fixed_frame, self.fixed_frame + 1
            source = next(stored for stored in self.stored if start < stored.stop)
        else:
            start, stop = chunk.start, chunk.stop
            source = next(stored for stored in self.stored if len(self.stored) == 1 or stored == chunk)
        frames = self.clip.frames(label, source.index, start - source.start, stop - source.start)
        return fill(np.stack([placement.fit(frame) for frame in frames]), chunk.length)


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
        self.rotate_light, self.elevation, self.poses = rotate_light, elevation, poses
        self.projection, self.size = projection, size

    @property
    def labels(self) -> list[str]:
        """What the results under each environment are called."""
        return [f"env{index:04d}" for index in range(len(self.cubes))]

    def check(self, name: str, total: int) -> None:
        """InputError if the clip of that name has more frames than there are poses."""
        if self.poses is not None and len(self.poses) < total:
            raise InputError(f"clip {name!r} has {total} frames, but --poses only {len(self.poses)}; give one for each")

    def maps(self, index: int, frames: Int[np.ndarray, "f"], total: int, size: tuple[int, int]) -> dict:
        """The maps of environment `index` for these frames of a clip of `total`; of one frame if all are lit alike."""
        if not self.rotate_light and self.poses is None:
            frames = frames[:1]
        poses = None if self.poses is None else self.poses[:total]
        rotations = camera_rotations(total, self.elevation, poses)[frames]
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
        return {label: forward(buffers, light, **how)[0] for label, light in zip(self.labels, maps, strict=True)}

    def tiles(self, folder: ClipFolder, chunk: Chunk, i: int, total: int) -> list[np.ndarray]:
        """A frame under every environment, each with the environment in its lower left corner."""
        tiles = []
        for index, label in enumerate(self.labels):
            image = folder.read(chunk, i, label)
            side = min(image.shape[:2]) // 4
            light = self.maps(index, np.array([chunk.start + i]), total, (side, side))["env_ldr"]
            tiles.append(inset(image, np.asarray(light[0])))
        return tiles
