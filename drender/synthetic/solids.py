"""Draw scenes of solids from a seed, after the published recipe.

A scene has up to three objects and up to three primitives on a plane or in the air that never intersect, one motion,
and two lights. `layouts.py` draws scenes of everyday objects.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.random import Generator

from drender.synthetic import shapes
from drender.synthetic.materials import random_material
from drender.synthetic.scene import MOTIONS, Camera, Light, Plane, Scene, SceneObject
from drender.synthetic.splits import SPLITS, AssetSplit

GAP = 0.04  # least distance between the bounding balls of objects


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


# --- what scenes of every layout draw alike ---------------------------------------------------------------------------


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
