"""Read users' meshes with their textures and one material per part: glTF, GLB and OBJ; PLY has geometry alone."""

import contextlib
import functools
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from jaxtyping import Float, Float32
from PIL import Image

from drender.errors import InputError, first_line
from drender.files import find_files
from drender.media.color import srgb_to_linear
from drender.synthetic.atlas import TILE, Surface
from drender.synthetic.materials import named_material, phong_roughness
from drender.synthetic.meshes import Mesh, Vector, box_projection, centered, face_normals, triangle_mesh

MESH_SUFFIXES = (".ply", ".obj", ".gltf", ".glb")
MAX_FACES = 200_000  # per file: the tracer rebuilds its acceleration structure every frame
MIN_OPACITY = 0.95  # parts below it are glass, which G-buffers of one surface per pixel cannot show: leave them out
MAX_CUTOUT = 0.05  # parts whose texture is transparent in a larger share are leaves and fences: leave them out
# Features that are not read: extensions of glTF, and textures of Wavefront's materials.
UNREAD_EXTENSIONS = ("KHR_texture_transform", "KHR_texture_basisu", "KHR_materials_transmission")
UNREAD_MAPS = ("map_pr", "map_pm", "map_d")
METAL_LUMINANCE = 0.2  # below it, a metal's color is in the specular color of a Phong material


@dataclass(frozen=True)
class Part:
    """The material of a part of a mesh."""

    name: str  # in the file, from which missing values are guessed
    basecolor: Float32[np.ndarray, "h w 3"]  # linear texture, or one color
    roughness: Float32[np.ndarray, "_h _w 1"] | None = None  # texture or one value; None if the file has none
    metallic: Float32[np.ndarray, "_h _w 1"] | None = None  # likewise
    exponent: float | None = None  # specular exponent and color of a Phong material
    specular: Vector = (0.0, 0.0, 0.0)

    def surface(self, rng: np.random.Generator) -> Surface:
        """Return basecolor, roughness and metallic as a texture of TILE pixels, or as one value if all are constant."""
        metallic, roughness = named_material(self.name, rng) or (0.0, self._unnamed_roughness(rng))
        basecolor = self.basecolor
        if metallic and self.metallic is None and basecolor.mean() < METAL_LUMINANCE < np.mean(self.specular):
            basecolor = np.float32([[self.specular]])
        scalars = ((self.roughness, roughness), (self.metallic, metallic))
        maps = [basecolor, *(np.float32([[[guess]]]) if stated is None else stated for stated, guess in scalars)]
        if all(image.shape[:2] == (1, 1) for image in maps):
            return np.concatenate(maps, axis=-1)[0, 0]
        return np.concatenate([np.broadcast_to(image, (TILE, TILE, image.shape[-1])) for image in maps], axis=-1)

    def _unnamed_roughness(self, rng: np.random.Generator) -> float:
        if self.exponent is not None and np.mean(self.specular) > 0.02:
            return float(np.clip(phong_roughness(self.exponent) + rng.uniform(-0.1, 0.1), 0.05, 1))
        return rng.uniform(0.4, 1)


@dataclass(frozen=True)
class MeshFile:
    """A mesh scaled to the unit ball, with the materials of its parts."""

    mesh: Mesh
    parts: tuple[Part, ...]  # empty if the file has no materials
    radius: float  # in the file's units
    files: tuple[Path, ...]  # the mesh's own and those that it names: materials and textures


def find_meshes(folder: str | Path) -> tuple[str, ...]:
    """Return the mesh files below a folder in natural order; raise InputError if there are none."""
    return tuple(map(str, find_files(folder, MESH_SUFFIXES, "meshes", nested=True)))


def read_mesh(path: str | Path) -> MeshFile:
    """Read a PLY, OBJ or glTF file, taken as y up, with the materials of its opaque parts.

    Faces without texture coordinates get box-projected ones. Warns of what the file states and this does not read.
    InputError if the file is unreadable, has no opaque triangle with an area, or more than MAX_FACES triangles.
    """
    try:
        import trimesh
    except ImportError as error:
        raise InputError(f'{path}: reading meshes needs trimesh; pip install "drender[data]"') from error
    try:
        files = _Companions(path)
        scene, header = trimesh.load_scene(path, resolver=files, process=False), _gltf_header(Path(path))
        pieces = list(_pieces(scene))
        solid = [piece for piece in pieces if np.linalg.norm(face_normals(piece[0]), axis=-1).any()]
        materials = list({id(material): material for _, _, material in solid}.values())
        parts = () if materials == [None] else tuple(_part(material) for material in materials)
    except Exception as error:  # trimesh's readers raise any exception
        raise InputError(f"{path}: not a readable mesh ({first_line(error)}); remove it or export it again") from error
    if (count := sum(len(corners) for corners, _, _ in pieces)) > MAX_FACES:
        raise InputError(f"{path}: expected at most {MAX_FACES} triangles, got {count}; simplify it")
    if not solid:
        required = ", ".join(header.get("extensionsRequired", ()))  # such as Draco's compression, without its package
        remedy = f"export it without {required}" if required else "remove it"
        raise InputError(f"{path}: no opaque triangle has an area; {remedy}")
    _warn_of_unread(path, scene, header, materials, files.missing)
    index = {id(material): i for i, material in enumerate(materials)}
    part = np.concatenate([np.full(len(corners), index[id(material)]) for corners, _, material in solid])
    corners, uv = (np.concatenate(arrays) for arrays in list(zip(*solid, strict=True))[:2])
    radius = float(np.linalg.norm(np.ptp(corners.reshape(-1, 3), axis=0)) / 2)
    corners = centered(corners)
    uv = np.where(np.isfinite(uv).all(axis=(1, 2), keepdims=True), uv, box_projection(corners))
    return MeshFile(triangle_mesh(corners, uv, part), parts, radius, (Path(path), *files.found))


class _Companions:
    """Read the files that a mesh names for trimesh, and list those `found` and those `missing` or unreadable."""

    def __init__(self, path: str | Path):
        self.folder, self.file_name = os.path.split(os.path.abspath(path))
        self.found: list[Path] = []
        self.missing: list[str] = []

    def get(self, name: str) -> bytes:
        plain = unquote(name).replace("\\", "/").strip()  # names in glTF are URIs; Windows has other separators
        candidates = (Path(self.folder, candidate) for candidate in (name.strip(), plain, Path(plain).name))
        with contextlib.suppress(OSError):
            if (file := next(filter(Path.is_file, candidates), None)) is not None:
                if file.suffix.lower() not in (".mtl", ".bin"):
                    Image.open(file).close()
                self.found.append(file)
                return file.read_bytes()
        self.missing.append(name)
        raise FileNotFoundError(name)

    __getitem__ = get


def _gltf_header(path: Path) -> dict:
    """Return the JSON of a glTF or GLB file; {} of another."""
    if path.suffix.lower() not in (".gltf", ".glb"):
        return {}
    with path.open("rb") as file:
        length = int.from_bytes(file.read(20)[12:16], "little") if path.suffix.lower() == ".glb" else -1
        return json.loads(file.read(length))


def _warn_of_unread(path: str | Path, scene, header: dict, materials: Sequence, missing: Sequence[str]) -> None:
    """Warn of missing files, and of what a file, or the JSON `header` of a glTF, states that is not read."""
    if missing:
        names = ", ".join(dict.fromkeys(missing))
        warnings.warn(f"{path}: files missing or unreadable: {names}; add them, textures as PNG or JPEG", stacklevel=3)
    unread = [name for name in UNREAD_EXTENSIONS if name in header.get("extensionsUsed", ())]
    physical = (material.get("pbrMetallicRoughness", {}) for material in header.get("materials", ()))
    if any(texture.get("texCoord") for values in physical for texture in values.values() if isinstance(texture, dict)):
        unread.append("a second set of texture coordinates")
    primitives = [primitive["attributes"] for mesh in header.get("meshes", ()) for primitive in mesh["primitives"]]
    used = {index for named in primitives for name, index in named.items() if name in ("POSITION", "TEXCOORD_0")}
    accessors = [header["accessors"][index] for index in used]
    if any(accessor.get("normalized") or "sparse" in accessor for accessor in accessors):
        unread.append("quantized or sparse coordinates, so that texture or place is wrong")
    unread += [name for name in UNREAD_MAPS if any(name in getattr(m, "kwargs", ()) for m in materials)]
    visuals = [geometry.visual for geometry in scene.geometry.values() if hasattr(geometry, "faces")]
    if any(x.kind in ("vertex", "face") or "color" in getattr(x, "vertex_attributes", ()) for x in visuals):
        unread.append("colors of vertices")
    if unread:
        remedy = "bake that into glTF textures, or export without"
        warnings.warn(f"{path}: not read: {', '.join(unread)}; {remedy}", stacklevel=3)


def _pieces(scene) -> Iterator[tuple[Float[np.ndarray, "f 3 3"], Float[np.ndarray, "f 3 2"], object]]:
    """Yield the opaque triangles of each node in the scene's axes, their uv (NaN if missing) and trimesh's material."""
    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph[node]
        geometry = scene.geometry[name]
        if len(faces := getattr(geometry, "faces", ())) == 0:
            continue
        material = getattr(geometry.visual, "material", None)
        if material is not None and _transparent(material):
            continue
        corners = np.asarray(geometry.vertices, np.float64)[faces] @ transform[:3, :3].T + transform[:3, 3]
        uv = getattr(geometry.visual, "uv", None)
        uv = np.full((len(geometry.vertices), 2), np.nan) if uv is None else np.asarray(uv, np.float64)
        uv = uv[faces] * [1, -1] + [0, 1]  # trimesh's v runs upward
        if np.linalg.det(transform[:3, :3]) < 0:  # a mirrored node reverses the order of the corners
            corners, uv = corners[:, ::-1], uv[:, ::-1]
        finite = np.isfinite(corners).all(axis=(1, 2))
        yield corners[finite], uv[finite], material


def _transparent(material) -> bool:
    if hasattr(material, "baseColorFactor"):
        opacity = 1.0 if material.baseColorFactor is None else material.baseColorFactor[3] / 255
        blended = material.alphaMode in ("BLEND", "MASK")
        return blended and (opacity < MIN_OPACITY or _cutout(material.baseColorTexture))
    values = {key: np.atleast_1d(value)[0] for key, value in material.kwargs.items() if key in ("d", "tr")}
    opacity = float(values["d"]) if "d" in values else 1 - float(values.get("tr", 0))
    return opacity < MIN_OPACITY or _cutout(material.image)


def _cutout(image) -> bool:
    if image is None or ("A" not in image.getbands() and "transparency" not in image.info):
        return False
    return bool((np.asarray(image.convert("RGBA"))[..., 3] < 128).mean() > MAX_CUTOUT)


def _part(material) -> Part:
    """Convert trimesh's material; a Phong texture replaces the diffuse color, a glTF texture is multiplied by it."""
    if material is None:
        return Part("", np.float32([[[0.6, 0.6, 0.6]]]))
    name = str(material.name or "")
    if not hasattr(material, "baseColorFactor"):
        color = _pixels(material.image) if material.image is not None else material.diffuse[None, None, :3] / 255
        specular = tuple(float(x) for x in srgb_to_linear(material.specular[:3] / 255))
        exponent = None if material.glossiness is None else float(material.glossiness)
        stated = [material.kwargs.get(key) for key in ("pr", "pm")]  # Wavefront's PBR extension
        physical = [None if words is None else np.array([[words[:1]]], np.float32).clip(0, 1) for words in stated]
        return Part(name, srgb_to_linear(color).astype(np.float32), *physical, exponent, specular)
    factor = np.array([255] * 4 if material.baseColorFactor is None else material.baseColorFactor)[:3] / 255
    texture = material.baseColorTexture
    color = srgb_to_linear(_pixels(texture)) if texture is not None else np.ones((1, 1, 3))
    factors = (material.roughnessFactor, material.metallicFactor)
    roughness, metallic = (np.full((1, 1, 1), 1.0 if x is None else x, np.float32) for x in factors)
    if material.metallicRoughnessTexture is not None:  # roughness in green, metallic in blue
        packed = _pixels(material.metallicRoughnessTexture).astype(np.float32)
        roughness, metallic = roughness * packed[..., 1:2], metallic * packed[..., 2:]
    return Part(name, (color * factor).astype(np.float32), roughness, metallic)


def _pixels(image) -> Float[np.ndarray, "h w c"]:
    """Return the colors of a Pillow image in [0, 1], averaged to TILE pixels."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    return np.asarray(image.convert("RGB").resize((TILE, TILE), Image.Resampling.BOX), np.float64) / 255


def part_surfaces(parts: Sequence[Part], seed: int) -> list[Surface]:
    """Return the surfaces of a file's parts; `seed` selects the values that the file lacks."""
    return [part.surface(np.random.default_rng([seed, i])) for i, part in enumerate(parts)]


# Reading is a third of the work of a scene, so keep meshes: 1 MB each as a rule, 20 MB at most.
load_mesh = functools.lru_cache(maxsize=256)(read_mesh)


@functools.cache
def mesh_outline(path: str) -> tuple[Float[np.ndarray, "k 3"], float]:
    """Return the outermost points of a mesh in the unit ball, and its radius in the file's units."""
    file = load_mesh(path)
    return outermost(file.mesh), file.radius


def outermost(mesh: Mesh) -> Float[np.ndarray, "k 3"]:
    """Return the points of a mesh that are furthest along one of many directions, the axes among them."""
    directions = np.concatenate([np.eye(3), -np.eye(3), np.random.default_rng(0).normal(size=(58, 3))])
    furthest = np.argmax(directions.astype(np.float32) @ mesh.positions.T, axis=1)
    return mesh.positions[np.unique(furthest)].astype(np.float64)
