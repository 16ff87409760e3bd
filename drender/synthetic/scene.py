"""Describe synthetic clips, and draw scenes of solids from a seed, after the published recipe.

A scene of solids has up to three objects and up to three primitives on a plane or in the air that never intersect, one
motion, and two lights; `layouts.py` draws scenes of everyday objects. World axes are those of
`lighting/projection.py`: y up, the plane is y = 0. Time runs from 0 at the first frame to 1 at the last. Angles are in
radians.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32
from numpy.random import Generator
from scipy.spatial.transform import Rotation

from drender.synthetic import environments as skies
from drender.synthetic import shapes
from drender.synthetic.materials import MaterialMix, random_material
from drender.synthetic.meshes import Mesh, Vector, rectangle
from drender.synthetic.textures import PictureMaterial

MOTIONS = ("orbit", "oscillation", "light", "rotation", "translation")
SPLITS = ("all", "train", "test")
GAP = 0.04  # least distance between the bounding balls of objects


@dataclass(frozen=True)
class AssetSplit:
    """The assets of a split: names of shape families, paths of meshes, names of environments, paths of textures."""

    families: tuple[str, ...]
    meshes: tuple[str, ...]
    environments: tuple[str, ...]
    textures: tuple[str, ...]


@dataclass(frozen=True)
class SceneObject:
    """A shape in the unit ball that is rotated, scaled by `radius` and moved; on a plane it is set down on it."""

    shape: str  # family of `shapes.FAMILIES`, or path of a mesh file
    seed: int  # selects the member of the family
    material: MaterialMix
    radius: float
    position: Vector = (0.0, 0.0, 0.0)
    tilt: tuple[float, float] = (0.0, 0.0)  # about x, then z
    yaw: float = 0.0
    spin: float = 0.0  # yaw added by the last frame
    shift: Vector = (0.0, 0.0, 0.0)  # translation from the first frame to the last
    own_material: bool = False  # use the materials of the mesh file, if it has any, instead of `material`

    def center(self, time: float) -> Float[np.ndarray, "3"]:
        return np.array(self.position) + time * np.array(self.shift)

    def rotation(self, time: float) -> Float[np.ndarray, "3 3"]:
        return Rotation.from_euler("YZX", (self.yaw + time * self.spin, self.tilt[1], self.tilt[0])).as_matrix()


@dataclass(frozen=True)
class Plane:
    """The ground: a square or a disc."""

    half: float  # half-width or radius
    round: bool
    material: MaterialMix | PictureMaterial
    repeat: float = 1.0  # repetitions of the texture

    def mesh(self) -> Mesh:
        return shapes.plane(self.half, self.round, self.repeat)


@dataclass(frozen=True)
class Wall:
    """A rectangle from `corner` along two edges."""

    corner: Vector
    across: Vector
    up: Vector
    material: MaterialMix | PictureMaterial
    repeat: float  # repetitions of the texture along the longer edge

    def mesh(self) -> Mesh:
        return rectangle(self.corner, self.across, self.up, self.repeat)


@dataclass(frozen=True)
class Camera:
    """A camera that looks at `target` from `distance`, `azimuth` (0: from +z) and `elevation` above the horizon."""

    fov: float  # vertical field of view
    target: Vector
    distance: float
    azimuth: float
    elevation: float
    sweep: float = 0.0  # azimuth added by the last frame of an orbit
    swing: Vector = (0.0, 0.0, 0.0)  # of an oscillation: amplitude of azimuth and of elevation, periods

    def pose(self, time: float) -> Float32[np.ndarray, "4 4"]:
        """Return the camera-to-world matrix with OpenGL axes: x right, y up, z backward."""
        phase = np.sin(2 * np.pi * self.swing[2] * time)
        azimuth = self.azimuth + time * self.sweep + phase * self.swing[0]
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_euler("YX", (azimuth, -(self.elevation + phase * self.swing[1]))).as_matrix()
        pose[:3, 3] = np.array(self.target) + self.distance * pose[:3, 2]
        return pose.astype(np.float32)


@dataclass(frozen=True)
class Light:
    """The settings of an environment, as for `environment.load_environment`, and its motion."""

    environment: str  # name of an asset, or of `environments.GENERATED`
    seed: int  # of a generated environment
    turn: float  # rotation as a fraction of a whole turn
    flip: bool
    exposure: float  # factor on the automatic exposure
    spin: float  # rotation added by the last frame


@dataclass(frozen=True)
class Scene:
    """The description of a clip."""

    objects: tuple[SceneObject, ...]
    plane: Plane | None
    camera: Camera
    motion: str
    lights: tuple[Light, Light]  # the second is for relighting
    layout: str = "solids"
    walls: tuple[Wall, ...] = ()

    @property
    def surroundings(self) -> tuple[Plane | Wall, ...]:
        """The ground, if there is one, and the walls."""
        return self.walls if self.plane is None else (self.plane, *self.walls)

    @property
    def files(self) -> set[str]:
        """The paths of its meshes and textures."""
        materials = [surface.material for surface in self.surroundings]
        pictures = {material.path for material in materials if isinstance(material, PictureMaterial)}
        return pictures | {str(Path(item.shape)) for item in self.objects if item.shape not in shapes.FAMILIES}


def split_assets(
    split: str, meshes: Sequence[str], environments: Sequence[str], textures: Sequence[str] = ()
) -> AssetSplit:
    """Select the assets of a split by their names alone, so that other files do not move them.

    "test" has the shape families of `shapes.HELD_OUT`, the bundled environments of `environments.HELD_OUT` (at any
    resolution), and a tenth of all other files by a hash of their names; "train" has the rest. Procedural skies and
    materials are in both splits, with different seeds. `meshes` and `textures` are paths, `environments` names.
    """

    def keep(names: Iterable[str], is_held_out: Callable[[str], bool]) -> tuple[str, ...]:
        return tuple(name for name in names if split == "all" or is_held_out(name) == (split == "test"))

    families = keep(shapes.FAMILIES, lambda name: name in shapes.HELD_OUT)
    files = (keep(paths, lambda path: skies.is_held_out(Path(path).name)) for paths in (meshes, environments, textures))
    return AssetSplit(families, *files)


# --- Scenes of solids ---


def random_solids(seed: int, split: str, index: int, assets: AssetSplit) -> Scene:
    """Return the scene of solids of clip `index`, a pure function of the arguments."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    motion = str(rng.choice(MOTIONS))
    on_plane = rng.random() < 0.8
    objects = _random_objects(rng, assets, on_plane, motion)
    reach = max(np.hypot(*item.center(time)[[0, 2]]) + item.radius for item in objects for time in (0.0, 1.0))
    plane = Plane(reach + rng.uniform(0.2, 4), rng.random() < 0.3, random_material(rng, frequency=2))
    camera = _random_camera(rng, objects, on_plane, motion)

    def environment() -> str:
        names = assets.environments if assets.environments and rng.random() < 0.6 else ("procedural",)
        return str(rng.choice(names))

    return Scene(objects, plane if on_plane else None, camera, motion, random_lights(rng, motion, environment))


def _random_objects(rng: Generator, assets: AssetSplit, on_plane: bool, motion: str) -> tuple[SceneObject, ...]:
    """Draw and place objects; those after the first that find no free place are dropped."""
    num_objects, num_primitives = int(rng.integers(1, 4)), int(rng.integers(0, 4))
    primitives = tuple(name for name in assets.families if name in shapes.PRIMITIVES) or assets.families
    objects: list[SceneObject] = []
    for number in range(num_objects + num_primitives):
        main = number < num_objects
        names = assets.families if main else primitives
        if main and assets.meshes and rng.random() < 0.7:
            names = assets.meshes
        radius = rng.uniform(0.6, 1) if main else rng.uniform(0.2, 0.5)
        upright = rng.random() < 0.7
        item = random_object(rng, str(rng.choice(names)), int(rng.integers(2**31)), radius, upright, motion)
        item = replace(item, own_material=item.seed % 5 > 0)
        if motion == "translation":
            angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.5)
            rise = 0.0 if on_plane else rng.uniform(-0.5, 0.5)
            item = replace(item, shift=(length * np.sin(angle), rise, length * np.cos(angle)))
        for attempt in range(30):
            spread = 0.3 + 0.07 * attempt
            x, z = rng.normal(0, spread, 2)
            y = 0.0 if on_plane else rng.normal(0, 0.7 * spread)
            placed = replace(item, position=(x, y, z))
            if all(clearance(placed, other) > GAP for other in objects):
                objects.append(placed)
                break
    return tuple(objects)


def clearance(a: SceneObject, b: SceneObject) -> float:
    """Return the least distance between the bounding balls of two objects over the clip.

    On a plane, where positions have no height, it is that of the bounding upright cylinders.
    """
    start = np.array(a.position) - np.array(b.position)
    shift = np.array(a.shift) - np.array(b.shift)
    nearest = np.clip(-(start @ shift) / max(shift @ shift, 1e-12), 0, 1)
    return float(np.linalg.norm(start + nearest * shift) - a.radius - b.radius)


def _random_camera(rng: Generator, objects: tuple[SceneObject, ...], on_plane: bool, motion: str) -> Camera:
    """Draw a camera so far away that the bounding balls, over their whole motion, about fill the image."""
    radii = np.array([item.radius for item in objects] * 3)
    centers = np.stack([item.center(time) for time in (0.0, 0.5, 1.0) for item in objects])
    centers[:, 1] += 0.7 * radii * on_plane  # standing objects are usually lower than their bounding balls
    target = np.average(centers, axis=0, weights=radii**2) + rng.normal(0, 0.1, 3)
    extent = (np.linalg.norm(centers - target, axis=-1) + radii).max()
    fov = np.deg2rad(rng.uniform(25, 60))
    lowest, highest = np.deg2rad((4, 60) if on_plane else (-40, 60))
    elevation = rng.triangular(lowest, np.deg2rad(20), highest)
    swing = rng.uniform(0.1, 0.6), rng.uniform(0, 0.8) * min(elevation - lowest + 0.02, 0.25), rng.uniform(0.5, 1.5)
    distance = extent / np.sin(fov / 2) * rng.uniform(0.6, 1.0)
    camera = Camera(fov, tuple(target), distance, rng.uniform(0, 2 * np.pi), elevation)
    if motion == "orbit":
        return replace(camera, sweep=random_sign_uniform(rng, 0.4, 2 * np.pi))
    return replace(camera, swing=swing) if motion == "oscillation" else camera


# --- What all scenes draw alike ---


def random_object(rng: Generator, shape: str, seed: int, radius: float, upright: bool, motion: str) -> SceneObject:
    """Draw the material and orientation of an object at the origin, which turns if "rotation" is its motion."""
    return SceneObject(
        shape, seed, random_material(rng), radius,
        tilt=(0.0, 0.0) if upright else tuple(rng.uniform(0, 2 * np.pi, 2)),
        yaw=rng.uniform(0, 2 * np.pi),
        spin=random_sign_uniform(rng, 0.5, 2 * np.pi) if motion == "rotation" else 0.0,
    )  # fmt: skip


def random_lights(rng: Generator, motion: str, environment: Callable[[], str]) -> tuple[Light, Light]:
    """Draw two lights of environments that `environment` draws; both turn alike if "light" is the clip's motion."""
    spin = random_sign_uniform(rng, 0.8, 2 * np.pi) if motion == "light" else 0.0

    def light() -> Light:
        return Light(
            environment(), int(rng.integers(2**31)), turn=rng.random(), flip=rng.random() < 0.5,
            exposure=2 ** rng.normal(0, 0.35), spin=spin,
        )  # fmt: skip

    return light(), light()


def random_sign_uniform(rng: Generator, low: float, high: float) -> float:
    return rng.uniform(low, high) * rng.choice([-1, 1])
