"""The environments of a run, and what they make of its clips."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import ArrayLike, Float, Int

from drender.errors import InputError
from drender.lighting.camera import camera_rotations, light_angles
from drender.lighting.environment import Environment
from drender.lighting.projection import check_projection
from drender.media.montage import inset
from drender.media.resize import fit_cover
from drender.renderers.forward import ForwardRenderer
from drender.sampling.inputs import READ_RUN, Chunk
from drender.sampling.outputs import ClipOutput
from drender.sampling.report import PageLight


class Lights:
    """The environments of a run; what they light is computed as it is needed.

    Args:
      sources: a lat-long image each, or a folder with one for every frame, as for `environment_maps`.
      rotate_light, elevation, elevation_sign, poses, projection: likewise; the light turns once over a whole clip, and
        poses and maps beyond the clip's last frame are not used.
      size: height and width of the maps; None: what suits the renderer.
      how: the further arguments of every `Environment`.
    Raises:
      InputError: an environment that cannot be read, or values that make no sense.
    """

    def __init__(
        self,
        sources: Sequence[str | Path],
        rotate_light: bool = False,
        elevation: float = 0.0,
        elevation_sign: str = "released",
        poses: ArrayLike | None = None,
        projection: str = "frame",
        size: tuple[int, int] | None = None,
        **how,
    ):
        check_projection(size or (1, 1), projection)
        camera_rotations(1 if poses is None else len(poses), elevation, poses, elevation_sign)  # for its errors
        self.environments = [Environment(source, **how) for source in sources]
        self.rotate_light, self.poses = rotate_light, poses
        self.elevation, self.elevation_sign = elevation, elevation_sign
        self.projection, self.size = projection, size

    @property
    def labels(self) -> list[str]:
        """What the results under each environment are called."""
        return [f"env{index:04d}" for index in range(len(self.environments))]

    def moves(self, index: int) -> bool:
        """Does environment `index` light the frames differently?"""
        return self.rotate_light or self.poses is not None or self.environments[index].per_frame

    def check(self, name: str, total: int) -> None:
        """InputError if the clip of that name has more frames than there are poses, or maps in a folder."""
        if self.poses is not None and len(self.poses) < total:
            raise InputError(f"clip {name!r} has {total} frames, but --poses only {len(self.poses)}; give one for each")
        for environment in self.environments:
            environment.require(total, f"clip {name!r}")

    def maps(self, index: int, frames: Int[np.ndarray, " f"], total: int, size: tuple[int, int]) -> dict:
        """The maps of environment `index` for these frames of a clip of `total`; of one frame if all are lit alike."""
        environment = self.environments[index]
        frames = frames if self.moves(index) else frames[:1]
        poses = None if self.poses is None else self.poses[:total]
        rotations = camera_rotations(total, self.elevation, poses, self.elevation_sign)[frames]
        return environment.maps(
            frames, size, rotations, light_angles(total, self.rotate_light)[frames], self.projection
        )

    def encode(self, index: int, forward: ForwardRenderer, chunk: Chunk, total: int) -> Float[np.ndarray, "1 f h w c"]:
        """Environment `index` as the renderer takes it, for the frames of a chunk of a clip of `total`."""
        frames = np.minimum(np.arange(chunk.start, chunk.start + chunk.length), chunk.stop - 1)
        frames = frames if self.moves(index) else frames[:1]
        size = self.size or forward.environment_size
        runs = (frames[i : i + READ_RUN] for i in range(0, len(frames), READ_RUN))
        maps = (self.maps(index, run, total, size) for run in runs)
        return np.concatenate([forward.encode_environment(some) for some in maps], axis=1)

    def tiles(self, folder: ClipOutput, chunk: Chunk, i: int, total: int) -> list[np.ndarray]:
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

        named = enumerate(zip(self.labels, self.environments, strict=True))
        return {label: PageLight(Path(light.name).stem, partial(thumbnail, index)) for index, (label, light) in named}
