"""The environments of a run, and the maps that they give for the frames of its clips."""

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Float32, Int

from drender.errors import InputError
from drender.lighting.camera import camera_rotations, light_angles, require_poses
from drender.lighting.environment import Environment
from drender.lighting.estimation import MAX_FRAMES, check_fov, estimate_environment
from drender.lighting.projection import check_projection
from drender.media.color import Pixels
from drender.media.resize import fit_cover
from drender.renderers.forward import ForwardRenderer
from drender.sampling.inputs import READ_BATCH, Chunk
from drender.sampling.outputs import ClipOutput
from drender.sampling.report import PageLight

OWN_LIGHT = "clip"  # the name of the light that a clip was taken in
ESTIMATED_FROM = ("basecolor", "normal", "depth", "roughness", "metallic")  # the first two are necessary
Latents = Float[np.ndarray, "1 f h w c"]
Read = Callable[[int, str], Pixels]


class OwnLight(NamedTuple):
    """The estimated light of a clip [H W 3], the frames that it was estimated from, and their poses."""

    light: np.ndarray
    rgb: np.ndarray
    buffers: dict[str, np.ndarray]
    poses: np.ndarray


class Lights:
    """The environments of a run; maps are computed when they are needed.

    Args:
      sources: lat-long images, or folders with a map per frame, as for `environment_maps`; or OWN_LIGHT, which
        `with_own` replaces by a clip's light.
      rotate_light, elevation, elevation_sign, poses, projection: as there too. The light turns once over a whole clip.
        Poses and maps beyond the clip's last frame are ignored.
      size: height and width of the maps; None: the renderer's.
      fov: vertical field of view of the clips in degrees, for their own light; None: 50.
      **options: further arguments of every `Environment`.
    Raises:
      InputError: an environment cannot be read, or an option is out of range.
    """

    def __init__(
        self, sources: Sequence[str | Path], rotate_light: bool = False, elevation: float = 0.0,
        elevation_sign: str = "released", poses: ArrayLike | None = None, projection: str = "frame",
        size: tuple[int, int] | None = None, fov: float | None = None, **options: Any,
    ):  # fmt: skip
        check_projection(size or (1, 1), projection)
        camera_rotations(1 if poses is None else len(poses), elevation, poses, elevation_sign)  # raises InputError
        if fov is not None and OWN_LIGHT not in sources:
            raise InputError(f"--fov {fov:g}: it is for the light of the clip; give --environment {OWN_LIGHT} too")
        check_fov(fov)
        self._sources, self._options, self.fov = list(sources), options, fov
        self._load(np.full((1, 2, 3), 0.5, np.float32))  # checks the options
        self.rotate_light, self.poses = rotate_light, poses
        self.elevation, self.elevation_sign = elevation, elevation_sign
        self.projection, self.size = projection, size

    def _load(self, own: Pixels) -> None:
        sources = (own if source == OWN_LIGHT else source for source in self._sources)
        self.environments = [Environment(source, **self._options) for source in sources]
        self._displayed = lru_cache(maxsize=32)(self._compute_displayed)

    @property
    def has_own(self) -> bool:
        """Return whether a clip's own light is among the environments."""
        return OWN_LIGHT in self._sources

    def with_own(self, light: Pixels) -> "Lights":
        """Return these environments for the clip whose own light this is."""
        lights = copy.copy(self)
        lights._load(light)
        return lights

    def estimate_own(self, read: Read, labels: Sequence[str], chunk: Chunk, num_frames: int) -> "OwnLight":
        """Estimate the light that a clip of `num_frames` was taken in, from frames of one of its chunks.

        `read` returns a frame of the chunk by its index and a label, of which there are `labels`.
        """
        frames = np.unique(np.linspace(0, chunk.num_frames - 1, MAX_FRAMES).round().astype(int))
        used = [label for label in ("rgb", *ESTIMATED_FROM) if label in labels]
        images = {label: np.stack([read(int(i), label) for i in frames]) for label in used}
        rgb, poses = images.pop("rgb"), np.tile(np.eye(4, dtype=np.float32), (len(frames), 1, 1))
        poses[:, :3, :3] = self._rotations(num_frames)[chunk.start + frames]
        return OwnLight(estimate_environment(rgb, images, self.fov, poses), rgb, images, poses)

    def keep_own(self, output: ClipOutput, read: Read, labels: Sequence[str], chunk: Chunk, num_frames: int) -> None:
        """Estimate the clip's own light, if it is used, and save it beside the results, unless it is there."""
        if self.has_own and output.load_light() is None:
            output.save_light(self.estimate_own(read, labels, chunk, num_frames).light)

    def _rotations(self, num_frames: int) -> Float32[np.ndarray, "f 3 3"]:
        poses = None if self.poses is None else self.poses[:num_frames]
        return camera_rotations(num_frames, self.elevation, poses, self.elevation_sign)

    @property
    def labels(self) -> list[str]:
        """Return the label of the results under each environment."""
        return [f"env{index:04d}" for index in range(len(self.environments))]

    def moves(self, index: int) -> bool:
        """Return whether environment `index` differs from frame to frame."""
        return self.rotate_light or self.poses is not None or self.environments[index].per_frame

    def check(self, clip_name: str, num_frames: int) -> None:
        """Raise InputError if a clip has more frames than there are poses, or maps in a folder."""
        require_poses(f"clip {clip_name!r}", num_frames, self.poses)
        for environment in self.environments:
            environment.require(num_frames, f"clip {clip_name!r}")

    def maps(self, index: int, frames: Int[np.ndarray, " f"], num_frames: int, size: tuple[int, int]) -> dict:
        """Return environment `index` for these frames of a clip of `num_frames`."""
        rotations = self._rotations(num_frames)[frames]
        angles = light_angles(num_frames, self.rotate_light)[frames]
        return self.environments[index].maps(frames, size, rotations, angles, self.projection)

    def latents(self, index: int, forward: ForwardRenderer, chunk: Chunk, num_frames: int) -> Latents:
        """Return environment `index` encoded for a chunk of a clip of `num_frames`; one frame if all are lit alike."""
        frames = np.minimum(np.arange(chunk.start, chunk.start + chunk.length), chunk.stop - 1)
        frames = frames if self.moves(index) else frames[:1]
        size = self.size or forward.environment_size
        batches = (frames[i : i + READ_BATCH] for i in range(0, len(frames), READ_BATCH))
        maps = (self.maps(index, batch, num_frames, size) for batch in batches)
        return np.concatenate([forward.encode_environment(batch) for batch in maps], axis=1)

    def displayed(self, index: int, frame: int, num_frames: int, size: tuple[int, int]) -> Pixels:
        """Return the LDR map of environment `index` at a frame, computed once if all frames are lit alike."""
        return self._displayed(index, frame if self.moves(index) else 0, num_frames, size)

    def _compute_displayed(self, index: int, frame: int, num_frames: int, size: tuple[int, int]) -> np.ndarray:
        return np.asarray(self.maps(index, np.array([frame]), num_frames, size)["env_ldr"][0])

    def inset(self, image: Pixels, index: int, frame: int, num_frames: int) -> Pixels:
        """Return a relit frame with its environment in the lower left corner."""
        image, side = image.copy(), max(1, min(image.shape[:2]) // 4)
        image[-side:, :side] = self.displayed(index, frame, num_frames, (side, side))
        return image

    def on_page(self, num_frames: int) -> dict[str, PageLight]:
        """Return names and thumbnails of the environments for the HTML page, by label."""
        # Thumbnails are computed larger and scaled down, so that no small light source falls between pixels.
        size = (256, 512 if self.projection == "frame" else 256)

        def thumbnail(index: int, frame: int) -> np.ndarray:
            light = self.displayed(index, frame, num_frames, size)
            return fit_cover(light, (size[0] // 4, size[1] // 4))

        named = enumerate(zip(self.labels, self._sources, strict=True))
        return {label: PageLight(Path(source).stem, partial(thumbnail, index)) for index, (label, source) in named}


def require_for_own_light(labels: Sequence[str], subject: str) -> None:
    """Raise InputError unless images of these labels suffice to estimate a clip's light."""
    if missing := [label for label in ("rgb", *ESTIMATED_FROM[:2]) if label not in labels]:
        raise InputError(f"{subject} no {', no '.join(missing)}, of which the light is estimated; add it")
