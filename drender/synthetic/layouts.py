"""Draw scenes of everyday objects: on floors, against walls, in furnished corners and in the air.

Three to eight meshes, and now and then a parametric solid, stand or float without intersecting. In corners, objects
have the size of their files in meters and furniture stands along the walls; elsewhere sizes are drawn. World axes,
times and angles are those of `scene.py`.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float
from numpy.random import Generator

from drender.synthetic import shapes
from drender.synthetic.materials import MaterialMix, random_material
from drender.synthetic.mesh_files import mesh_outline, outermost
from drender.synthetic.meshes import unit
from drender.synthetic.scene import MOTIONS, Camera, Plane, Scene, SceneObject, Wall
from drender.synthetic.solids import random_lights, random_object, random_sign_uniform, random_solids
from drender.synthetic.splits import SPLITS, AssetSplit
from drender.synthetic.textures import PictureMaterial

WEIGHTS = {"solids": 0.25, "floor": 0.3, "wall": 0.15, "corner": 0.2, "air": 0.1}  # of the layouts
LAYOUTS = tuple(WEIGHTS)
GAP = 0.02  # least distance between the bounding boxes of objects, and from walls
SIZES = (0.03, 2.0)  # range of radii in meters of the objects in corners
FURNITURE = 0.3  # radius in meters from which an object of a corner stands along a wall
TIMES = np.linspace(0, 1, 9)
Vector, Points = Float[np.ndarray, "3"], Float[np.ndarray, "k 3"]
Box = Float[np.ndarray, "2 3"]  # least and greatest coordinates over the clip


def random_scene(seed: int, split: str, index: int, assets: AssetSplit, layouts: tuple[str, ...]) -> Scene:
    """Return the scene of clip `index` in one of the layouts; a pure function of arguments and mesh files."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index, 1])
    weights = np.array([WEIGHTS[layout] for layout in layouts])
    layout = str(rng.choice(layouts, p=weights / weights.sum()))
    return random_solids(seed, split, index, assets) if layout == "solids" else _random_layout(rng, layout, assets)


def _random_layout(rng: Generator, layout: str, assets: AssetSplit) -> Scene:
    motion = str(rng.choice(MOTIONS))
    half_room = rng.uniform(1.3, 2.4)  # of a corner, whose walls are x = −half_room and z = −half_room
    placed: list[tuple[SceneObject, Box]] = []
    for number in range(int(rng.integers(3, 9))):
        moving = motion if number == 0 or rng.random() < 0.3 else ""
        item, points = _random_object(rng, layout, assets, moving)
        if (place := _find_place(rng, item, points, layout, half_room, [box for _, box in placed])) is not None:
            placed.append(place)
    objects, boxes = zip(*placed, strict=True)
    low, high = np.min(boxes, axis=0)[0], np.max(boxes, axis=0)[1]
    reach = np.abs([low, high])[:, [0, 2]].max()
    walls = _random_walls(rng, layout, reach, low, half_room, assets)
    plane = None
    if layout != "air":
        half = reach + rng.uniform(1, 3) * reach if layout == "floor" else 8 * max(reach, half_room)
        round_ = layout == "floor" and rng.random() < 0.3
        plane = Plane(half, round_, _random_covering(rng, assets), half / reach * rng.uniform(1, 4))
    camera = _random_camera(rng, layout, boxes, walls, motion)

    def environment() -> str:
        kind = rng.random()
        if assets.environments and kind < 0.65:
            return str(rng.choice(assets.environments))
        return "sunsky" if kind < 0.85 else "procedural"

    return Scene(objects, plane, camera, motion, random_lights(rng, motion, environment), layout, walls)


# --- Objects ---


def _random_object(rng: Generator, layout: str, assets: AssetSplit, motion: str) -> tuple[SceneObject, Points]:
    """Draw an object at the origin; return it with its outermost points in the unit ball."""
    seed = int(rng.integers(2**31))
    if assets.meshes and rng.random() < 0.85:
        shape = str(rng.choice(assets.meshes))
        points, radius = mesh_outline(shape)
    else:
        shape = str(rng.choice(assets.families))
        points, radius = outermost(shapes.parametric(shape, seed)), rng.uniform(0.05, 0.4)
    radius = float(np.clip(radius, *SIZES) if layout == "corner" else np.exp(rng.uniform(np.log(0.25), 0)))
    upright = rng.random() < (0.2 if layout == "air" else 0.9)
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.2)
    rise = rng.uniform(-0.4, 0.4) if layout == "air" else 0.0
    item = replace(random_object(rng, shape, seed, radius, upright, motion), own_material=rng.random() < 0.85)
    if motion == "translation":
        item = replace(item, shift=(length * np.sin(angle), rise, length * np.cos(angle)))
    return item, points


def _find_place(
    rng: Generator, item: SceneObject, points: Points, layout: str, half_room: float, others: list[Box]
) -> tuple[SceneObject, Box] | None:
    """Return the object at a free place with its bounding box, or None if none was found."""
    furniture = layout == "corner" and item.radius > FURNITURE and item.tilt == (0.0, 0.0)
    for attempt in range(40):
        if furniture:
            candidate = _along_wall(rng, item, points, half_room)
        elif layout == "corner":
            x, z = rng.uniform(-half_room, 0.6 * half_room, 2)
            candidate = replace(item, position=(x, 0.0, z))
        else:
            spread = 0.25 + 0.05 * attempt
            x, y, z = rng.normal(0, spread, 3) * [1, 0.6 * (layout == "air"), 1]
            candidate = replace(item, position=(x, y, z))
        low, high = box = _bounding_box(candidate, points, layout != "air")
        if layout == "corner" and (low[[0, 2]] < -half_room + GAP / 2).any():
            continue
        if all((low - GAP > other[1]).any() or (high + GAP < other[0]).any() for other in others):
            return candidate, box
    return None


def _along_wall(rng: Generator, item: SceneObject, points: Points, half_room: float) -> SceneObject:
    """Put an object at a random place of one of the two walls, its front (+z of the file) to the room."""
    left = rng.random() < 0.5
    item = replace(item, yaw=np.pi / 2 if left else 0.0)
    low, _ = _bounding_box(item, points, True)
    along = rng.uniform(0, 1) * 1.4 * half_room
    x, z = (0.0, along) if left else (along, 0.0)
    position = np.array([x, 0, z]) - half_room + GAP - low
    return replace(item, position=(position[0], 0.0, position[2]))


def _bounding_box(item: SceneObject, points: Points, standing: bool) -> Box:
    """Return the bounding box over the clip; a standing object has its lowest point at y = 0."""
    corners = []
    for time in TIMES if item.spin or any(item.shift) else TIMES[:1]:
        turned = points @ item.rotation(time).T * item.radius
        center = item.center(time)
        if standing:
            center = center - [0, turned[:, 1].min(), 0]
        corners += [turned.min(axis=0) + center, turned.max(axis=0) + center]
    return np.stack([np.min(corners, axis=0), np.max(corners, axis=0)])


# --- Floors and walls ---


def _random_walls(
    rng: Generator, layout: str, reach: float, low: Vector, half_room: float, assets: AssetSplit
) -> tuple[Wall, ...]:
    """Return the wall behind the objects, or the two walls of a corner."""
    covering, repeat = _random_covering(rng, assets), rng.uniform(1, 8)
    if layout == "wall":
        z, half, height = low[2] - GAP - rng.uniform(0, 0.8), 5 * reach, rng.uniform(1.5, 4) * reach
        return (Wall((-half, 0.0, z), (2 * half, 0.0, 0.0), (0.0, height, 0.0), covering, repeat),)
    if layout == "corner":
        size, up = 2.5 * half_room, (0.0, rng.uniform(2.2, 3), 0.0)
        other = _random_covering(rng, assets) if rng.random() < 0.3 else covering
        return (
            Wall((-half_room, 0.0, -half_room), (size, 0.0, 0.0), up, covering, repeat),
            Wall((-half_room, 0.0, size - half_room), (0.0, 0.0, -size), up, other, repeat),
        )
    return ()


def _random_covering(rng: Generator, assets: AssetSplit) -> MaterialMix | PictureMaterial:
    if assets.textures and rng.random() < 0.7:
        return PictureMaterial(str(rng.choice(assets.textures)), int(rng.integers(2**31)))
    return random_material(rng)


# --- Camera and light ---


def _random_camera(rng: Generator, layout: str, boxes: Sequence[Box], walls: tuple[Wall, ...], motion: str) -> Camera:
    """Draw a camera for a close-up of one object or for all; it stays outside of objects and walls, its view clear."""
    low, high = boxes[0] if rng.random() < 0.4 else (np.min(boxes, axis=0)[0], np.max(boxes, axis=0)[1])
    others = [box for box in boxes if (box[0] < low).any() or (box[1] > high).any()]  # none if the focus is all
    target, extent = (low + high) / 2, np.linalg.norm(high - low) / 2
    middle, spread = {"wall": (0.0, 1.1), "corner": (np.pi / 4, 0.65)}.get(layout, (0.0, np.pi))
    fov = np.deg2rad(rng.uniform(25, 65))
    distance = extent / np.sin(fov / 2) * rng.uniform(0.65, 1.1)
    for _ in range(60):
        lowest = np.deg2rad(-40 if layout == "air" else 3)
        elevation = rng.triangular(lowest, np.deg2rad(20), np.deg2rad(60))
        azimuth, last = middle + rng.uniform(-spread, spread, 2)
        if spread == np.pi:
            last = azimuth + random_sign_uniform(rng, 0.4, 2 * np.pi)
        swing = rng.uniform(0.05, 0.3), rng.uniform(0, 0.8) * min(elevation - lowest, 0.25), rng.uniform(0.5, 1.5)
        camera = Camera(fov, tuple(target + rng.normal(0, 0.05, 3) * extent), distance, azimuth, elevation)
        if motion == "orbit":
            camera = replace(camera, sweep=last - azimuth)
        elif motion == "oscillation":
            camera = replace(camera, swing=swing)
        eyes = [camera.pose(time)[:3, 3] for time in TIMES]
        clear = not any(_hides(eyes[0], target, box) for box in others)
        if clear and all(_is_free(eye, layout, boxes, walls, 0.25 * distance) for eye in eyes):
            return camera
        distance *= 1.03
    return camera


def _is_free(eye: Vector, layout: str, boxes: Sequence[Box], walls: tuple[Wall, ...], clearance: float) -> bool:
    """Return whether an eye is further than `clearance` from objects, above the floor and in front of the walls."""
    away = all(np.linalg.norm(eye - eye.clip(low, high)) > clearance for low, high in boxes)
    margin = 0.1 * clearance
    normals = [unit(np.cross(wall.across, wall.up)) for wall in walls]
    front = all(eye @ n > np.array(wall.corner) @ n + margin for wall, n in zip(walls, normals, strict=True))
    return bool(away and front and (layout == "air" or eye[1] > margin))


def _hides(eye: Vector, target: Vector, box: Box) -> bool:
    """Return whether a box meets the segment from an eye to its target (slab test)."""
    step = target - eye
    step = np.where(np.abs(step) < 1e-9, 1e-9, step)
    near, far = np.sort((box - eye) / step, axis=0)
    return bool(max(near.max(), 0) < min(far.min(), 1))
