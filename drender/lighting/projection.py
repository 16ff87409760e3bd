"""Project an HDR map to the images `env_ldr`, `env_log` and `env_nrm`.

A lat-long map is resampled to a cube map. The cube map is projected, frame by frame, to an image of all directions
around the camera. `env_ldr` shows the light through a display curve, `env_log` keeps its range, `env_nrm` holds the
direction of every pixel. Orientation and curves are those of the released models.

World axes: y up; −z is the center of the lat-long image once `rotation` has turned it, +x to the right of it. Radiance
is linear, in [0, 65504].
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import repeat
from jaxtyping import Array, ArrayLike, Float, Float32, Int

from drender.errors import InputError, unknown_name_error
from drender.lighting.latlong import LDR_WHITE, LOG_WHITE, blur_sphere, box_downsample
from drender.media.color import linear_to_srgb_jnp

CUBE_SIZE = 512
PROJECTIONS = ("frame", "ball")


# --- Cube map ---


def prefiltered(image: Float32[np.ndarray, "h w 3"], size: tuple[int, int]) -> Float32[np.ndarray, "_h _w 3"]:
    """Average a map over the pixels of images of `size` (height, width), unless it is as coarse as they are.

    A source of light smaller than a pixel then keeps its energy wherever it lies between pixel centers, so it does not
    flicker as it turns. The filter's standard deviation is half a pixel of the images or the cube map.
    """
    pitch = max(180 / size[0], 360 / size[1], 90 / CUBE_SIZE)
    height = image.shape[0]
    if height * pitch <= 180:
        return image
    averaged = box_downsample(image.astype(np.float64), int(pitch / 4 * height / 180))
    return blur_sphere(averaged.astype(np.float32), pitch / 2)


@jax.jit
def latlong_to_cube(
    image: Float32[ArrayLike, "h w 3"], orientation: Float32[ArrayLike, "3 3"]
) -> Float32[Array, "6 n n 3"]:
    """Resample a map, turned by a `light_orientation`, to a cube map: bilinear, no prefilter, both axes wrap."""
    image = jnp.asarray(image)
    height, width, _ = image.shape
    # Row vectors times the matrix: the inverse rotation, from world to map.
    directions = jnp.matmul(_cube_directions(CUBE_SIZE), orientation, precision="highest")
    x, y, z = jnp.unstack(directions, axis=-1)
    u = jnp.arctan2(x, -z) / (2 * jnp.pi) + 0.5
    v = jnp.arctan2(jnp.hypot(x, z), y) / jnp.pi  # acos(y/|d|) would lose precision near the poles
    return _bilinear(lambda i, j: image[i % height, j % width], v * height - 0.5, u * width - 0.5)


def _cube_directions(n: int, border: int = 0) -> Float32[Array, "6 m m 3"]:
    """Return unnormalized directions of the centers of n×n texels per face, and of `border` more on each side."""
    centers = (2 * jnp.arange(-border, n + border, dtype=jnp.float32) + 1) / n - 1
    t, s = jnp.meshgrid(centers, centers, indexing="ij")  # s right, t down, on the face in [−1, 1]
    one = jnp.ones_like(s)
    faces = [(one, -t, -s), (-one, -t, s), (s, one, t), (s, -one, -t), (s, -t, one), (-s, -t, -one)]
    return jnp.stack([jnp.stack(face, axis=-1) for face in faces])


def _cube_coordinates(
    directions: Float32[Array, "*b 3"],
) -> tuple[Int[Array, "*b"], Float32[Array, "*b"], Float32[Array, "*b"]]:
    """Return (face, t, s), with t and s in [−1, 1], where directions meet the cube: inverts `_cube_directions`."""
    x, y, z = jnp.unstack(directions, axis=-1)
    components = jnp.stack([x, -x, y, -y, z, -z])
    face, length = jnp.argmax(components, axis=0), jnp.max(components, axis=0)
    s = jnp.choose(face, [-z, z, x, x, x, -x], mode="clip") / length
    t = jnp.choose(face, [-y, -y, z, -z, -y, -y], mode="clip") / length
    return face, t, s


def _with_border(cube: Float32[Array, "6 n n 3"]) -> Float32[Array, "6 n+2 n+2 3"]:
    """Pad every face by one texel from its neighbors, so that bilinear lookups show no seams.

    At a corner of the cube only three texels meet; the fourth is their mean.
    """
    n = cube.shape[1]
    # The texel beyond an edge is where the direction of its center meets the neighboring face.
    face, t, s = _cube_coordinates(_cube_directions(n, border=1))
    padded = cube[face, ((t + 1) * n / 2).astype(jnp.int32), ((s + 1) * n / 2).astype(jnp.int32)]
    for row, near_row in ((0, 1), (-1, -2)):
        for column, near_column in ((0, 1), (-1, -2)):
            total = padded[:, row, near_column] + padded[:, near_row, column] + padded[:, near_row, near_column]
            padded = padded.at[:, row, column].set(total / 3)
    return padded


def _bilinear(texel: Callable, row: Float32[Array, "*b"], column: Float32[Array, "*b"]) -> Float32[Array, "*b 3"]:
    """Blend the four texels around each position; `texel(i, j)` returns `*b 3`, integers are texel centers."""
    top, left = jnp.floor(row), jnp.floor(column)
    down, right = (row - top)[..., None], (column - left)[..., None]
    i, j = top.astype(jnp.int32), left.astype(jnp.int32)
    upper = texel(i, j) * (1 - right) + texel(i, j + 1) * right
    lower = texel(i + 1, j) * (1 - right) + texel(i + 1, j + 1) * right
    return upper * (1 - down) + lower * down


# --- Projection ---


def check_projection(size: tuple[int, int], projection: str) -> None:
    """Raise InputError for an unknown projection, a size (H, W) that is not positive, or a ball that is not square."""
    if projection not in PROJECTIONS:
        raise unknown_name_error("projection", projection, PROJECTIONS)
    if min(size) < 1:
        raise InputError(f"environment size {size[0]}x{size[1]} is not positive")
    if projection == "ball" and size[0] != size[1]:
        raise InputError(f"environment size {size[0]}x{size[1]} is not square, which projection 'ball' needs")


@partial(jax.jit, static_argnames=("size", "projection"))
def project(
    cube: Float32[Array, "6 n n 3"], size: tuple[int, int], rotations: Float32[ArrayLike, "f 3 3"],
    angles: Float32[ArrayLike, " f"], projection: str = "frame",
) -> dict[str, Float32[Array, "f H W 3"]]:  # fmt: skip
    """Return the maps `env_ldr`, `env_log`, `env_nrm` of f frames in [0, 1].

    Args:
      cube: from `latlong_to_cube`.
      size: (H, W); see `check_projection`.
      rotations, angles: of the camera (`camera_rotations`) and of the light (`light_angles`).
      projection: "frame" unrolls all directions of camera space (x right, y up, z backward): +z in the center, +x right
        of it, +y at the top. "ball" shows them mirrored in a ball.
    Returns:
      `env_nrm` is n·½ + ½ of the directions n of "frame", the same in every frame, whatever the projection.
    """
    check_projection(size, projection)
    directions = _frame_directions(*size) if projection == "frame" else _ball_directions(*size)
    faces, n = _with_border(cube), cube.shape[1]

    def look(camera_and_light):
        rotation, angle = camera_and_light
        # From camera to world, and on to the cube, which holds the light as it is before its turn. The light turns by
        # −angle about y, so that light from ahead moves to the right; a lookup applies the inverse, +angle.
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        turn = jnp.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
        to_cube = jnp.matmul(turn, rotation, precision="highest")
        face, t, s = _cube_coordinates(jnp.matmul(directions, to_cube.T, precision="highest"))
        # From [−1, 1] to texels: half a texel back to their centers, one forward for the border.
        light = _bilinear(lambda i, j: faces[face, i, j], (t + 1) * n / 2 + 0.5, (s + 1) * n / 2 + 0.5)
        return ldr_curve(light), log_curve(light)

    ldr, log = jax.lax.map(look, (jnp.asarray(rotations), jnp.asarray(angles)))  # frame by frame, to bound memory
    normal = repeat(_frame_directions(*size) * 0.5 + 0.5, "h w c -> f h w c", f=len(ldr))
    return {"env_ldr": ldr, "env_log": log, "env_nrm": normal}


def _frame_directions(height: int, width: int) -> Float32[Array, "h w 3"]:
    """Return directions with rows by polar angle and columns by azimuth.

    As released, the grid includes its end points, so rows are not exactly pixel centers. The released code builds
    d = (sin·sin, cos, −sin·cos), looks up −d and flips both axes of the image, which is equivalent.
    """
    polar = jnp.pi * jnp.linspace(1 / height, 1 - 1 / height, height)[:, None]
    azimuth = jnp.pi * jnp.linspace(-1 + 1 / width, 1 - 1 / width, width)[None, :]
    up = jnp.broadcast_to(jnp.cos(polar), (height, width))
    return jnp.stack([jnp.sin(polar) * jnp.sin(azimuth), up, jnp.sin(polar) * jnp.cos(azimuth)], axis=-1)


def _ball_directions(height: int, width: int) -> Float32[Array, "h w 3"]:
    """Return the view vector ẑ reflected by a ball, 2(n·ẑ)n − ẑ; outside the disc the normal n counts as 0."""
    y, x = jnp.meshgrid(jnp.linspace(1, -1, height), jnp.linspace(-1, 1, width), indexing="ij")
    z2 = 1 - x**2 - y**2
    normal = jnp.stack([x, y, jnp.sqrt(jnp.maximum(z2, 0))], axis=-1) * (z2 >= 0)[..., None]
    return 2 * normal[..., 2:] * normal - jnp.array([0.0, 0.0, 1.0])


# --- Tone curves of linear radiance x ≥ 0 ---


def ldr_curve(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Apply Reinhard's curve with white at 16, then sRGB: [0, 16] to [0, 1], clipped above."""
    return linear_to_srgb_jnp(jnp.clip(x * (1 + x / LDR_WHITE**2) / (1 + x), 0, 1))


def log_curve(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Apply log(1 + x), then sRGB: [0, 10000] to [0, 1], clipped above."""
    return jnp.clip(linear_to_srgb_jnp(jnp.log1p(x) / jnp.log1p(LOG_WHITE)), 0, 1)
