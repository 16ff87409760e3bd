"""The environments of a run, and the maps that they give for the frames of its clips."""

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from jaxtyping import ArrayLike, Float, Int

from drender.errors import InputError
from drender.lighting.camera import camera_rotations, light_angles
from drender.lighting.environment import Environment
from drender.lighting.projection import check_projection
from drender.media import montage
from drender.media.resize import fit_cover
from drender.renderers.forward import ForwardRenderer
from drender.sampling.inputs import READ_BATCH, Chunk
from drender.sampling.report import PageLight


class Lights:
    """The environments of a run; maps are computed when they are needed.

    Args:
      sources: lat-long images, or folders with a map per frame, as for `environment_maps`.
      rotate_light, elevation, elevation_sign, poses, projection: as there too. The light turns once over a whole clip.
        Poses and maps beyond the clip's last frame are ignored.
      size: height and width of the maps; None: the renderer's.
      **options: further arguments of every `Environment`.
    Raises:
      InputError: an environment cannot be read, or an option is out of range.
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
        **options,
    ):
        check_projection(size or (1, 1), projection)
        camera_rotations(1 if poses is None else len(poses), elevation, poses, elevation_sign)  # raises InputError
        self.environments = [Environment(source, **options) for source in sources]
        self.rotate_light, self.poses = rotate_light, poses
        self.elevation, self.elevation_sign = elevation, elevation_sign
        self.projection, self.size = projection, size
        self._displayed = lru_cache(maxsize=32)(self._compute_displayed)

    @property
    def labels(self) -> list[str]:
        """Return the label of the results under each environment."""
        return [f"env{index:04d}" for index in range(len(self.environments))]

    def moves(self, index: int) -> bool:
        """Return whether environment `index` differs from frame to frame."""
        return self.rotate_light or self.poses is not None or self.environments[index].per_frame

    def check(self, clip_name: str, num_frames: int) -> None:
        """Raise InputError if a clip has more frames than there are poses, or maps in a folder."""
        if self.poses is not None and len(self.poses) < num_frames:
            raise InputError(
                f"clip {clip_name!r} has {num_frames} frames, but --poses only {len(self.poses)}; give one for each"
            )
        for environment in self.environments:
            environment.require(num_frames, f"clip {clip_name!r}")

    def maps(self, index: int, frames: Int[np.ndarray, " f"], num_frames: int, size: tuple[int, int]) -> dict:
        """Return environment `index` for these frames of a clip of `num_frames`; one frame if all are lit alike."""
        environment = self.environments[index]
        frames = frames if self.moves(index) else frames[:1]
        poses = None if self.poses is None else self.poses[:num_frames]
        rotations = camera_rotations(num_frames, self.elevation, poses, self.elevation_sign)[frames]
        angles = light_angles(num_frames, self.rotate_light)[frames]
        return environment.maps(frames, size, rotations, angles, self.projection)

    def encode(
        self, index: int, forward: ForwardRenderer, chunk: Chunk, num_frames: int
    ) -> Float[np.ndarray, "1 f h w c"]:
        """Return environment `index` encoded for a chunk of a clip of `num_frames`."""
        frames = np.minimum(np.arange(chunk.start, chunk.start + chunk.length), chunk.stop - 1)
        frames = frames if self.moves(index) else frames[:1]
        size = self.size or forward.environment_size
        batches = (frames[i : i + READ_BATCH] for i in range(0, len(frames), READ_BATCH))
        maps = (self.maps(index, batch, num_frames, size) for batch in batches)
        return np.concatenate([forward.encode_environment(batch) for batch in maps], axis=1)

    def displayed(self, index: int, frame: int, num_frames: int, size: tuple[int, int]) -> Float[np.ndarray, "h w 3"]:
        """Return the LDR map of environment `index` at a frame, computed once if all frames are lit alike."""
        return self._displayed(index, frame if self.moves(index) else 0, num_frames, size)

    def _compute_displayed(self, index: int, frame: int, num_frames: int, size: tuple[int, int]) -> np.ndarray:
        return np.asarray(self.maps(index, np.array([frame]), num_frames, size)["env_ldr"][0])

    def inset(
        self, image: Float[np.ndarray, "h w 3"], index: int, frame: int, num_frames: int
    ) -> Float[np.ndarray, "h w 3"]:
        """Return a relit frame with its environment in the lower left corner."""
        side = min(image.shape[:2]) // 4
        return montage.inset(image, self.displayed(index, frame, num_frames, (side, side)))

    def on_page(self, num_frames: int) -> dict[str, PageLight]:
        """Return names and thumbnails of the environments for the HTML page, by label."""
        # Thumbnails are computed larger and scaled down, so that no small light source falls between pixels.
        size = (256, 512 if self.projection == "frame" else 256)

        def thumbnail(index: int, frame: int) -> np.ndarray:
            light = self.displayed(index, frame, num_frames, size)
            return fit_cover(light, (size[0] // 4, size[1] // 4), multiple=1)

        named = enumerate(zip(self.labels, self.environments, strict=True))
        return {label: PageLight(Path(light.name).stem, partial(thumbnail, index)) for index, (label, light) in named}
