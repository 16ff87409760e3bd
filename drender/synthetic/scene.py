"""What a synthetic clip shows: a pure function from a seed to a frozen description, after the published recipe.

A scene has up to three objects and up to three primitives on a plane or in the air, never through one another, one
motion, and one or two lights. World axes as in `environment.py`: y up, the plane is y = 0. Times run from 0, the first
frame, to 1, the last. Angles are in radians.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from drender.errors import unknown_name_error
from drender.synthetic import environments as skies
from drender.synthetic import shapes
from drender.synthetic.materials import MaterialMix, random_material

MOTIONS = ("orbit", "oscillation", "light", "rotation", "translation")
SPLITS = ("all", "train", "test")
PROCEDURAL = "procedural"  # the name of an environment made from the light's seed
GAP = 0.04  # between the balls around objects


@dataclass(frozen=True)
class AssetSplit:
    """What scenes are made of: names of shape families, paths of mesh files, names of environments."""

    families: tuple[str, ...]
    meshes: tuple[str, ...]
    environments: tuple[str, ...]


@dataclass(frozen=True)
class SceneObject:
    """An object: a shape in the unit ball, turned, scaled by `radius`, and moved. On a plane it stands."""

    shape: str  # a family of `shapes.FAMILIES` or the path of a file
    seed: int  # of the family's member
    material: MaterialMix
    radius: float
    position: tuple[float, float, float]
    tilt: tuple[float, float]  # about x, then z
    yaw: float
    spin: float  # the yaw that is added until the last frame
    shift: tuple[float, float, float]  # from the first frame to the last

    def centre(self, time: float) -> Float[np.ndarray, "3"]:
        return np.array(self.position) + time * np.array(self.shift)

    def rotation(self, time: float) -> Float[np.ndarray, "3 3"]:
        return _about_y(self.yaw + time * self.spin) @ _about_z(self.tilt[1]) @ _about_x(self.tilt[0])


@dataclass(frozen=True)
class Plane:
    half: float  # its half-width or radius
    round: bool
    material: MaterialMix


@dataclass(frozen=True)
class Camera:
    """Looks at `target` from `distance`, `azimuth` (0 is the +z side) and `elevation` above the horizon."""

    fov: float  # of the image's height
    target: tuple[float, float, float]
    distance: float
    azimuth: float
    elevation: float
    sweep: float  # the azimuth that an orbit adds until the last frame
    swing: tuple[float, float, float]  # an oscillation's amplitude of azimuth and elevation, and its periods

    def pose(self, time: float) -> Float32[np.ndarray, "4 4"]:
        """Camera to world, OpenGL's axes: x right, y up, z backward."""
        wave = np.sin(2 * np.pi * self.swing[2] * time)
        azimuth = self.azimuth + time * self.sweep + wave * self.swing[0]
        pose = np.eye(4)
        pose[:3, :3] = _about_y(azimuth) @ _about_x(-(self.elevation + wave * self.swing[1]))
        pose[:3, 3] = np.array(self.target) + self.distance * pose[:3, 2]
        return pose.astype(np.float32)


@dataclass(frozen=True)
class Light:
    """An environment as `environment.load_environment` takes it; `spin` is its turn until the last frame."""

    environment: str  # a name of the catalogue, or PROCEDURAL
    seed: int
    turn: float  # its rotation as a fraction of a whole one
    flip: bool
    exposure: float  # of the picture, around 1
    spin: float


@dataclass(frozen=True)
class Scene:
    bodies: tuple[SceneObject, ...]
    plane: Plane | None
    camera: Camera
    motion: str
    lights: tuple[Light, Light]  # one, and another for relighting


def catalogue(split: str, meshes: tuple[str, ...], environments: tuple[str, ...], bundled: bool) -> AssetSplit:
    """The part of everything that belongs to a split of SPLITS; `bundled`: the environments are ours.

    "test" has the families and bundled maps of `shapes.HELD_OUT` and `skies.HELD_OUT`, and a tenth of the user's files;
    "train" has the rest. Procedural skies are in both, of other seeds. InputError for an unknown split.
    """
    if split not in SPLITS:
        raise unknown_name_error("split", split, SPLITS)
    keep = lambda held_out: split == "all" or held_out == (split == "test")
    of_ours = lambda name: name in skies.HELD_OUT
    return AssetSplit(
        tuple(name for name in shapes.FAMILIES if keep(name in shapes.HELD_OUT)),
        tuple(path for path in meshes if keep(skies.held_out(Path(path).name))),
        tuple(name for name in environments if keep((of_ours if bundled else skies.held_out)(name))),
    )


def random_scene(seed: int, split: str, index: int, source: AssetSplit) -> Scene:
    """The scene of clip `index`."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    motion = str(rng.choice(MOTIONS))
    on_plane = rng.random() < 0.8
    bodies = _random_bodies(rng, source, on_plane, motion)
    reach = max(np.hypot(*body.centre(time)[[0, 2]]) + body.radius for body in bodies for time in (0.0, 1.0))
    plane = Plane(float(reach + rng.uniform(0.2, 4)), bool(rng.random() < 0.3), random_material(rng, frequency=2))
    camera = _random_camera(rng, bodies, on_plane, motion)
    spin = _either_way(rng, 0.8, 2 * np.pi) if motion == "light" else 0.0
    lights = _random_light(rng, source, spin), _random_light(rng, source, spin)
    return Scene(bodies, plane if on_plane else None, camera, motion, lights)


def _random_bodies(
    rng: np.random.Generator, source: AssetSplit, on_plane: bool, motion: str
) -> tuple[SceneObject, ...]:
    """The first body is always placed; one that finds no room is left out."""
    objects, primitives = int(rng.integers(1, 4)), int(rng.integers(0, 4))
    simple = tuple(name for name in source.families if name in shapes.PRIMITIVES) or source.families
    bodies: list[SceneObject] = []
    for number in range(objects + primitives):
        main = number < objects
        names = source.families if main else simple
        if main and source.meshes and rng.random() < 0.7:
            names = source.meshes
        radius = float(rng.uniform(0.6, 1) if main else rng.uniform(0.2, 0.5))
        upright = rng.random() < 0.7
        body = SceneObject(
            shape=str(rng.choice(names)),
            seed=int(rng.integers(2**31)),
            material=random_material(rng),
            radius=radius,
            position=(0.0, 0.0, 0.0),
            tilt=(0.0, 0.0) if upright else tuple(float(angle) for angle in rng.uniform(0, 2 * np.pi, 2)),
            yaw=float(rng.uniform(0, 2 * np.pi)),
            spin=_either_way(rng, 0.5, 2 * np.pi) if motion == "rotation" else 0.0,
            shift=_random_shift(rng, on_plane) if motion == "translation" else (0.0, 0.0, 0.0),
        )
        for attempt in range(30):
            spread = 0.3 + 0.07 * attempt
            x, z = rng.normal(0, spread, 2)
            y = 0.0 if on_plane else rng.normal(0, 0.7 * spread)
            placed = replace(body, position=(float(x), float(y), float(z)))
            if all(clearance(placed, other) > GAP for other in bodies):
                bodies.append(placed)
                break
    return tuple(bodies)


def clearance(a: SceneObject, b: SceneObject) -> float:
    """The least distance between the balls around two bodies over the clip, both moving evenly.

    On a plane, where positions have no height, it is that of the upright cylinders around the balls.
    """
    start = np.array(a.position) - np.array(b.position)
    shift = np.array(a.shift) - np.array(b.shift)
    nearest = np.clip(-(start @ shift) / max(shift @ shift, 1e-12), 0, 1)
    return float(np.linalg.norm(start + nearest * shift) - a.radius - b.radius)


def _random_shift(rng: np.random.Generator, on_plane: bool) -> tuple[float, float, float]:
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.5)
    rise = 0.0 if on_plane else rng.uniform(-0.5, 0.5)
    return float(length * np.sin(angle)), float(rise), float(length * np.cos(angle))


def _random_camera(rng: np.random.Generator, bodies: tuple[SceneObject, ...], on_plane: bool, motion: str) -> Camera:
    """So far away that the bodies' balls, wherever they move, about fill the image."""
    radii = np.array([body.radius for body in bodies] * 3)
    centres = np.stack([body.centre(time) for time in (0.0, 0.5, 1.0) for body in bodies])
    centres[:, 1] += 0.7 * radii * on_plane  # what stands is seldom as high as its ball
    target = np.average(centres, axis=0, weights=radii**2) + rng.normal(0, 0.1, 3)
    extent = (np.linalg.norm(centres - target, axis=-1) + radii).max()
    fov = np.deg2rad(rng.uniform(25, 60))
    lowest, highest = np.deg2rad((4, 60) if on_plane else (-40, 60))
    elevation = rng.triangular(lowest, np.deg2rad(20), highest)
    swing = (rng.uniform(0.1, 0.6), rng.uniform(0, 0.8) * min(elevation - lowest + 0.02, 0.25), rng.uniform(0.5, 1.5))
    return Camera(
        fov=float(fov),
        target=tuple(float(x) for x in target),
        distance=float(extent / np.sin(fov / 2) * rng.uniform(0.6, 1.0)),
        azimuth=float(rng.uniform(0, 2 * np.pi)),
        elevation=float(elevation),
        sweep=_either_way(rng, 0.4, 2 * np.pi) if motion == "orbit" else 0.0,
        swing=tuple(float(x) for x in swing) if motion == "oscillation" else (0.0, 0.0, 0.0),
    )


def _random_light(rng: np.random.Generator, source: AssetSplit, spin: float) -> Light:
    names = source.environments if source.environments and rng.random() < 0.6 else (PROCEDURAL,)
    return Light(
        environment=str(rng.choice(names)),
        seed=int(rng.integers(2**31)),
        turn=float(rng.random()),
        flip=bool(rng.random() < 0.5),
        exposure=float(2 ** rng.normal(0, 0.35)),
        spin=spin,
    )


def _either_way(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high) * rng.choice([-1, 1]))


def _about_x(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _about_y(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def _about_z(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
