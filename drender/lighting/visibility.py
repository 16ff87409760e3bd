"""Which directions are blocked at the pixels of a frame, and by what color, from its depth buffer alone."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

# All lengths are relative to the depth range of the clip.
MARCH = 0.02 * 1.4 ** np.arange(13, dtype=np.float32)  # distances at which a ray is tested
BIAS = 0.02  # depth by which a ray must be behind a surface
THICKNESS = 0.5  # of surfaces: a ray farther behind passes them
MIN_VOTES = 50  # pairs of pixels that determine the distance of the camera
NEAREST = (0.1, 10.0)  # range of the distance of the camera


class Frame(NamedTuple):
    """A frame in camera axes, with linear colors."""

    seen: Float[np.ndarray, "h w 3"]
    normals: Float[np.ndarray, "h w 3"]
    depth: Float[np.ndarray, "h w"]  # relative, 0 near and 1 far
    empty: Bool[np.ndarray, "h w"]  # pixels without a surface
    basecolor: Float[np.ndarray, "h w 3"]
    roughness: Float[np.ndarray, "h w 1"]
    metallic: Float[np.ndarray, "h w 1"]
    rotation: Float[np.ndarray, "3 3"]  # camera to world
    rays: Float[np.ndarray, "h w 3"]  # with z = −1
    views: Float[np.ndarray, "h w 3"]  # unit vectors to the camera
    nearest: float | None  # from `nearest_distance`

    def surface(self, pixels) -> tuple[np.ndarray, ...]:
        """Return the first five arguments of `light_kernels` for some pixels, in world axes."""
        normals, views = self.normals[pixels] @ self.rotation.T, self.views[pixels] @ self.rotation.T
        return normals, views, self.basecolor[pixels], self.roughness[pixels], self.metallic[pixels]


def find_blockers(
    frame: Frame, rows: Int[np.ndarray, " p"], columns: Int[np.ndarray, " p"], directions: Float[np.ndarray, "j 3"]
) -> tuple[Float32[np.ndarray, "p j"], Float32[np.ndarray, "p j 3"]]:
    """March in some directions, in camera axes, from pixels through the depth buffer (screen-space ray tracing).

    Return 1 where a direction is free and 0 where it is blocked; and the radiance of the blocking surface, elsewhere 0.
    Beyond an edge of the picture the nearest pixel's surface continues as a plane, as floors and walls do. Nothing is
    blocked if the distance of the nearest depth is unknown.
    """
    free = np.ones((len(rows), len(directions)), np.float32)
    blocker = np.zeros((len(rows), len(directions), 3), np.float32)
    if frame.nearest is None:
        return free, blocker
    rays, normals, far = frame.rays, frame.normals, frame.depth + frame.nearest
    last = np.array(far.shape) - 1
    distance = np.where(frame.empty, np.inf, far).astype(np.float32)  # along the optical axis
    offset = np.where(frame.empty, -np.inf, far * (rays * normals).sum(-1))  # normal · point
    start = distance[rows, columns, None] * rays[rows, columns] + BIAS / 2 * normals[rows, columns]
    scale = last[0] / (rays[0, 0, 1] - rays[-1, 0, 1])  # pixels per unit of y / −z
    point, direction = np.nonzero(normals[rows, columns] @ directions.T > 0.05)
    for length in MARCH:
        position = start[point] + length * directions[direction]
        ahead = np.maximum(-position[:, 2], 1e-3)
        pixel = (position[:, :2] / ahead[:, None] - rays[0, 0, :2])[:, ::-1] * [-scale, scale]
        nearby = pixel.round().clip(0, last).astype(int)
        inside = (np.abs(pixel - nearby) <= 0.5).all(axis=1)
        row, column = nearby.T
        beyond = offset[row, column] - (position * normals[row, column]).sum(-1)
        behind = np.where(inside, ahead - distance[row, column], beyond)
        hit = (behind > BIAS) & (~inside | (behind < THICKNESS))
        free[point[hit], direction[hit]] = 0
        blocker[point[hit], direction[hit]] = frame.seen[row[hit], column[hit]]
        point, direction = point[~hit], direction[~hit]
    return free, blocker


def nearest_distance(
    depth: Float[np.ndarray, "f h w"], normals: Float[np.ndarray, "f h w 3"], rays: Float[np.ndarray, "h w 3"],
    empty: Bool[np.ndarray, "f h w"],
) -> float | None:  # fmt: skip
    """Return the distance of depth 0 from the camera, in units of the depth range, by which normals and depth agree.

    A surface of depth d at the distance a + d along the axis has points (a + d)·ray, and its normal n is perpendicular
    to their change, so ∂d = (a + d)·slope with slope = −(n · ∂ray) / (n · ray). Every pair of neighbors gives a, and
    the weighted median counts. None: too few pairs, a single row or column, or constant depth.
    """
    if min(depth.shape[1:]) < 2:
        return None
    pairs = []
    for axis in (1, 2):
        d, n, ray, gap = (np.moveaxis(x, axis, 0) for x in (depth, normals, rays[None], empty))
        step, turn = np.diff(d, axis=0), np.diff(ray, axis=0)
        d, n, ray = ((x[:-1] + x[1:]) / 2 for x in (d, n, ray))
        facing, across = (n * ray).sum(-1), (n * turn).sum(-1)
        usable = ~(gap[:-1] | gap[1:]) & (np.abs(step) < 0.1) & (facing < -0.1)  # no background, no edges
        usable &= np.abs(across) > 0.1 * np.abs(turn).max()
        pairs.append([x[usable] for x in (step, -across / np.minimum(facing, -0.1), d)])
    step, slope, depth = map(np.concatenate, zip(*pairs, strict=True))
    if len(step) < MIN_VOTES or not step.any():
        return None
    nearest = np.quantile(step / slope - depth, 0.5, weights=np.abs(slope), method="inverted_cdf")
    return float(np.clip(nearest, *NEAREST))
