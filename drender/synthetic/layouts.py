"""Draw scenes of everyday objects: on floors, against walls, in furnished corners and in the air.

Three to eight meshes, and now and then a parametric solid, stand or float without intersecting. In corners, objects
have the size of their files in meters and furniture stands along the walls; elsewhere sizes are drawn. World axes,
times and angles are those of `scene.py`.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from drender.synthetic import shapes
from drender.synthetic.materials import MaterialMix, random_material
from drender.synthetic.mesh_files import mesh_outline, outermost
from drender.synthetic.scene import (
    MOTIONS,
    PROCEDURAL,
    SPLITS,
    SUNSKY,
    AssetSplit,
    Camera,
    Light,
    Plane,
    Scene,
    SceneObject,
    Wall,
    light_of,
    random_sign_uniform,
    random_solids,
)
from drender.synthetic.textures import PictureMaterial

LAYOUTS = ("solids", "floor", "wall", "corner", "air")
WEIGHTS = {"solids": 0.25, "floor": 0.3, "wall": 0.15, "corner": 0.2, "air": 0.1}
GAP = 0.02  # least distance between the bounding boxes of objects, and from walls
SIZES = (0.03, 2.0)  # range of radii in meters of the objects in corners
FURNITURE = 0.3  # radius in meters from which an object of a corner stands along a wall
TIMES = np.linspace(0, 1, 9)
Box = tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]  # least and greatest coordinates over the clip


def random_scene(seed: int, split: str, index: int, assets: AssetSplit, layouts: tuple[str, ...]) -> Scene:
    """Return the scene of clip `index` in one of the layouts; a pure function of arguments and mesh files."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index, 1])
    weights = np.array([WEIGHTS[layout] for layout in layouts])
    layout = str(rng.choice(layouts, p=weights / weights.sum()))
    return random_solids(seed, split, index, assets) if layout == "solids" else _random_layout(rng, layout, assets)


def _random_layout(rng: np.random.Generator, layout: str, assets: AssetSplit) -> Scene:
    motion = str(rng.choice(MOTIONS))
    half_room = rng.uniform(1.3, 2.4)  # of a corner, whose walls are x = −half_room and z = −half_room
    placed: list[tuple[SceneObject, Box]] = []
    for number in range(int(rng.integers(3, 9))):
        moving = motion if number == 0 or rng.random() < 0.3 else ""
        item, points = _random_object(rng, layout, assets, moving)
        if (place := _find_place(rng, item, points, layout, half_room, [box for _, box in placed])) is not None:
            placed.append(place)
    objects = tuple(item for item, _ in placed)
    boxes = [box for _, box in placed]
    low, high = np.min([box[0] for box in boxes], axis=0), np.max([box[1] for box in boxes], axis=0)
    reach = float(np.abs([low, high])[:, [0, 2]].max())
    walls = _random_walls(rng, layout, reach, low, half_room, assets)
    plane = None
    if layout != "air":
        half = reach + float(rng.uniform(1, 3)) * reach if layout == "floor" else 8 * max(reach, half_room)
        round_ = bool(layout == "floor" and rng.random() < 0.3)
        plane = Plane(half, round_, _random_covering(rng, assets), float(half / reach * rng.uniform(1, 4)))
    camera = _random_camera(rng, layout, boxes, walls, motion)
    spin = random_sign_uniform(rng, 0.8, 2 * np.pi) if motion == "light" else 0.0
    lights = _random_light(rng, assets, spin), _random_light(rng, assets, spin)
    return Scene(objects, plane, camera, motion, lights, layout, walls)


# --- Objects ---


def _random_object(
    rng: np.random.Generator, layout: str, assets: AssetSplit, motion: str
) -> tuple[SceneObject, Float[np.ndarray, "k 3"]]:
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
    item = SceneObject(
        shape=shape,
        seed=seed,
        material=random_material(rng),
        radius=radius,
        position=(0.0, 0.0, 0.0),
        tilt=(0.0, 0.0) if upright else tuple(rng.uniform(0, 2 * np.pi, 2).tolist()),
        yaw=float(rng.uniform(0, 2 * np.pi)),
        spin=random_sign_uniform(rng, 0.5, 2 * np.pi) if motion == "rotation" else 0.0,
        shift=(0.0, 0.0, 0.0),
        own_material=bool(rng.random() < 0.85),
    )
    if motion == "translation":
        item = replace(item, shift=(float(length * np.sin(angle)), float(rise), float(length * np.cos(angle))))
    return item, points


def _find_place(
    rng: np.random.Generator,
    item: SceneObject,
    points: Float[np.ndarray, "k 3"],
    layout: str,
    half_room: float,
    others: list[Box],
) -> tuple[SceneObject, Box] | None:
    """Return the object at a free place with its bounding box, or None if none was found."""
    furniture = layout == "corner" and item.radius > FURNITURE and item.tilt == (0.0, 0.0)
    for attempt in range(40):
        if furniture:
            candidate = _along_wall(rng, item, points, half_room)
        elif layout == "corner":
            x, z = rng.uniform(-half_room, 0.6 * half_room, 2)
            candidate = replace(item, position=(float(x), 0.0, float(z)))
        else:
            spread = 0.25 + 0.05 * attempt
            x, y, z = rng.normal(0, spread, 3) * [1, 0.6 * (layout == "air"), 1]
            candidate = replace(item, position=(float(x), float(y), float(z)))
        low, high = box = _bounding_box(candidate, points, layout != "air")
        if layout == "corner" and (low[[0, 2]] < -half_room + GAP / 2).any():
            continue
        if all((low - GAP > other[1]).any() or (high + GAP < other[0]).any() for other in others):
            return candidate, box
    return None


def _along_wall(
    rng: np.random.Generator, item: SceneObject, points: Float[np.ndarray, "k 3"], half_room: float
) -> SceneObject:
    """Put an object at a random place of one of the two walls, its front (+z of the file) to the room."""
    left = rng.random() < 0.5
    item = replace(item, yaw=np.pi / 2 if left else 0.0)
    low, _ = _bounding_box(item, points, True)
    along = rng.uniform(0, 1) * 1.4 * half_room
    x, z = (0.0, along) if left else (along, 0.0)
    position = np.array([x, 0, z]) - half_room + GAP - low
    return replace(item, position=(float(position[0]), 0.0, float(position[2])))


def _bounding_box(item: SceneObject, points: Float[np.ndarray, "k 3"], standing: bool) -> Box:
    """Return the bounding box over the clip; a standing object has its lowest point at y = 0."""
    corners = []
    for time in TIMES if item.spin or any(item.shift) else TIMES[:1]:
        turned = points @ item.rotation(float(time)).T * item.radius
        center = item.center(float(time))
        if standing:
            center = center - [0, turned[:, 1].min(), 0]
        corners += [turned.min(axis=0) + center, turned.max(axis=0) + center]
    return np.min(corners, axis=0), np.max(corners, axis=0)


# --- Floors and walls ---


def _random_walls(
    rng: np.random.Generator,
    layout: str,
    reach: float,
    low: Float[np.ndarray, "3"],
    half_room: float,
    assets: AssetSplit,
) -> tuple[Wall, ...]:
    """Return the wall behind the objects, or the two walls of a corner."""
    covering, repeat = _random_covering(rng, assets), float(rng.uniform(1, 8))
    if layout == "wall":
        z, half, height = low[2] - GAP - rng.uniform(0, 0.8), 5 * reach, rng.uniform(1.5, 4) * reach
        return (_wall((-half, 0, z), (2 * half, 0, 0), height, covering, repeat),)
    if layout == "corner":
        size, height = 2.5 * half_room, rng.uniform(2.2, 3)
        other = _random_covering(rng, assets) if rng.random() < 0.3 else covering
        return (
            _wall((-half_room, 0, -half_room), (size, 0, 0), height, covering, repeat),
            _wall((-half_room, 0, size - half_room), (0, 0, -size), height, other, repeat),
        )
    return ()


def _wall(corner, across, height: float, material: MaterialMix | PictureMaterial, repeat: float) -> Wall:
    corner, across = (tuple(float(x) for x in vector) for vector in (corner, across))
    return Wall(corner, across, (0.0, float(height), 0.0), material, repeat)


def _random_covering(rng: np.random.Generator, assets: AssetSplit) -> MaterialMix | PictureMaterial:
    if assets.textures and rng.random() < 0.7:
        return PictureMaterial(str(rng.choice(assets.textures)), int(rng.integers(2**31)))
    return random_material(rng)


# --- Camera and light ---


def _random_camera(
    rng: np.random.Generator, layout: str, boxes: list[Box], walls: tuple[Wall, ...], motion: str
) -> Camera:
    """Draw a camera for a close-up of one object or for all; it stays outside of objects and walls, its view clear."""
    focus = boxes[0] if rng.random() < 0.4 else (np.min(boxes, axis=0)[0], np.max(boxes, axis=0)[1])
    low, high = focus
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
        camera = Camera(
            fov=float(fov),
            target=tuple((target + rng.normal(0, 0.05, 3) * extent).tolist()),
            distance=float(distance),
            azimuth=float(azimuth),
            elevation=float(elevation),
            sweep=float(last - azimuth) if motion == "orbit" else 0.0,
            swing=tuple(float(x) for x in swing) if motion == "oscillation" else (0.0, 0.0, 0.0),
        )
        eyes = [camera.pose(float(time))[:3, 3] for time in TIMES]
        clear = not any(_hides(eyes[0], target, box) for box in others)
        if clear and all(_is_free(eye, layout, boxes, walls, 0.25 * distance) for eye in eyes):
            return camera
        distance *= 1.03
    return camera


def _is_free(
    eye: Float[np.ndarray, "3"], layout: str, boxes: list[Box], walls: tuple[Wall, ...], clearance: float
) -> bool:
    """Return whether an eye is further than `clearance` from objects, above the floor and in front of the walls."""
    away = all(np.linalg.norm(eye - eye.clip(low, high)) > clearance for low, high in boxes)
    margin = 0.1 * clearance
    front = all(eye @ (normal := _normal(wall)) > np.array(wall.corner) @ normal + margin for wall in walls)
    return bool(away and front and (layout == "air" or eye[1] > margin))


def _hides(eye: Float[np.ndarray, "3"], target: Float[np.ndarray, "3"], box: Box) -> bool:
    """Return whether a box meets the segment from an eye to its target (slab test)."""
    step = target - eye
    step = np.where(np.abs(step) < 1e-9, 1e-9, step)
    near, far = np.sort([(bound - eye) / step for bound in box], axis=0)
    return bool(max(near.max(), 0) < min(far.min(), 1))


def _normal(wall: Wall) -> Float[np.ndarray, "3"]:
    normal = np.cross(wall.across, wall.up)
    return normal / np.linalg.norm(normal)


def _random_light(rng: np.random.Generator, assets: AssetSplit, spin: float) -> Light:
    kind = rng.random()
    if assets.environments and kind < 0.65:
        return light_of(rng, str(rng.choice(assets.environments)), spin)
    return light_of(rng, SUNSKY if kind < 0.85 else PROCEDURAL, spin)


def used_files(scene: Scene) -> set[str]:
    """Return the paths of the meshes and textures of a scene."""
    coverings = [surface.material for surface in (scene.plane, *scene.walls) if surface is not None]
    pictures = {material.path for material in coverings if isinstance(material, PictureMaterial)}
    return pictures | {str(Path(item.shape)) for item in scene.objects if item.shape not in shapes.FAMILIES}
