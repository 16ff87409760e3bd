"""Build the parametric shapes of synthetic scenes: a family maps every seed to a closed mesh."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from drender.synthetic.meshes import Mesh, centered, triangle_mesh, unit


def parametric(family: str, seed: int) -> Mesh:
    """Return the member of a family of `FAMILIES` that `seed` selects."""
    return FAMILIES[family](np.random.default_rng(seed))


def plane(half: float, round_: bool, repeat: float = 1.0) -> Mesh:
    """Return a square (or disc) in y = 0 that faces up, of half-width (or radius) `half`, its texture repeated."""
    angle = np.linspace(0, 2 * np.pi, 65 if round_ else 5)[:-1] + np.pi / 4
    rim = np.stack([np.sin(angle), np.zeros_like(angle), np.cos(angle)], axis=-1) * half * (1 if round_ else 2**0.5)
    corners = np.stack([np.zeros_like(rim), rim, np.roll(rim, -1, axis=0)], axis=1)
    return triangle_mesh(corners, (corners[..., [0, 2]] / (2 * half) + 0.5) * repeat)


# --- Surfaces ---


def lathe(outline: Float[np.ndarray, "u 2"], profile: Float[np.ndarray, "v 2"], twist: float = 0.0) -> Mesh:
    """Return the solid whose cross-section at height y is a closed outline times a scale.

    Args:
      outline: points (x, z), counter-clockwise from above; a circle gives a solid of revolution.
      profile: pairs (scale, y) from the bottom up; level parts are caps, textured from above.
      twist: rotation of the top against the bottom, in radians.
    """
    outline = np.concatenate([outline, outline[:1]])
    height = (profile[:, 1] - profile[0, 1]) / max(np.ptp(profile[:, 1]), 1e-9)
    c, s = np.cos(twist * height)[:, None], np.sin(twist * height)[:, None]
    x, z = outline[:, 0] * profile[:, :1], outline[:, 1] * profile[:, :1]
    level = np.broadcast_to(profile[:, 1:], x.shape)
    return _grid_mesh(np.stack([c * x + s * z, level, c * z - s * x], axis=-1))


def _sweep(curve: Float[np.ndarray, "u 3"], radius: Float[np.ndarray, " u"], closed: bool, sides: int = 20) -> Mesh:
    """Return a round tube along a curve; the ends of an open curve are pointed."""
    if closed:
        curve, radius = np.concatenate([curve, curve[:1]]), np.append(radius, radius[0])
        tangent = np.gradient(np.concatenate([curve[-2:-1], curve, curve[1:2]]), axis=0)[1:-1]
    else:
        tangent = np.gradient(curve, axis=0)
        radius = radius * np.clip(np.minimum(np.arange(len(curve)), np.arange(len(curve))[::-1]) / 2, 0, 1)
    tangent = unit(tangent)
    # Derive the frame from y (from x where the tangent is steep), so that it hardly twists along the curve.
    across = unit(np.cross(tangent, [0.0, 1.0, 0.0]) + 1e-3 * np.cross(tangent, [1.0, 0.0, 0.0]))
    upward = np.cross(across, tangent)
    angle = np.linspace(0, 2 * np.pi, sides + 1)[:, None, None]
    return _grid_mesh(curve + radius[:, None] * (np.cos(angle) * across + np.sin(angle) * upward))


def _grid_mesh(points: Float[np.ndarray, "v u 3"]) -> Mesh:
    """Return the surface through a grid of points; u and v follow arc length, level faces are projected from above."""
    points = centered(points)
    uv = np.stack([_arc_length(points, axis=1), _arc_length(points, axis=0)], axis=-1)
    corners, uvs = _triangles(points), _triangles(uv)
    level = np.ptp(corners[..., 1], axis=1, keepdims=True)[..., None] < 1e-6
    uvs = np.where(level, corners[..., [0, 2]] / 2 + 0.5, uvs)
    six_volumes = np.einsum("fi,fi->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2]))
    if six_volumes < 0:  # inside out
        corners, uvs = corners[:, ::-1], uvs[:, ::-1]
    return triangle_mesh(corners, uvs)


def _triangles(grid: Float[np.ndarray, "v u c"]) -> Float[np.ndarray, "f 3 c"]:
    """Return the corners of two triangles per cell of a grid."""
    a, b, c, d = grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]
    halves = np.stack([np.stack([a, b, c], axis=-2), np.stack([a, c, d], axis=-2)])
    return halves.reshape(-1, 3, grid.shape[-1])


def _arc_length(points: Float[np.ndarray, "v u 3"], axis: int) -> Float[np.ndarray, "v u"]:
    """Return the position of every point along the longest line of the grid, from 0 to 1."""
    steps = np.linalg.norm(np.diff(points, axis=axis), axis=-1)
    longest = np.take(steps, np.argmax(steps.sum(axis)), axis=1 - axis)
    along = np.concatenate([[0.0], np.cumsum(longest)]) / longest.sum()
    return np.broadcast_to(along[:, None] if axis == 0 else along, points.shape[:2])


# --- Outlines and profiles ---


def superellipse(points: int = 64, power: float = 2.0) -> Float[np.ndarray, "u 2"]:
    """Return points of the superellipse |x|ᵖ + |z|ᵖ = 1; a circle by default."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False) + np.pi / points
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([np.sign(s) * np.abs(s) ** (2 / power), np.sign(c) * np.abs(c) ** (2 / power)], axis=-1)


def _polygon(radii: Float[np.ndarray, " u"]) -> Float[np.ndarray, "u 2"]:
    angle = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1) * radii[:, None]


def arch(height: float, power: float = 2.0, points: int = 33) -> Float[np.ndarray, "v 2"]:
    """Return the profile that turns a circle into an ellipsoid."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, points)
    c, s = np.abs(np.cos(angle)), np.sin(angle)
    c[[0, -1]] = 0
    return np.stack([c ** (2 / power), np.sign(s) * np.abs(s) ** (2 / power) * height], axis=-1)


def _capped(*profile: tuple) -> Float[np.ndarray, "v 2"]:
    """Return the profile through points (scale, y), capped at both ends."""
    return np.array([(0.0, profile[0][1]), *profile, (0.0, profile[-1][1])])


def _spline(knots: Float[np.ndarray, " k"], points: int = 40) -> Float[np.ndarray, " v"]:
    """Interpolate equally spaced values by cosine steps."""
    t = np.linspace(0, len(knots) - 1, points)
    i = np.minimum(t.astype(int), len(knots) - 2)
    s = (1 - np.cos(np.pi * (t - i))) / 2
    return knots[i] * (1 - s) + knots[i + 1] * s


# --- Families ---


def _cube(rng: np.random.Generator) -> Mesh:
    sides = rng.uniform(0.5, 1, 3) if rng.random() < 0.6 else np.ones(3)
    square = np.array([[1, -1], [1, 1], [-1, 1], [-1, -1]]) * sides[:2]
    return lathe(square, _capped((1, -sides[2]), (1, sides[2])))


def _sphere(rng: np.random.Generator) -> Mesh:
    return lathe(superellipse(), arch(rng.uniform(0.5, 1.6) if rng.random() < 0.3 else 1.0))


def _cylinder(rng: np.random.Generator) -> Mesh:
    height = rng.uniform(0.3, 2.5)
    return lathe(superellipse(), _capped((1, 0), (1, height)))


def _cone(rng: np.random.Generator) -> Mesh:
    top = rng.choice([0.0, rng.uniform(0.2, 0.8)])
    outline = superellipse() if rng.random() < 0.5 else _polygon(np.ones(rng.integers(3, 7)))
    return lathe(outline, _capped((1, 0), (top, rng.uniform(0.8, 2.5))))


def _torus(rng: np.random.Generator) -> Mesh:
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    curve = np.stack([np.sin(angle), np.zeros(64), np.cos(angle)], axis=-1)
    return _sweep(curve, np.full(64, rng.uniform(0.15, 0.55)), closed=True, sides=32)


def _superellipsoid(rng: np.random.Generator) -> Mesh:
    outline, profile = rng.uniform(1.2, 8, 2)
    return lathe(superellipse(96, outline), arch(rng.uniform(0.6, 1.4), profile, 49))


def _prism(rng: np.random.Generator) -> Mesh:
    bevel, height = rng.uniform(0, 0.25), rng.uniform(0.5, 2)
    outline = _polygon(np.ones(rng.choice([3, 5, 6, 8])))
    return lathe(outline, _capped((1 - bevel, 0), (1, bevel), (1, height - bevel), (1 - bevel, height)))


def _star(rng: np.random.Generator) -> Mesh:
    points, height = rng.integers(4, 9), rng.uniform(0.3, 1.2)
    outline = _polygon(np.tile([1, rng.uniform(0.4, 0.75)], points))
    return lathe(outline, _capped((1, 0), (rng.uniform(0.6, 1), height)))


def _vase(rng: np.random.Generator) -> Mesh:
    radii = _spline(rng.uniform(0.25, 1, rng.integers(4, 7)))
    return lathe(superellipse(), _capped(*zip(radii, np.linspace(0, rng.uniform(1.2, 3), len(radii)), strict=True)))


def _helix(rng: np.random.Generator) -> Mesh:
    turns, pitch = rng.uniform(2, 4), rng.uniform(0.7, 1.2)
    t = np.linspace(0, turns, int(turns * 40))
    curve = np.stack([np.sin(2 * np.pi * t), pitch * t, np.cos(2 * np.pi * t)], axis=-1)
    return _sweep(curve, np.full(len(t), rng.uniform(0.15, 0.28)), closed=False)


def _pebble(rng: np.random.Generator) -> Mesh:
    """Return a ball dented by a few plane waves."""
    polar, azimuth = np.linspace(np.pi, 0, 49)[:, None], np.linspace(0, 2 * np.pi, 97)
    ring = np.sin(polar)
    ring[[0, -1]], azimuth[-1] = 0, 0  # close the poles and the seam exactly, not to within 1e-16
    ball = np.stack(np.broadcast_arrays(ring * np.sin(azimuth), np.cos(polar), ring * np.cos(azimuth)), axis=-1)
    waves, phases = rng.normal(0, 2.2, (6, 3)), rng.uniform(0, 2 * np.pi, 6)
    dents = np.sin(np.einsum("vuc,kc->vuk", ball, waves) + phases).mean(axis=-1)
    return _grid_mesh(ball * (1 + rng.uniform(0.2, 0.7) * dents[..., None]) * rng.uniform(0.6, 1, 3))


def _knot(rng: np.random.Generator) -> Mesh:
    """Return a torus knot."""
    p, q = ((2, 3), (3, 2), (2, 5), (3, 4))[rng.integers(4)]
    t = np.linspace(0, 2 * np.pi, 240, endpoint=False)
    ring = 1 + rng.uniform(0.35, 0.5) * np.cos(q * t)
    curve = np.stack([ring * np.sin(p * t), 0.5 * np.sin(q * t), ring * np.cos(p * t)], axis=-1)
    return _sweep(curve, np.full(240, rng.uniform(0.1, 0.22)), closed=True)


def _gear(rng: np.random.Generator) -> Mesh:
    outline = _polygon(np.tile([1, 1, *[rng.uniform(0.7, 0.85)] * 2], rng.integers(7, 14)))
    height = rng.uniform(0.2, 0.7)
    rim = [(0.6, 0.15 * height), (0.7, 0), (1, 0)]
    return lathe(outline, _capped(*rim, *((scale, height - y) for scale, y in rim[::-1])))


def _goblet(rng: np.random.Generator) -> Mesh:
    """Return a foot, a stem and a hollow bowl."""
    foot, stem, bowl, wall = rng.uniform(0.5, 0.8), rng.uniform(0.08, 0.2), rng.uniform(0.6, 0.9), 0.08
    angle = np.linspace(-np.pi / 2, rng.uniform(0, 0.5), 16)
    cup = np.stack([np.maximum(bowl * np.cos(angle), stem), 1.2 + bowl * (1 + np.sin(angle))], axis=-1)
    inside = (cup - [0, 1.2 + bowl]) * (1 - wall / bowl) + [0, 1.2 + bowl]
    inside[0, 0] = 0
    return lathe(superellipse(), np.concatenate([[(0, 0), (foot, 0), (foot, 0.07), (stem, 0.25)], cup, inside[::-1]]))


def _column(rng: np.random.Generator) -> Mesh:
    """Return a twisted, tapered prism."""
    height, taper = rng.uniform(1.5, 3), rng.uniform(0.5, 1)
    scale, level = np.linspace(1, taper, 24), np.linspace(0, height, 24)
    outline = _polygon(np.ones(rng.integers(3, 6)))
    return lathe(outline, _capped(*zip(scale, level, strict=True)), rng.uniform(0.8, 2.5) * rng.choice([-1, 1]))


def _capsule(rng: np.random.Generator) -> Mesh:
    length, profile = rng.uniform(0.3, 2.5), arch(1.0)
    return lathe(superellipse(), profile + np.array([0, length]) * (np.arange(33) > 16)[:, None])


def _cross(rng: np.random.Generator) -> Mesh:
    a = rng.uniform(0.25, 0.5)
    quarter = np.array([[a, -a], [1, -a], [1, a]])
    turns = [quarter @ np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]) for t in -np.pi / 2 * np.arange(4)]
    return lathe(np.concatenate(turns), _capped((1, 0), (1, rng.uniform(0.3, 1.2))))


FAMILIES: dict[str, Callable[[np.random.Generator], Mesh]] = {
    build.__name__.removeprefix("_"): build
    for build in (
        _cube, _sphere, _cylinder, _cone, _torus, _superellipsoid, _prism, _star, _vase, _helix, _pebble, _knot, _gear,
        _goblet, _column, _capsule, _cross,
    )
}  # fmt: skip
PRIMITIVES = ("cube", "sphere", "cylinder")
HELD_OUT = ("knot", "gear", "goblet", "column", "capsule", "cross")  # families of the test split
