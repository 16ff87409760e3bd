"""HDR environment → the three images that light the forward renderer.

A lat-long HDR image is resampled to a cube map, and the cube map is projected, frame by frame, to an image of all
directions around the camera. `env_ldr` shows the light through a display curve, `env_log` keeps its range, `env_nrm`
gives the direction of every pixel. Orientation and curves are those that the released models were trained with.

World axes: y up; −z is the middle of the lat-long image, +x to the right of it. Radiance is linear, in [0, 65504].
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, ArrayLike, Float, Float32, Int

from drender.errors import InputError, unknown_name_error
from drender.lighting.latlong import LDR_WHITE, LOG_WHITE
from drender.media.color import linear_to_srgb_jnp

CUBE_SIZE = 512
PROJECTIONS = ("frame", "ball")


# ---- The light over a clip ----


# ---- The cube map ----


@jax.jit
def latlong_to_cube(
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


def ldr_curve(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Reinhard's curve with white at 16, then sRGB: [0, 16] to [0, 1], cut off above."""
    return linear_to_srgb_jnp(jnp.clip(x * (1 + x / LDR_WHITE**2) / (1 + x), 0, 1))


def log_curve(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """log(1 + x), then sRGB: [0, 10000] to [0, 1], cut off above."""
    return jnp.clip(linear_to_srgb_jnp(jnp.log1p(x) / jnp.log1p(LOG_WHITE)), 0, 1)
