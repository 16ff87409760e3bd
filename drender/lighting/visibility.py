"""Which directions are blocked at the pixels of a frame, and by what color, from its depth buffer alone."""

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

# All lengths are relative to the depth range of the clip.
MARCH = 0.02 * 1.4 ** np.arange(13, dtype=np.float32)  # distances at which a ray is tested
BIAS = 0.02  # depth by which a ray must be behind a surface
THICKNESS = 0.5  # of surfaces: a ray farther behind passes them
MIN_VOTES = 50  # pairs of pixels that determine the distance of the camera
NEAREST = (0.1, 10.0)  # range of the distance of the camera


def find_blockers(
    depth: Float[np.ndarray, "h w"],
    normals: Float[np.ndarray, "h w 3"],
    rays: Float[np.ndarray, "h w 3"],
    seen: Float[np.ndarray, "h w 3"],
    empty: Bool[np.ndarray, "h w"],
    rows: Int[np.ndarray, " p"],
    columns: Int[np.ndarray, " p"],
    directions: Float[np.ndarray, "j 3"],
    nearest: float | None,
) -> tuple[Float32[np.ndarray, "p j"], Float32[np.ndarray, "p j 3"]]:
    """March from pixels through the depth buffer (screen-space ray tracing).

    Beyond an edge of the picture the nearest pixel's surface continues as a plane, as floors and walls do.

    Args:
      depth: relative, 0 near and 1 far.
      normals, rays, directions: in camera axes; rays have z = −1.
      seen: radiance.
      empty: pixels without a surface.
      rows, columns: the pixels at which rays start.
      nearest: from `nearest_distance`; None: nothing is blocked.
    Returns:
      1 where a direction is free and 0 where it is blocked; and the radiance of the blocking surface, elsewhere 0.
    """
    free = np.ones((len(rows), len(directions)), np.float32)
    blocker = np.zeros((len(rows), len(directions), 3), np.float32)
    if nearest is None:
        return free, blocker
    last = np.array(depth.shape) - 1
    distance = np.where(empty, np.inf, depth + nearest).astype(np.float32)  # along the optical axis
    offset = np.where(empty, -np.inf, (depth + nearest) * (rays * normals).sum(-1))  # normal · point
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
        behind = np.where(
            inside, ahead - distance[row, column], offset[row, column] - (position * normals[row, column]).sum(-1)
        )
        hit = (behind > BIAS) & (~inside | (behind < THICKNESS))
        free[point[hit], direction[hit]] = 0
        blocker[point[hit], direction[hit]] = seen[row[hit], column[hit]]
        point, direction = point[~hit], direction[~hit]
    return free, blocker


def nearest_distance(
    depth: Float[np.ndarray, "f h w"],
    normals: Float[np.ndarray, "f h w 3"],
    rays: Float[np.ndarray, "h w 3"],
    empty: Bool[np.ndarray, "f h w"],
) -> float | None:
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
