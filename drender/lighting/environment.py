"""HDR environment → the three images that light the forward renderer.

A lat-long HDR image is resampled to a cube map, and the cube map is projected, frame by frame, to an image of all
directions around the camera. `env_ldr` shows the light through a display curve, `env_log` keeps its range, `env_nrm`
gives the direction of every pixel. Orientation and curves are those that the released models were trained with.

World axes: y up; −z is the middle of the lat-long image, +x to the right of it. Radiance is linear, in [0, 65504].
"""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jaxtyping import Array, ArrayLike, Float, Float32, Int

from drender.errors import InputError, unknown_name_error
from drender.lighting.camera import camera_rotations, light_angles, light_orientation
from drender.lighting.latlong import LDR_WHITE, LOG_WHITE, automatic_exposure, load_latlong, map_files, range_warning

CUBE_SIZE = 512
PROJECTIONS = ("frame", "ball")


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


# ---- The light over a clip ----


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
            self._sources = map_files(source) if self.per_frame else [source]
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
        return _latlong_to_cube(image, self._orientation)


# ---- The cube map ----


def load_environment(
    source: str | Path | ArrayLike, rotation: float = 180.0, flip: bool = False, strength: float = 1.0
) -> Float32[Array, "6 n n 3"]:
    """The cube map of `light_image`: faces +x −x +y −y +z −z, n = CUBE_SIZE."""
    return _latlong_to_cube(load_latlong(source, rotation, flip, strength), light_orientation())


@jax.jit
def _latlong_to_cube(
    image: Float32[ArrayLike, "h w 3"], orientation: Float32[ArrayLike, "3 3"]
) -> Float32[Array, "6 n n 3"]:
    """Of the image turned by `orientation`. Bilinear, without a prefilter; both axes wrap around."""
    image = jnp.asarray(image)
    height, width, _ = image.shape
    of_image = jnp.matmul(_cube_directions(CUBE_SIZE), orientation, precision="highest")  # its inverse, on row vectors
    x, y, z = jnp.unstack(of_image, axis=-1)
    u = jnp.arctan2(x, -z) / (2 * jnp.pi) + 0.5
    v = jnp.arctan2(jnp.hypot(x, z), y) / jnp.pi  # acos(y/|d|), whose digits float32 would lose near the poles
    return _bilinear(lambda i, j: image[i % height, j % width], v * height - 0.5, u * width - 0.5)


def _cube_directions(n: int, border: int = 0) -> Float32[Array, "6 m m 3"]:
    """The directions, not normalised, of the centres of n×n texels on every face and of `border` more on each side."""
    centres = (2 * jnp.arange(-border, n + border, dtype=jnp.float32) + 1) / n - 1
    t, s = jnp.meshgrid(centres, centres, indexing="ij")  # s right, t down, on the face in [−1, 1]
    one = jnp.ones_like(s)
    faces = [(one, -t, -s), (-one, -t, s), (s, one, t), (s, -one, -t), (s, -t, one), (-s, -t, -one)]
    return jnp.stack([jnp.stack(face, axis=-1) for face in faces])


def _cube_coordinates(
    directions: Float32[Array, "*b 3"],
) -> tuple[Int[Array, "*b"], Float32[Array, "*b"], Float32[Array, "*b"]]:
    """Which face the directions meet, and where on it, (t, s) in [−1, 1]: the inverse of `_cube_directions`."""
    x, y, z = jnp.unstack(directions, axis=-1)
    toward = jnp.stack([x, -x, y, -y, z, -z])
    face, length = jnp.argmax(toward, axis=0), jnp.max(toward, axis=0)
    s = jnp.choose(face, [-z, z, x, x, x, -x], mode="clip") / length
    t = jnp.choose(face, [-y, -y, z, -z, -y, -y], mode="clip") / length
    return face, t, s


def _with_border(cube: Float32[Array, "6 n n 3"]) -> Float32[Array, "6 n+2 n+2 3"]:
    """The faces with one more texel on each side, taken from the neighbours, so that bilinear lookups show no seams.

    At a corner of the cube only three texels meet; the fourth is their mean.
    """
    n = cube.shape[1]
    # The texel beyond an edge is where the direction of its centre meets the neighbouring face.
    face, t, s = _cube_coordinates(_cube_directions(n, border=1))
    padded = cube[face, ((t + 1) * n / 2).astype(jnp.int32), ((s + 1) * n / 2).astype(jnp.int32)]
    for row, near_row in ((0, 1), (-1, -2)):
        for column, near_column in ((0, 1), (-1, -2)):
            three = padded[:, row, near_column] + padded[:, near_row, column] + padded[:, near_row, near_column]
            padded = padded.at[:, row, column].set(three / 3)
    return padded


def _bilinear(texel: Callable, row: Float32[Array, "*b"], column: Float32[Array, "*b"]) -> Float32[Array, "*b 3"]:
    """The blend of the four texels, texel(i, j) -> `*b 3`, around each place; whole numbers are the texels' centres."""
    top, left = jnp.floor(row), jnp.floor(column)
    down, right = (row - top)[..., None], (column - left)[..., None]
    i, j = top.astype(jnp.int32), left.astype(jnp.int32)
    upper = texel(i, j) * (1 - right) + texel(i, j + 1) * right
    lower = texel(i + 1, j) * (1 - right) + texel(i + 1, j + 1) * right
    return upper * (1 - down) + lower * down


# ---- Projection ----


def check_projection(size: tuple[int, int], projection: str) -> None:
    """InputError for an unknown projection, a size (H, W) that is not positive, or a ball that is not square."""
    if projection not in PROJECTIONS:
        raise unknown_name_error("projection", projection, PROJECTIONS)
    if min(size) < 1:
        raise InputError(f"environment size {size[0]}x{size[1]} is not positive")
    if projection == "ball" and size[0] != size[1]:
        raise InputError(f"environment size {size[0]}x{size[1]} is not square, as projection 'ball' needs it")


@partial(jax.jit, static_argnames=("size", "projection"))
def project(
    cube: Float32[Array, "6 n n 3"],
    size: tuple[int, int],
    rotations: Float32[ArrayLike, "f 3 3"],
    angles: Float32[ArrayLike, " f"],
    projection: str = "frame",
) -> dict[str, Float32[Array, "f H W 3"]]:
    """The maps `env_ldr`, `env_log`, `env_nrm` of f frames in [0, 1], with (H, W) = `size`.

    `rotations` are the camera's (`camera_rotations`), `angles` the light's (`light_angles`). Projection "frame" unrolls
    all directions of camera space (x right, y up, z backward): +z in the middle, +x right of it, +y at the top. "ball"
    shows them mirrored in a ball. `env_nrm` is n·½ + ½ of the directions n of "frame", in every frame and also beside a
    "ball". InputError as from `check_projection`.
    """
    check_projection(size, projection)
    directions = _frame_directions(*size) if projection == "frame" else _ball_directions(*size)
    faces, n = _with_border(cube), cube.shape[1]

    def look(camera_and_light):
        rotation, angle = camera_and_light
        to_world = jnp.matmul(_rotation_y(angle), rotation, precision="highest")  # the light turns against the world
        face, t, s = _cube_coordinates(jnp.matmul(directions, to_world.T, precision="highest"))
        # From [−1, 1] to texels: half a texel back to their centres, one forward for the border.
        light = _bilinear(lambda i, j: faces[face, i, j], (t + 1) * n / 2 + 0.5, (s + 1) * n / 2 + 0.5)
        return ldr_curve(light), log_curve(light)

    ldr, log = jax.lax.map(look, (jnp.asarray(rotations), jnp.asarray(angles)))  # one by one, to bound the memory
    normal = repeat(_frame_directions(*size) * 0.5 + 0.5, "h w c -> f h w c", f=len(ldr))
    return {"env_ldr": ldr, "env_log": log, "env_nrm": normal}


def _frame_directions(height: int, width: int) -> Float32[Array, "h w 3"]:
    """Rows by polar angle, columns by azimuth. (The grid's end points make the rows not quite the pixels' centres.)

    The released code builds d = (sin·sin, cos, −sin·cos), looks up −d and flips both axes of the image: the same thing.
    """
    polar = jnp.pi * jnp.linspace(1 / height, 1 - 1 / height, height)[:, None]
    azimuth = jnp.pi * jnp.linspace(-1 + 1 / width, 1 - 1 / width, width)[None, :]
    up = jnp.broadcast_to(jnp.cos(polar), (height, width))
    return jnp.stack([jnp.sin(polar) * jnp.sin(azimuth), up, jnp.sin(polar) * jnp.cos(azimuth)], axis=-1)


def _ball_directions(height: int, width: int) -> Float32[Array, "h w 3"]:
    """The view vector ẑ reflected by a ball, 2(n·ẑ)n − ẑ; beside the ball its normal n counts as 0."""
    y, x = jnp.meshgrid(jnp.linspace(1, -1, height), jnp.linspace(-1, 1, width), indexing="ij")
    z2 = 1 - x**2 - y**2
    normal = jnp.stack([x, y, jnp.sqrt(jnp.maximum(z2, 0))], axis=-1) * (z2 >= 0)[..., None]
    return 2 * normal[..., 2:] * normal - jnp.array([0.0, 0.0, 1.0])


def _rotation_y(angle: Float32[Array, ""]) -> Float32[Array, "3 3"]:
    c, s, zero, one = jnp.cos(angle), jnp.sin(angle), jnp.zeros_like(angle), jnp.ones_like(angle)
    return rearrange(jnp.stack([c, zero, s, zero, one, zero, -s, zero, c]), "(i j) -> i j", i=3)


# ---- Tone curves, of linear radiance x ≥ 0 ----


def srgb_curve(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Linear [0, 1] to sRGB-encoded [0, 1], the piecewise curve of IEC 61966-2-1."""
    return jnp.where(x <= 0.0031308, 12.92 * x, 1.055 * jnp.maximum(x, 0.0031308) ** (1 / 2.4) - 0.055)


def ldr_curve(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Reinhard's curve with white at 16, then sRGB: [0, 16] to [0, 1], cut off above."""
    return srgb_curve(jnp.clip(x * (1 + x / LDR_WHITE**2) / (1 + x), 0, 1))


def log_curve(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """log(1 + x), then sRGB: [0, 10000] to [0, 1], cut off above."""
    return jnp.clip(srgb_curve(jnp.log1p(x) / jnp.log1p(LOG_WHITE)), 0, 1)
