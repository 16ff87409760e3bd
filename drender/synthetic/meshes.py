"""Build the triangle meshes of synthetic scenes from corners.

Every mesh is a list of triangles without shared vertices, centered, in the unit ball, y up, counter-clockwise seen from
outside. Normals are smooth except at creases. Textures repeat over `uv`; v runs down the rows of the image.
"""

from dataclasses import dataclass, replace

import numpy as np
from einops import rearrange
from jaxtyping import Float, Float32, Int

CREASE = np.cos(np.deg2rad(40))  # cosine of the largest angle between faces that is smoothed
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Mesh:
    """Corners of triangles: rows 3k to 3k + 2 are those of face k."""

    positions: Float32[np.ndarray, "n 3"]
    normals: Float32[np.ndarray, "n 3"]
    uv: Float32[np.ndarray, "n 2"]
    part: Int[np.ndarray, " f"]  # index of each face's material

    @property
    def num_parts(self) -> int:
        return int(self.part.max(initial=-1)) + 1

    def placed(self, rotation: Float[np.ndarray, "3 3"], scale: float, center: Float[np.ndarray, "3"]) -> "Mesh":
        """Return the mesh rotated, then scaled, then moved to `center`."""
        positions, normals = self.positions @ rotation.T * scale + center, self.normals @ rotation.T
        return replace(self, positions=positions.astype(np.float32), normals=normals.astype(np.float32))


# --- Corners ---


def triangle_mesh(
    corners: Float[np.ndarray, "f 3 3"], uv: Float[np.ndarray, "f 3 2"], part: Int[np.ndarray, " f"] | None = None
) -> Mesh:
    """Return the mesh of these triangles, without degenerate ones, with creased normals; by default of one part."""
    part = np.zeros(len(corners), np.int32) if part is None else part
    solid = np.linalg.norm(face_normals(corners), axis=-1) > 1e-10
    corners, uv, part = corners[solid], uv[solid], part[solid]
    flat = (rearrange(a, "f k c -> (f k) c").astype(np.float32) for a in (corners, _normals(corners), uv))
    return Mesh(*flat, part)


def rectangle(corner: Vector, across: Vector, up: Vector, repeat: float) -> Mesh:
    """Return a rectangle that faces across × up; its texture repeats `repeat` times along the longer edge."""
    corner, across, up = (np.asarray(x, np.float64) for x in (corner, across, up))
    corners = corner + np.array([[0 * up, across, across + up], [0 * up, across + up, up]])
    size = np.array([np.linalg.norm(across), np.linalg.norm(up)])
    uv = np.array([[[0, 1], [1, 1], [1, 0]], [[0, 1], [1, 0], [0, 0]]]) * size / size.max() * repeat
    return triangle_mesh(corners, uv)


def face_normals(corners: Float[np.ndarray, "f 3 3"]) -> Float[np.ndarray, "f 3"]:
    """Return face normals with the length of twice the area."""
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def _normals(corners: Float[np.ndarray, "f 3 3"]) -> Float[np.ndarray, "f 3 3"]:
    """Return per corner the area-weighted mean normal of the faces that meet there without a crease."""
    weighted = face_normals(corners)
    facing = unit(weighted)
    places = np.round(rearrange(corners, "f k c -> (f k) c") * 1e5).astype(np.int64)
    keys = (places - places.min(axis=0)) @ [1 << 42, 1 << 21, 1]  # one integer per place sorts faster than a row
    _, vertex, valence = np.unique(keys, return_inverse=True, return_counts=True)
    around = np.argsort(vertex, kind="stable")  # corners grouped by vertex
    # Enumerate all pairs of a corner and a face around its vertex.
    count = valence[vertex]
    corner = np.repeat(np.arange(len(vertex)), count)
    first = (np.cumsum(valence) - valence)[vertex]
    nth = np.arange(len(corner)) - np.repeat(np.cumsum(count) - count, count)
    face = around[np.repeat(first, count) + nth] // 3
    smooth = np.einsum("pc,pc->p", facing[corner // 3], facing[face]) > CREASE
    sums = [np.bincount(corner[smooth], weighted[face[smooth], c], len(vertex)) for c in range(3)]
    return unit(rearrange(np.stack(sums, axis=-1), "(f k) c -> f k c", k=3))


def box_projection(corners: Float[np.ndarray, "f 3 3"]) -> Float[np.ndarray, "f 3 2"]:
    """Return uv by projecting each face along the axis that it faces most."""
    axis = np.argmax(np.abs(face_normals(corners)), axis=-1)
    kept = np.array([[2, 1], [0, 2], [0, 1]])[axis]
    return np.take_along_axis(corners, kept[:, None, :].repeat(3, axis=1), axis=-1) / 2 + 0.5


def centered(points: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3"]:
    """Move the center of the bounding box to the origin and scale the furthest point to distance 1."""
    flat = points.reshape(-1, 3)
    points = points - (flat.min(axis=0) + flat.max(axis=0)) / 2
    return points / np.linalg.norm(points, axis=-1).max()


def unit(vectors: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 3"]:
    """Normalize vectors; zero stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
