"""Describe synthetic clips, and draw scenes of solids from a seed, after the published recipe.

A scene of solids has up to three objects and up to three primitives on a plane or in the air that never intersect, one
motion, and two lights; `layouts.py` draws scenes of everyday objects. World axes are those of
`lighting/projection.py`: y up, the plane is y = 0. Time runs from 0 at the first frame to 1 at the last. Angles are in
radians.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32
from scipy.spatial.transform import Rotation

from drender.synthetic import environments as skies
from drender.synthetic import shapes
from drender.synthetic.materials import MaterialMix, random_material
from drender.synthetic.textures import PictureMaterial

MOTIONS = ("orbit", "oscillation", "light", "rotation", "translation")
SPLITS = ("all", "train", "test")
SUNSKY = "sunsky"  # environment name: generate a sky of Mitsuba from the light's seed
PROCEDURAL = "procedural"  # environment name: generate the map from the light's seed
GAP = 0.04  # least distance between the bounding balls of objects


@dataclass(frozen=True)
class AssetSplit:
    """The assets of a split: names of shape families, paths of meshes, names of environments, paths of textures."""

    families: tuple[str, ...]
    meshes: tuple[str, ...]
    environments: tuple[str, ...]
    textures: tuple[str, ...] = ()


@dataclass(frozen=True)
class SceneObject:
    """A shape in the unit ball that is rotated, scaled by `radius` and moved; on a plane it is set down on it."""

    shape: str  # family of `shapes.FAMILIES`, or path of a mesh file
    seed: int  # selects the member of the family
    material: MaterialMix
    radius: float
    position: tuple[float, float, float]
    tilt: tuple[float, float]  # about x, then z
    yaw: float
    spin: float  # yaw added by the last frame
    shift: tuple[float, float, float]  # translation from the first frame to the last
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


@dataclass(frozen=True)
class Wall:
    """A rectangle from `corner` along two edges."""

    corner: tuple[float, float, float]
    across: tuple[float, float, float]
    up: tuple[float, float, float]
    material: MaterialMix | PictureMaterial
    repeat: float  # repetitions of the texture along the longer edge


@dataclass(frozen=True)
class Camera:
    """A camera that looks at `target` from `distance`, `azimuth` (0: from +z) and `elevation` above the horizon."""

    fov: float  # vertical field of view
    target: tuple[float, float, float]
    distance: float
    azimuth: float
    elevation: float
    sweep: float  # azimuth added by the last frame of an orbit
    swing: tuple[float, float, float]  # of an oscillation: amplitude of azimuth and of elevation, periods

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

    environment: str  # name of an asset, or PROCEDURAL
    seed: int
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


def split_assets(
    split: str, meshes: tuple[str, ...], environments: tuple[str, ...], textures: tuple[str, ...] = ()
) -> AssetSplit:
    """Select the assets of a split by their names alone, so that other files do not move them.

    "test" has the shape families of `shapes.HELD_OUT`, the bundled environments of `environments.HELD_OUT` (at any
    resolution), and a tenth of all other files by a hash of their names; "train" has the rest. Procedural skies and
    materials are in both splits, with different seeds.

    Args:
      split: one of SPLITS.
      meshes: paths of mesh files.
      environments: names of environments.
      textures: paths of basecolor pictures.
    """

    def keep(held_out: bool) -> bool:
        return split == "all" or held_out == (split == "test")

    return AssetSplit(
        tuple(name for name in shapes.FAMILIES if keep(name in shapes.HELD_OUT)),
        tuple(path for path in meshes if keep(skies.is_held_out(Path(path).name))),
        tuple(name for name in environments if keep(skies.is_held_out(name))),
        tuple(path for path in textures if keep(skies.is_held_out(Path(path).name))),
    )


def random_solids(seed: int, split: str, index: int, assets: AssetSplit) -> Scene:
    """Return the scene of solids of clip `index`, a pure function of the arguments."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    motion = str(rng.choice(MOTIONS))
    on_plane = rng.random() < 0.8
    objects = _random_objects(rng, assets, on_plane, motion)
    reach = max(np.hypot(*item.center(time)[[0, 2]]) + item.radius for item in objects for time in (0.0, 1.0))
    plane = Plane(float(reach + rng.uniform(0.2, 4)), bool(rng.random() < 0.3), random_material(rng, frequency=2))
    camera = _random_camera(rng, objects, on_plane, motion)
    spin = random_sign_uniform(rng, 0.8, 2 * np.pi) if motion == "light" else 0.0
    lights = _random_light(rng, assets, spin), _random_light(rng, assets, spin)
    return Scene(objects, plane if on_plane else None, camera, motion, lights)


def _random_objects(
    rng: np.random.Generator, assets: AssetSplit, on_plane: bool, motion: str
) -> tuple[SceneObject, ...]:
    """Draw and place objects; those after the first that find no free place are dropped."""
    num_objects, num_primitives = int(rng.integers(1, 4)), int(rng.integers(0, 4))
    primitives = tuple(name for name in assets.families if name in shapes.PRIMITIVES) or assets.families
    objects: list[SceneObject] = []
    for number in range(num_objects + num_primitives):
        main = number < num_objects
        names = assets.families if main else primitives
        if main and assets.meshes and rng.random() < 0.7:
            names = assets.meshes
        radius = float(rng.uniform(0.6, 1) if main else rng.uniform(0.2, 0.5))
        upright = rng.random() < 0.7
        candidate = SceneObject(
            shape=str(rng.choice(names)),
            seed=(seed := int(rng.integers(2**31))),
            material=random_material(rng),
            own_material=seed % 5 > 0,
            radius=radius,
            position=(0.0, 0.0, 0.0),
            tilt=(0.0, 0.0) if upright else tuple(rng.uniform(0, 2 * np.pi, 2).tolist()),
            yaw=float(rng.uniform(0, 2 * np.pi)),
            spin=random_sign_uniform(rng, 0.5, 2 * np.pi) if motion == "rotation" else 0.0,
            shift=_random_shift(rng, on_plane) if motion == "translation" else (0.0, 0.0, 0.0),
        )
        for attempt in range(30):
            spread = 0.3 + 0.07 * attempt
            x, z = rng.normal(0, spread, 2)
            y = 0.0 if on_plane else rng.normal(0, 0.7 * spread)
            placed = replace(candidate, position=(float(x), float(y), float(z)))
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


def _random_shift(rng: np.random.Generator, on_plane: bool) -> tuple[float, float, float]:
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.5)
    rise = 0.0 if on_plane else rng.uniform(-0.5, 0.5)
    return float(length * np.sin(angle)), float(rise), float(length * np.cos(angle))


def _random_camera(rng: np.random.Generator, objects: tuple[SceneObject, ...], on_plane: bool, motion: str) -> Camera:
    """Draw a camera so far away that the bounding balls, over their whole motion, about fill the image."""
    radii = np.array([item.radius for item in objects] * 3)
    centers = np.stack([item.center(time) for time in (0.0, 0.5, 1.0) for item in objects])
    centers[:, 1] += 0.7 * radii * on_plane  # standing objects are usually lower than their bounding balls
    target = np.average(centers, axis=0, weights=radii**2) + rng.normal(0, 0.1, 3)
    extent = (np.linalg.norm(centers - target, axis=-1) + radii).max()
    fov = np.deg2rad(rng.uniform(25, 60))
    lowest, highest = np.deg2rad((4, 60) if on_plane else (-40, 60))
    elevation = rng.triangular(lowest, np.deg2rad(20), highest)
    swing = (rng.uniform(0.1, 0.6), rng.uniform(0, 0.8) * min(elevation - lowest + 0.02, 0.25), rng.uniform(0.5, 1.5))
    return Camera(
        fov=float(fov),
        target=tuple(target.tolist()),
        distance=float(extent / np.sin(fov / 2) * rng.uniform(0.6, 1.0)),
        azimuth=float(rng.uniform(0, 2 * np.pi)),
        elevation=float(elevation),
        sweep=random_sign_uniform(rng, 0.4, 2 * np.pi) if motion == "orbit" else 0.0,
        swing=tuple(float(x) for x in swing) if motion == "oscillation" else (0.0, 0.0, 0.0),
    )


def _random_light(rng: np.random.Generator, assets: AssetSplit, spin: float) -> Light:
    names = assets.environments if assets.environments and rng.random() < 0.6 else (PROCEDURAL,)
    return light_of(rng, str(rng.choice(names)), spin)


def light_of(rng: np.random.Generator, environment: str, spin: float) -> Light:
    """Draw the settings of an environment."""
    return Light(
        environment=environment,
        seed=int(rng.integers(2**31)),
        turn=float(rng.random()),
        flip=bool(rng.random() < 0.5),
        exposure=float(2 ** rng.normal(0, 0.35)),
        spin=spin,
    )


def random_sign_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high) * rng.choice([-1, 1]))
