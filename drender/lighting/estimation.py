"""Estimate the distant light of a clip from its pixels and G-buffers, by robust non-negative least squares.

A picture is linear in the light. With normal n, view direction v and BRDF f, directions ω_j of solid angle Δω_j,
visibility V, and radiance L_j of the light or B_pj of a blocking surface, a pixel shows

    rgb_p = Σ_j f(n_p, v_p, ω_j) max(0, n_p · ω_j) Δω_j (V_pj L_j + (1 − V_pj) B_pj).

The depth buffer shows which directions are blocked, and the picture the radiance B of the blocking surface. Pixels
that contradict the model lose weight from round to round. Pixels without a surface show the light itself.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Float32
from scipy.ndimage import binary_dilation

from drender.errors import InputError
from drender.lighting.brdf import light_kernels
from drender.lighting.camera import camera_rotations
from drender.lighting.latlong_grid import pixel_directions, pixel_index, resize_latlong, smoothness_matrix
from drender.lighting.visibility import Frame, find_blockers, nearest_distance
from drender.media.color import LUMINANCE, linear_to_srgb, srgb_to_linear
from drender.media.encodings import check_values, decode_normal

DEFAULT_FOV = 50.0  # degrees
MAX_FRAMES = 8  # that are used, evenly spaced
MAX_SIDE = 96  # of a used frame; larger ones are subsampled
MAX_PIXELS = 3000  # with a surface, of all frames together
GRIDS = ((16, 32), (32, 64))  # rows and columns of the directions, first coarse, then fine
ROUNDS = (10, 1)  # of re-weighting on each grid
STEPS = 100  # of projected gradient descent in each round
SATURATED = 0.985  # linear, 253 of 255 in sRGB: from here on pixels are lower bounds of the radiance
BLACK = 1e-5  # linear mean luminance; 0.0003 is 1 of 255 in sRGB
BACKGROUND_DEPTH = 0.99
# Weights of the terms beside the pixels' squared errors, for pixels of mean luminance 1.
SMOOTHNESS = 3e-3  # squared differences of neighboring directions, relative to their radiance
PRIOR = 3e-4  # distance from a light that grows brighter from bottom to top
COLOR = 3e-3  # distance from the mean color
BACKGROUND = 0.02  # distance from the background
SLOPE = 0.9  # of the prior: the zenith has 1 + SLOPE, the nadir 1 − SLOPE


def estimate_environment(
    rgb: Float[np.ndarray, "f h w 3"], buffers: Mapping[str, Float[np.ndarray, "f _h _w 3"]], fov: float | None = None,
    poses: ArrayLike | None = None, size: tuple[int, int] = (32, 64),
) -> Float32[np.ndarray, "H W 3"]:  # fmt: skip
    """Return the distant light of a clip as a lat-long map of linear radiance.

    `environment_maps(result, poses=poses)` lights the G-buffers as the clip is lit. The light stands still in the world
    axes of `poses`; without them camera and light stand still. InputError if a buffer is missing or has another shape,
    an argument is out of range, no pixel shows a surface, or all of those are saturated or black.

    Args:
      rgb: sRGB in [0, 1].
      buffers: in [0, 1], as from the inverse renderer. Basecolor and normal are required. Missing roughness counts as
        0.5 and missing metallic as 0. Without depth no pixel is background, and nothing casts shadows.
      fov: vertical field of view in degrees; None: 50.
      poses: camera-to-world matrices, OpenGL axes.
      size: height and width of the result. Details finer than 32×64 are not resolved.
    """
    frames = _read_frames(rgb, buffers, fov, poses)
    if min(size) < 1:
        raise InputError(f"environment size {size[0]}x{size[1]} is not positive")
    rng = np.random.default_rng(0)
    parts = zip(*(_sample(frame, MAX_PIXELS // len(frames), rng) for frame in frames), strict=True)
    samples = _Samples(*map(np.concatenate, parts))
    if not len(samples.seen):
        raise InputError("no pixel shows a surface (depth below 1); give a clip with a foreground, or its right depth")
    if (samples.seen >= SATURATED).all():
        raise InputError("all pixels of the surfaces are saturated; give a clip with a lower exposure")
    if (samples.seen @ LUMINANCE).mean() < BLACK:
        raise InputError("all pixels of the surfaces are black; give a clip with a higher exposure")
    return resize_latlong(_solve(samples), size)


def shade(
    light: Float[np.ndarray, "_H _W 3"], buffers: Mapping[str, Float[np.ndarray, "f _h _w 3"]],
    fov: float | None = None, poses: ArrayLike | None = None,
) -> Float32[np.ndarray, "f _ _ 3"]:  # fmt: skip
    """Return sRGB frames of G-buffers under a light of `estimate_environment`, to judge it by eye.

    Shadows are missing. Of more than MAX_FRAMES frames some are shown, and more than MAX_SIDE pixels are subsampled.
    """
    light = resize_latlong(np.asarray(light, np.float32), GRIDS[-1]).reshape(-1, 3)
    directions, solid_angles = pixel_directions(*GRIDS[-1])
    power = light * solid_angles[:, None]
    images = []
    for frame in _read_frames(buffers["basecolor"], buffers, fov, poses):
        rows = []
        for row in range(len(frame.views)):  # to bound memory
            surface = frame.surface(row)
            kernels = light_kernels(*surface, directions)
            lit = np.stack([kernel @ power[:, c] for c, kernel in enumerate(kernels)], axis=-1)
            shown = light[pixel_index(-surface[1], GRIDS[-1])]
            rows.append(np.where(frame.empty[row, :, None], shown, lit))
        images.append(linear_to_srgb(np.stack(rows)))
    return np.stack(images)


def check_fov(fov: float | None) -> None:
    """Raise InputError unless the vertical field of view, in degrees, is possible or None."""
    if fov is not None and not 0 < fov < 180:
        raise InputError(f"field of view {fov:g} must be more than 0 and less than 180 degrees")


# --- pixels -----------------------------------------------------------------------------------------------------------


class _Samples(NamedTuple):
    """Pixels with a surface [p …], and those without [q 3], in world axes, with linear colors."""

    normals: np.ndarray
    views: np.ndarray
    basecolor: np.ndarray
    roughness: np.ndarray
    metallic: np.ndarray
    seen: np.ndarray
    visible: np.ndarray  # this and the next as from `find_blockers`
    bounced: np.ndarray
    directions: np.ndarray  # of the pixels without a surface
    background: np.ndarray  # their radiance


def _read_frames(rgb, buffers, fov, poses) -> list[Frame]:
    """Return the frames that are used, subsampled; raise InputError as `estimate_environment`."""
    if missing := [name for name in ("basecolor", "normal") if name not in buffers]:
        raise InputError(f"buffer {' and '.join(missing)} is missing, without which no light can be estimated; add it")
    if rgb.ndim != 4 or rgb.shape[-1] != 3:
        raise InputError(f"rgb has shape {rgb.shape}; expected frames, height, width, 3 channels")
    for name, images in buffers.items():
        if images.shape != rgb.shape:
            raise InputError(f"{name} has shape {images.shape} and rgb {rgb.shape}; give both the same frames and size")
    check_fov(fov)
    num_frames, height, width, _ = rgb.shape
    rotations = camera_rotations(num_frames, poses=poses)
    stride = -(-max(height, width) // MAX_SIDE)
    subsampled = tuple(np.s_[min(stride, side) // 2 :: stride] for side in (height, width))
    chosen = np.unique(np.linspace(0, num_frames - 1, min(num_frames, MAX_FRAMES)).round().astype(int))
    images = {
        name: check_values(name, np.stack([np.asarray(x[i][subsampled]) for i in chosen]))
        for name, x in {**buffers, "rgb": rgb}.items()
    }
    normals = decode_normal(images["normal"])
    constant = lambda value: np.full_like(normals, value)
    roughness, metallic = images.get("roughness", constant(0.5)), images.get("metallic", constant(0.0))
    depth = images.get("depth", constant(0.0))[..., 0]
    empty = (depth >= BACKGROUND_DEPTH) & (normals[..., 2] > 0.95)  # as far as depth goes, with normals to the camera
    rays = camera_rays(height, width, DEFAULT_FOV if fov is None else fov)[subsampled]
    views = -rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    nearest = nearest_distance(depth, normals, rays, empty)
    seen, basecolor = srgb_to_linear(images["rgb"]), srgb_to_linear(images["basecolor"])
    stacks = (seen, normals, depth, empty, basecolor, roughness[..., :1], metallic[..., :1], rotations[chosen])
    return [Frame(*frame, rays, views, nearest) for frame in zip(*stacks, strict=True)]


def camera_rays(height: int, width: int, fov: float) -> Float32[np.ndarray, "h w 3"]:
    """Return the directions of a camera's pixels, with z = −1."""
    y, x = np.meshgrid(height - 1 - 2 * np.arange(height), 2 * np.arange(width) + 1 - width, indexing="ij")
    tangent = np.tan(np.deg2rad(fov) / 2) / height
    return np.stack([x * tangent, y * tangent, np.full(x.shape, -1.0)], axis=-1).astype(np.float32)


def _sample(frame: Frame, count: int, rng: np.random.Generator) -> _Samples:
    """Return the background, and up to `count` pixels with a surface, of which rare normals are drawn more often."""
    empty, facing = frame.empty, (frame.normals * frame.views).sum(-1) > 0.05
    # The pixels next to the background show a part of it.
    rows, columns = np.nonzero(facing & ~binary_dilation(empty, np.ones((3, 3))))
    if not len(rows):
        rows, columns = np.nonzero(facing & ~empty)
    if len(rows):
        bins = np.round((frame.normals[rows, columns] + 1) * 4).astype(int) @ [81, 9, 1]
        _, kinds, sizes = np.unique(bins, return_inverse=True, return_counts=True)
        share = 1 / np.sqrt(sizes[kinds])
        drawn = rng.choice(len(rows), min(count, len(rows)), replace=False, p=share / share.sum())
        rows, columns = rows[drawn], columns[drawn]
    directions = pixel_directions(*GRIDS[0])[0] @ frame.rotation
    blockers = find_blockers(frame, rows, columns, directions)
    background = -frame.views[empty] @ frame.rotation.T, frame.seen[empty]
    return _Samples(*frame.surface((rows, columns)), frame.seen[rows, columns], *blockers, *background)


# --- solution ---------------------------------------------------------------------------------------------------------


def _solve(samples: _Samples) -> Float32[np.ndarray, "H W 3"]:
    """Return the light on the last of GRIDS."""
    scale = float((samples.seen @ LUMINANCE).mean()) + 1e-6  # the weights of the terms suppose a mean of 1
    light, bounced = np.ones((*GRIDS[0], 3), np.float32), None
    for grid, rounds in zip(GRIDS, ROUNDS, strict=True):
        directions, solid_angles = pixel_directions(*grid)
        kernels = light_kernels(*samples[:5], directions) * solid_angles
        if bounced is None:  # light of known radiance
            bounced = np.einsum("cpj,pjc->pc", kernels, samples.bounced)
        kernels *= resize_latlong(samples.visible.T.reshape(*GRIDS[0], -1), grid).reshape(len(directions), -1).T
        pixels = kernels, (samples.seen - bounced) / scale, samples.seen >= SATURATED
        background = _average_background(samples, grid, scale)
        light = resize_latlong(light, grid).reshape(-1, 3)
        for _ in range(rounds):
            light = _improve(light, grid, pixels, background)
        light = light.reshape(*grid, 3)
    return light * scale


def _improve(
    light: Float32[np.ndarray, "j 3"], grid: tuple[int, int], pixels: tuple[np.ndarray, ...], background: tuple
) -> Float32[np.ndarray, "j 3"]:
    """Return a better light: weigh every equation by how the present light fulfills it, and solve.

    Args:
      pixels: kernels [3 p j] that times the light give the target [p 3], or more where it is saturated [p 3].
      background: of `_average_background`.
    """
    kernels, target, saturated = pixels
    background_share, radiance, clipped = background
    directions, solid_angles = pixel_directions(*grid)
    share, luminance = solid_angles / solid_angles.sum(), light @ LUMINANCE
    mean = share @ luminance + 1e-6
    tint = share @ light / mean
    prior = (1 + SLOPE * directions[:, 1]) * mean
    prior_weight, color_weight = PRIOR * share / (prior + 0.05), COLOR * share / (luminance + 0.05)
    smoothness = SMOOTHNESS * smoothness_matrix(grid, luminance)
    residual = np.einsum("cpj,jc->pc", kernels, light) - target
    weights = _robust_weights(residual @ LUMINANCE)[:, None] * ~(saturated & (residual > 0))
    shown_weights = BACKGROUND * background_share * ~(clipped & (light > radiance))
    result = np.empty_like(light)
    for c in range(3):
        root = np.sqrt(weights[:, c] / len(weights))
        kernel = kernels[c] * root[:, None]
        matrix = kernel.T @ kernel + smoothness
        matrix[np.diag_indices(len(matrix))] += prior_weight + color_weight + shown_weights[:, c]
        vector = kernel.T @ (root * target[:, c]) + shown_weights[:, c] * radiance[:, c]
        vector += (prior_weight * prior + color_weight * luminance) * tint[c]
        result[:, c] = _minimize(matrix, vector, light[:, c])
    return result


def _robust_weights(residual: Float32[np.ndarray, " p"]) -> Float32[np.ndarray, " p"]:
    """Return weights of pixels. Where the prediction is too bright, a shadow is likely, so the weight falls faster."""
    ratio = residual / (1.5 * np.median(np.abs(residual)) + 0.01)
    return np.where(ratio > 0, 1 / (1 + ratio**2), 1 / np.maximum(1, -ratio / 1.5)).astype(np.float32)


def _minimize(
    matrix: Float32[np.ndarray, "j j"], vector: Float32[np.ndarray, " j"], start: Float32[np.ndarray, " j"]
) -> Float32[np.ndarray, " j"]:
    """Return the x ≥ 0 of least xᵀ·matrix·x/2 − vector·x, by accelerated projected gradient descent with restarts."""
    unit = 1 / np.sqrt(np.diag(matrix))  # the diagonal preconditions
    matrix, vector = matrix * unit * unit[:, None], vector * unit
    largest = np.ones(len(matrix), np.float32)
    for _ in range(8):  # power iteration
        largest = matrix @ (largest / np.linalg.norm(largest))
    rate = np.float32(1 / (1.1 * np.linalg.norm(largest)))
    x = ahead = start / unit
    momentum = 1.0
    for _ in range(STEPS):
        new = np.maximum(ahead - rate * (matrix @ ahead - vector), 0)
        momentum = 1.0 if (ahead - new) @ (new - x) > 0 else momentum
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead, x, momentum = new + np.float32((momentum - 1) / following) * (new - x), new, following
    return x * unit


def _average_background(samples: _Samples, grid: tuple[int, int], scale: float) -> tuple[np.ndarray, ...]:
    """Return, by direction, the share of the background pixels [j 1], their mean [j 3], and if most saturate [j 3]."""
    index = pixel_index(samples.directions, grid)

    def total(values):
        sums = np.zeros((grid[0] * grid[1], values.shape[1]), np.float32)
        np.add.at(sums, index, values)
        return sums

    counts = total(np.ones((len(index), 1), np.float32))
    mean = lambda values: total(values) / np.maximum(counts, 1)
    saturated = mean((samples.background >= SATURATED).astype(np.float32)) > 0.5
    return counts / max(len(index), 1), mean(samples.background / scale), saturated
