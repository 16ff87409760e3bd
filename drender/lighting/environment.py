"""Environment maps of a clip: an HDR map, or one per frame, becomes the images that light the forward renderer."""

import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float32, Int

from drender.errors import InputError
from drender.lighting.camera import camera_rotations, light_angles, light_orientation
from drender.lighting.latlong import automatic_exposure, list_map_files, load_latlong, range_warning
from drender.lighting.projection import check_projection, latlong_to_cube, prefiltered, project


def environment_maps(
    source: str | Path | ArrayLike, num_frames: int = 24, size: tuple[int, int] = (512, 512), rotation: float = 180.0,
    flip: bool = False, strength: float = 1.0, rotate_light: bool = False, elevation: float = 0.0,
    poses: ArrayLike | None = None, projection: str = "frame", *, elevation_sign: str = "released", **options,
) -> dict[str, Float32[Array, "f H W 3"]]:  # fmt: skip
    """Return the maps `env_ldr`, `env_log`, `env_nrm` of a clip in [0, 1]; f is `num_frames` and (H, W) is `size`.

    InputError for an unreadable map or a value out of range.

    Args:
      source: lat-long image: a .hdr, .exr or (with a warning) LDR file, or an array `h w 3` of linear radiance; or one
        per frame: a folder of such files, or an array `f h w 3`.
      rotation, flip, strength, options: of `Environment`; the options are `exposure`, `blur`, `yaw`, `pitch`, `roll`,
        `prefilter`.
      rotate_light: of `light_angles`.
      elevation, elevation_sign, poses: of `camera_rotations`.
      projection: of `project`.
    """
    size = tuple(size)  # a list cannot be an argument that JAX compiles for
    check_projection(size, projection)
    rotations = camera_rotations(num_frames, elevation, poses, elevation_sign)
    environment = Environment(source, rotation=rotation, flip=flip, strength=strength, **options)
    environment.require(num_frames, "the clip")
    angles = light_angles(num_frames, rotate_light)
    return environment.maps(np.arange(num_frames), size, rotations, angles, projection)


def load_environment(
    source: str | Path | ArrayLike, rotation: float = 180.0, flip: bool = False, strength: float = 1.0
) -> Float32[Array, "6 n n 3"]:
    """Return the cube map of a lat-long image as `load_latlong` takes it: faces +x −x +y −y +z −z, n = CUBE_SIZE."""
    return latlong_to_cube(load_latlong(source, rotation, flip, strength), light_orientation())


class Environment:
    """The light of a clip: one lat-long map for all frames, or one per frame, of which one is in memory at a time.

    Warns once if `env_ldr` and `env_log` cannot represent the light: see `range_warning`. InputError for a value out of
    range, or an unreadable map (of several, the first; the others once they are needed).

    Args:
      source: as for `environment_maps`.
      rotation, flip, strength, blur: as for `load_latlong`.
      exposure: in stops, as for `load_latlong`, or "auto", see `automatic_exposure`.
      yaw, pitch, roll: of the light, in degrees, as for `light_orientation`.
      prefilter: average maps that are finer than the images over the images' pixels, see `prefiltered`.
    """

    def __init__(
        self, source: str | Path | ArrayLike, *, rotation: float = 180.0, flip: bool = False, strength: float = 1.0,
        exposure: float | str = 0.0, blur: float = 0.0, yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0,
        prefilter: bool = False,
    ):  # fmt: skip
        if isinstance(source, str | Path):
            self.name, self.per_frame = str(source), Path(source).is_dir()
            self._sources = list_map_files(source) if self.per_frame else [source]
        else:
            self.name, self.per_frame = "array", np.ndim(source) == 4
            self._sources = source if self.per_frame else [source]
        if not len(self._sources):
            raise InputError("environment array holds no maps; give at least one")
        self._orientation = light_orientation(yaw, pitch, roll)
        if exposure == "auto":
            exposure = automatic_exposure(self._sources, strength)
        elif isinstance(exposure, str):
            raise InputError(f"environment exposure {exposure!r} is neither a number of stops nor 'auto'")
        self._options = {"rotation": rotation, "flip": flip, "strength": strength, "exposure": exposure, "blur": blur}
        self._prefilter, self._warned = prefilter, False
        self._cached = (0, None, self._load(0, None, warn=True))  # index of a map, size of its images, and its cube

    def require(self, num_frames: int, clip: str) -> None:
        """Raise InputError if there is one map per frame, but fewer than the `num_frames` of `clip`."""
        if self.per_frame and len(self._sources) < num_frames:
            maps = f"environment {self.name} only {len(self._sources)} maps"
            raise InputError(f"{clip} has {num_frames} frames, but {maps}; give one for each, or one file for all")

    def cube(self, frame: int, size: tuple[int, int]) -> Float32[Array, "6 n n 3"]:
        """Return the cube map that lights a frame, for images of this (height, width)."""
        *cached, cube = self._cached
        wanted = [frame if self.per_frame else 0, size if self._prefilter else None]
        if cached != wanted:
            cube = self._load(*wanted, warn=False)
            self._cached = (*wanted, cube)  # one assignment: the threads of several devices share this object
        return cube

    def maps(
        self, frames: Int[np.ndarray, " f"], size: tuple[int, int], rotations: Float32[np.ndarray, "f 3 3"],
        angles: Float32[np.ndarray, " f"], projection: str = "frame",
    ) -> dict[str, Float32[Array, "f H W 3"]]:  # fmt: skip
        """Return the maps of `project` for these frames, with one camera rotation and one light angle per frame."""
        if not self.per_frame:
            return project(self.cube(0, size), size, rotations, angles, projection)
        maps_per_frame = [
            project(self.cube(int(frame), size), size, rotations[i : i + 1], angles[i : i + 1], projection)
            for i, frame in enumerate(frames)
        ]
        return {name: jnp.concatenate([maps[name] for maps in maps_per_frame]) for name in maps_per_frame[0]}

    def _load(self, index: int, size: tuple[int, int] | None, warn: bool) -> Float32[Array, "6 n n 3"]:
        source = self._sources[index]
        image = load_latlong(source, **self._options, warn=warn)
        if size is not None:
            image = prefiltered(image, size)
        if not self._warned and (size is not None or not self._prefilter) and (problem := range_warning(image)):
            self._warned = True
            name = source if isinstance(source, str | Path) else "array"
            warnings.warn(f"environment {name} {problem}", stacklevel=2)
        return latlong_to_cube(image, self._orientation)
