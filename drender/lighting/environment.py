"""Environment maps of a clip: an HDR map, or one per frame, becomes the images that light the forward renderer."""

import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float32, Int

from drender.errors import InputError
from drender.lighting.camera import camera_rotations, light_angles, light_orientation
from drender.lighting.latlong import automatic_exposure, list_map_files, load_latlong, range_warning
from drender.lighting.projection import check_projection, latlong_to_cube, project


def environment_maps(
    source: str | Path | ArrayLike,
    num_frames: int = 24,
    size: tuple[int, int] = (512, 512),
    rotation: float = 180.0,
    flip: bool = False,
    strength: float = 1.0,
    rotate_light: bool = False,
    elevation: float = 0.0,
    poses: ArrayLike | None = None,
    projection: str = "frame",
    *,
    elevation_sign: str = "released",
    **how,
) -> dict[str, Float32[Array, "f H W 3"]]:
    """The maps `env_ldr`, `env_log`, `env_nrm` of a clip: `f H W 3` in [0, 1], with f = `num_frames`, (H, W) = `size`.

    `source` is a lat-long image: a .hdr, .exr or (with a warning) LDR file, or an array `h w 3` of linear radiance; or
    one for each frame: a folder of such files, or an array `f h w 3`. See `Environment` for `rotation`, `flip` and
    `strength`, and for `exposure`, `blur`, `yaw`, `pitch` and `roll`; `light_angles` for `rotate_light`,
    `camera_rotations` for `elevation`, `elevation_sign` and `poses`, and `project` for `projection`. InputError for
    values that make no sense.
    """
    check_projection(size, projection)
    rotations = camera_rotations(num_frames, elevation, poses, elevation_sign)
    environment = Environment(source, rotation=rotation, flip=flip, strength=strength, **how)
    environment.require(num_frames, "the clip")
    angles = light_angles(num_frames, rotate_light)
    return environment.maps(np.arange(num_frames), size, rotations, angles, projection)


class Environment:
    """A light: one lat-long map for all frames of a clip, or one for each. Of several, one is in memory at a time.

    Warns, once, if `env_ldr` and `env_log` cannot show it: see `beyond_range`.

    Args:
      source: as for `environment_maps`.
      rotation, flip, strength, blur: as for `light_image`.
      exposure: in stops, likewise; or "auto", see `automatic_exposure`.
      yaw, pitch, roll: of the light, in degrees, as for `light_orientation`.
    Raises:
      InputError: a map that cannot be read (of several: the first; the others once they are needed), or values that
        make no sense.
    """

    def __init__(
        self, source: str | Path | ArrayLike, *, rotation: float = 180.0, flip: bool = False, strength: float = 1.0,
        exposure: float | str = 0.0, blur: float = 0.0, yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0,
    ):  # fmt: skip
        self.name = str(source) if isinstance(source, str | Path) else "array"
        if isinstance(source, str | Path):
            self.per_frame = Path(source).is_dir()
            self._sources = list_map_files(source) if self.per_frame else [source]
        else:
            self.per_frame = np.ndim(source) == 4
            self._sources = source if self.per_frame else [source]
        if not len(self._sources):
            raise InputError("environment array holds no maps; give at least one")
        self._orientation = light_orientation(yaw, pitch, roll)
        if exposure == "auto":
            exposure = automatic_exposure(self._sources, strength)
        elif isinstance(exposure, str):
            raise InputError(f"environment exposure {exposure!r} is neither a number of stops nor 'auto'")
        self._how = {"rotation": rotation, "flip": flip, "strength": strength, "exposure": exposure, "blur": blur}
        self._warned = False
        self._held = (0, self._load(0, warn=True))

    def require(self, num_frames: int, clip: str) -> None:
        """InputError if there is a map for each frame, but not for so many as `clip` has."""
        if self.per_frame and len(self._sources) < num_frames:
            raise InputError(
                f"{clip} has {num_frames} frames, but environment {self.name} only {len(self._sources)} maps; "
                "give one for each, or one file for all"
            )

    def cube(self, frame: int) -> Float32[Array, "6 n n 3"]:
        """The cube map that lights a frame."""
        index, held = self._held
        wanted = frame if self.per_frame else 0
        if index != wanted:
            held = self._load(wanted, warn=False)
            self._held = (wanted, held)  # at once: devices share a light
        return held

    def maps(
        self,
        frames: Int[np.ndarray, " f"],
        size: tuple[int, int],
        rotations: Float32[np.ndarray, "f 3 3"],
        angles: Float32[np.ndarray, " f"],
        projection: str = "frame",
    ) -> dict[str, Float32[Array, "f H W 3"]]:
        """What `project` makes of these frames of the light, under a rotation and an angle for each."""
        if not self.per_frame:
            return project(self.cube(0), size, rotations, angles, projection)
        of_frames = [
            project(self.cube(int(frame)), size, rotations[i : i + 1], angles[i : i + 1], projection)
            for i, frame in enumerate(frames)
        ]
        return {name: jnp.concatenate([maps[name] for maps in of_frames]) for name in of_frames[0]}

    def _load(self, index: int, warn: bool) -> Float32[Array, "6 n n 3"]:
        source = self._sources[index]
        image = load_latlong(source, **self._how, warn=warn)
        if not self._warned and (doubt := range_warning(image)):
            self._warned = True
            warnings.warn(f"environment {source if isinstance(source, str | Path) else 'array'} {doubt}", stacklevel=2)
        return latlong_to_cube(image, self._orientation)


def load_environment(
    source: str | Path | ArrayLike, rotation: float = 180.0, flip: bool = False, strength: float = 1.0
) -> Float32[Array, "6 n n 3"]:
    """The cube map of `light_image`: faces +x −x +y −y +z −z, n = CUBE_SIZE."""
    return latlong_to_cube(load_latlong(source, rotation, flip, strength), light_orientation())
