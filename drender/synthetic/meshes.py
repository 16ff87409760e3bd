"""Build the triangle meshes of synthetic scenes, from corners or from users' files.

Every mesh is a list of triangles without shared vertices, centered, in the unit ball, y up, counter-clockwise seen from
outside. Normals are smooth except at creases. `uv` in [0, 1] places a texture.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import rearrange
from jaxtyping import Float, Float32

from drender.errors import InputError, first_line
from drender.files import list_dir

MESH_SUFFIXES = (".ply", ".obj", ".gltf", ".glb")
MAX_FACES = 200_000  # per file: the tracer rebuilds its acceleration structure every frame
CREASE = np.cos(np.deg2rad(40))  # cosine of the largest angle between faces that is smoothed


@dataclass(frozen=True)
class Mesh:
    """Corners of triangles: rows 3k to 3k + 2 are those of face k."""

    positions: Float32[np.ndarray, "n 3"]
    normals: Float32[np.ndarray, "n 3"]
    uv: Float32[np.ndarray, "n 2"]

    def placed(self, rotation: Float[np.ndarray, "3 3"], scale: float, center: Float[np.ndarray, "3"]) -> "Mesh":
        """Return the mesh rotated, then scaled, then moved to `center`."""
        positions, normals = self.positions @ rotation.T * scale + center, self.normals @ rotation.T
        return Mesh(positions.astype(np.float32), normals.astype(np.float32), self.uv)


# --- Corners ---


def triangle_mesh(corners: Float[np.ndarray, "f 3 3"], uv: Float[np.ndarray, "f 3 2"]) -> Mesh:
    """Return the mesh of these triangles, without degenerate ones, with creased normals."""
    area = np.linalg.norm(_face_normals(corners), axis=-1)
    corners, uv = corners[area > 1e-10], uv[area > 1e-10]
    flat = (rearrange(a, "f k c -> (f k) c").astype(np.float32) for a in (corners, _normals(corners), uv))
    return Mesh(*flat)


def _face_normals(corners: Float[np.ndarray, "f 3 3"]) -> Float[np.ndarray, "f 3"]:
    """Return face normals with the length of twice the area."""
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def _normals(corners: Float[np.ndarray, "f 3 3"]) -> Float[np.ndarray, "f 3 3"]:
    """Return per corner the area-weighted mean normal of the faces that meet there without a crease."""
    weighted = _face_normals(corners)
    facing = unit(weighted)
    places = np.round(rearrange(corners, "f k c -> (f k) c") * 1e5).astype(np.int64)
    _, vertex, valence = np.unique(places, axis=0, return_inverse=True, return_counts=True)
    vertex = vertex.ravel()
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


def _box_projection(corners: Float[np.ndarray, "f 3 3"]) -> Float[np.ndarray, "f 3 2"]:
    """Return uv by projecting each face along the axis that it faces most."""
    axis = np.argmax(np.abs(_face_normals(corners)), axis=-1)
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


# --- Files ---


def find_meshes(folder: str | Path) -> tuple[str, ...]:
    """Return the mesh files below a folder in natural order; raise InputError if there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: {'not a folder' if folder.exists() else 'folder not found'}")
    files = tuple(str(path) for path in _files(folder) if path.suffix.lower() in MESH_SUFFIXES)
    if not files:
        raise InputError(f"{folder}: no meshes found; expected files {' '.join(MESH_SUFFIXES)}")
    return files


def _files(folder: Path) -> list[Path]:
    nested = [_files(entry) if entry.is_dir() else [entry] for entry in list_dir(folder)]
    return [path for paths in nested for path in paths]


def read_mesh(path: str | Path) -> Mesh:
    """Read the geometry of a PLY, OBJ or glTF file, taken as y up; texture coordinates are box-projected.

    Raises:
      InputError: the file is unreadable, has no area, or has more than MAX_FACES triangles.
    """
    try:
        import trimesh
    except ImportError as error:
        raise InputError(f'{path}: reading meshes needs trimesh; pip install "drender[data]"') from error
    try:
        mesh = trimesh.load_mesh(path)
        corners = np.asarray(mesh.triangles, np.float64)
    except Exception as error:  # trimesh's readers raise any exception
        raise InputError(f"{path}: not a readable mesh ({first_line(error)}); remove it or export it again") from error
    if len(corners) > MAX_FACES:
        raise InputError(f"{path}: expected at most {MAX_FACES} triangles, got {len(corners)}; simplify it")
    corners = corners[np.isfinite(corners).all(axis=(1, 2))]
    if len(corners) == 0 or not np.linalg.norm(_face_normals(corners), axis=-1).any():
        raise InputError(f"{path}: no triangle has an area; remove it")
    corners = centered(corners)
    return triangle_mesh(corners, _box_projection(corners))
