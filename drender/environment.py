"""HDR environment → the three images that light the forward renderer.

A lat-long HDR image is resampled to a cube map, and the cube map is projected, frame by frame, to an image of all
directions around the camera. `env_ldr` shows the light through a display curve, `env_log` keeps its range, `env_nrm`
gives the direction of every pixel. Orientation and curves are those that the released models were trained with.

World axes: y up; −z is the middle of the lat-long image, +x to the right of it. Radiance is linear, in [0, 65504].
"""

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jaxtyping import Array, ArrayLike, Float, Float32, Int

from .errors import InputError, unknown
from .images import read_hdr

CUBE_SIZE = 512
MAX_RADIANCE = 65504.0  # the largest half float
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
) -> dict[str, Float32[Array, "f H W 3"]]:
    """The maps `env_ldr`, `env_log`, `env_nrm` of a clip: `f H W 3` in [0, 1], with f = `num_frames`, (H, W) = `size`.

    `source` is a lat-long image: a .hdr, .exr or (with a warning) LDR file, or an array `h w 3` of linear radiance. See
    `load_environment` for `rotation`, `flip` and `strength`, `light_angles` for `rotate_light`, `camera_rotations` for
    `elevation` and `poses`, and `project` for `projection`. InputError for values that make no sense.
    """
    check_projection(size, projection)
    rotations = camera_rotations(num_frames, elevation, poses)
    cube = load_environment(source, rotation, flip, strength)
    return project(cube, size, rotations, light_angles(num_frames, rotate_light), projection)


# ---- The cube map ----


def load_environment(
    source: str | Path | ArrayLike, rotation: float = 180.0, flip: bool = False, strength: float = 1.0
) -> Float32[Array, "6 n n 3"]:
    """The cube map of `light_image`: faces +x −x +y −y +z −z, n = CUBE_SIZE."""
    return _latlong_to_cube(light_image(source, rotation, flip, strength))


def light_image(
    source: str | Path | ArrayLike, rotation: float = 180.0, flip: bool = False, strength: float = 1.0
) -> Float32[np.ndarray, "h w 3"]:
    """The light of a lat-long file or array `h w 3` of linear radiance.

    `strength` ≥ 0 multiplies the radiance, `flip` mirrors the image, then `rotation` (degrees) rolls it to the right.
    Warns of what would light wrongly: NaN (taken as black), an image that is not 2:1, or one without any light.
    """
    if not (np.isfinite(strength) and strength >= 0):
        raise InputError(f"environment strength {strength} is not a number ≥ 0")
    if not np.isfinite(rotation):
        raise InputError(f"environment rotation {rotation} is not a number of degrees")
    name, image = (source, read_hdr(source)) if isinstance(source, str | Path) else ("array", np.asarray(source))
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"environment array has shape {image.shape}; it must be (height, width, 3)")
    height, width, _ = image.shape
    if width != 2 * height:
        warnings.warn(f"environment {name} is {width}x{height}, not 2:1; is it a lat-long image?", stacklevel=2)
    if np.isnan(image).any():
        warnings.warn(f"environment {name} contains NaN, taken as black", stacklevel=2)
    with np.errstate(over="ignore", invalid="ignore"):  # infinite suns are usual in half floats
        image = np.nan_to_num(image.astype(np.float32) * np.float32(strength), nan=0.0).clip(0, MAX_RADIANCE)
    if not image.any():
        warnings.warn(f"environment {name} is black and will light nothing", stacklevel=2)
    image = image[:, ::-1] if flip else image
    return np.roll(image, int(width * rotation / 360), axis=1)


@jax.jit
def _latlong_to_cube(image: Float32[Array, "h w 3"]) -> Float32[Array, "6 n n 3"]:
    """Bilinear, without a prefilter; both axes wrap around."""
    height, width, _ = image.shape
    x, y, z = jnp.unstack(_cube_directions(CUBE_SIZE), axis=-1)
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


# ---- Cameras and lights ----


def camera_rotations(
    num_frames: int, elevation: float = 0.0, poses: ArrayLike | None = None
) -> Float32[np.ndarray, "f 3 3"]:
    """The camera's rotation in every frame, as `project` takes it: of `poses`, or of a fixed camera.

    `poses` are camera-to-world matrices, `f 4 4`. A fixed camera looks at the origin from azimuth 90°, which is the +z
    side, and from `elevation` degrees above the horizon. The released code passes its world-to-camera rotation where
    camera-to-world belongs: a turn by +elevation about x (none at 0°), so that a raised camera gets the surroundings of
    a lowered one. That is kept, for it is what the released results show. InputError for poses that do not fit.
    """
    if num_frames < 1:
        raise InputError(f"number of frames {num_frames} is less than 1")
    if not np.isfinite(elevation):
        raise InputError(f"elevation {elevation} is not a number of degrees")
    if poses is None:
        c, s = np.cos(np.deg2rad(elevation)), np.sin(np.deg2rad(elevation))
        return repeat(np.array([[1, 0, 0], [0, c, -s], [0, s, c]], np.float32), "i j -> f i j", f=num_frames)
    if elevation != 0:
        raise InputError(f"elevation {elevation} and poses exclude each other; leave one out")
    poses = np.asarray(poses, np.float32)
    if poses.shape != (num_frames, 4, 4) or not np.isfinite(poses).all():
        raise InputError(f"poses have shape {poses.shape}; {num_frames} frames need that many finite 4x4 matrices")
    return poses[:, :3, :3]


def light_angles(num_frames: int, rotate: bool) -> Float32[np.ndarray, "f"]:
    """The light's turn about y in every frame, in radians: 0, or from 0 to 2π with both ends if it is to `rotate`."""
    return np.linspace(0, 2 * np.pi if rotate else 0, num_frames, dtype=np.float32)


def read_poses(path: str | Path, relative: bool = False) -> Float32[np.ndarray, "f 4 4"]:
    """The camera-to-world matrices `frames[i].transform_matrix` of a transforms.json, in the order of the file.

    With `relative`, as seen from the first camera: inverse(first) · pose. InputError naming what is wrong in the file.
    """
    try:
        frames = json.loads(Path(path).read_text(encoding="utf-8"))["frames"]
        poses = np.array([frame["transform_matrix"] for frame in frames], np.float64)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except KeyError as error:
        raise InputError(f"{path} lacks the key {error}; expected are frames[i].transform_matrix") from error
    except (ValueError, TypeError) as error:  # no JSON, or other types of values
        raise InputError(f"{path} holds no list of poses ({error}); expected are frames[i].transform_matrix") from error
    if poses.shape[1:] != (4, 4) or not np.isfinite(poses).all():
        raise InputError(f"{path}: every transform_matrix must be 4x4 and finite, found shape {poses.shape[1:]}")
    if relative:
        if np.linalg.matrix_rank(poses[0]) < 4:
            raise InputError(f"{path}: the first transform_matrix has no inverse; poses cannot be relative to it")
        poses = np.linalg.inv(poses[0]) @ poses
    return poses.astype(np.float32)


# ---- Projection ----


def check_projection(size: tuple[int, int], projection: str) -> None:
    """InputError for an unknown projection, a size (H, W) that is not positive, or a ball that is not square."""
    if projection not in PROJECTIONS:
        raise unknown("projection", projection, PROJECTIONS)
    if min(size) < 1:
        raise InputError(f"environment size {size[0]}x{size[1]} is not positive")
    if projection == "ball" and size[0] != size[1]:
        raise InputError(f"environment size {size[0]}x{size[1]} is not square, as projection 'ball' needs it")


@partial(jax.jit, static_argnames=("size", "projection"))
def project(
    cube: Float32[Array, "6 n n 3"],
    size: tuple[int, int],
    rotations: Float32[ArrayLike, "f 3 3"],
    angles: Float32[ArrayLike, "f"],
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
    return srgb_curve(jnp.clip(x * (1 + x / 16**2) / (1 + x), 0, 1))


def log_curve(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """log(1 + x), then sRGB: [0, 10000] to [0, 1], cut off above."""
    return jnp.clip(srgb_curve(jnp.log1p(x) / jnp.log1p(10000.0)), 0, 1)
