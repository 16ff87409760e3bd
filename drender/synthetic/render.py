"""Render a synthetic scene to the images of a clip: place objects, set the light, trace, expose and encode."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from drender.lighting.latlong import load_latlong, mean_luminance
from drender.lighting.light_file import Light
from drender.media.color import LUMINANCE, linear_to_srgb_jnp
from drender.media.encodings import encode_normal
from drender.synthetic import shapes
from drender.synthetic.atlas import TILE, Surface
from drender.synthetic.mesh_files import load_mesh, part_surfaces
from drender.synthetic.meshes import Mesh, rectangle
from drender.synthetic.scene import Scene, SceneObject
from drender.synthetic.tracer import Frame, Tracer


@dataclass(frozen=True)
class RenderedClip:
    """The images of a clip by label, encoded in [0, 1] as in `media/encodings.py`, and their settings."""

    images: dict[str, Float32[np.ndarray, "f h w 3"]]
    light: Light
    fov: float  # vertical field of view in radians
    near: float  # distance along the optical axis at which depth is 0
    far: float  # distance at which depth is 1


def render_clip(
    tracer: Tracer, scene: Scene, light_index: int, environment: Path, name: str, seeds: Sequence[int]
) -> RenderedClip:
    """Render a scene under one of its lights.

    Args:
      tracer: path tracer of the clip's size.
      scene: description of the clip.
      light_index: index into the scene's lights.
      environment: file of that light's environment map.
      name: path of that file for light.json.
      seeds: seed of the path tracer for each frame; frames are evenly spaced in time from 0 to 1.
    """
    light = scene.lights[light_index]
    times = np.linspace(0, 1, len(seeds))
    unscaled = load_latlong(environment)
    width = unscaled.shape[1]
    # `load_latlong` truncates the rotation to whole columns, so aim at the middle of one.
    rotation = 360 * (int(light.turn * width) + 0.5) / width
    strength = 1 / mean_luminance(unscaled)  # the tracer clamps samples relative to a mean of 1
    image = load_latlong(environment, rotation, light.flip, strength)
    angles = [float(time * light.spin) for time in times]
    poses = [scene.camera.pose(float(time)) for time in times]

    fixed = _fixed_surfaces(scene)
    objects = [(item, *_object_mesh(item)) for item in scene.objects]
    # The atlas averages the last textures if there are too many, so floors and walls come first.
    tracer.set_materials(
        [material for _, material in fixed] + [surface for _, _, surfaces in objects for surface in surfaces]
    )
    traced = []
    for time, angle, pose, seed in zip(times, angles, poses, seeds, strict=True):
        placed = (_place_object(item, mesh, float(time), scene.plane is not None) for item, mesh, _ in objects)
        tracer.set_objects([*(mesh for mesh, _ in fixed), *placed])
        tracer.set_light(image, angle)
        traced.append(tracer.trace(pose, scene.camera.fov, seed))
    exposure = light.exposure * _exposure(traced)
    images, near, far = _encode(traced, exposure)
    poses = tuple(tuple(tuple(float(x) for x in row) for row in pose) for pose in poses)
    light = Light(name, rotation, light.flip, strength * exposure, tuple(angles), poses)
    return RenderedClip(images, light, scene.camera.fov, near, far)


def _fixed_surfaces(scene: Scene) -> list[tuple[Mesh, Surface]]:
    """Return the meshes and materials of the ground and the walls."""
    meshes = [(rectangle(wall.corner, wall.across, wall.up, wall.repeat), wall.material) for wall in scene.walls]
    if (plane := scene.plane) is not None:
        meshes.insert(0, (shapes.plane(plane.half, plane.round, plane.repeat), plane.material))
    return [(mesh, material.maps(TILE)) for mesh, material in meshes]


def _object_mesh(item: SceneObject) -> tuple[Mesh, list[Surface]]:
    """Return the mesh of an object in the unit ball and the materials of its parts."""
    if item.shape in shapes.FAMILIES:
        return shapes.parametric(item.shape, item.seed), [item.material.maps(TILE)]
    file = load_mesh(item.shape)
    if file.parts and item.own_material:
        # The mesh lacks last parts that are thinner than rounding; their materials would shift those of other objects.
        return file.mesh, part_surfaces(file.parts, item.seed)[: file.mesh.num_parts]
    return replace(file.mesh, part=np.zeros_like(file.mesh.part)), [item.material.maps(TILE)]


def _place_object(item: SceneObject, mesh: Mesh, time: float, on_plane: bool) -> Mesh:
    center = item.center(time)
    if on_plane:
        center = center - [0, item.radius * (mesh.positions @ item.rotation(time)[1]).min(), 0]
    return mesh.placed(item.rotation(time), item.radius, center)


def _exposure(frames: list[Frame]) -> float:
    """Return the factor on radiance that brings the brighter foreground of a clip near white.

    A power below 1 leaves dark scenes darker than bright ones.
    """
    lit = np.concatenate([frame.rgb[frame.coverage[..., 0] > 0.5] for frame in frames]) @ LUMINANCE
    if len(lit) == 0:
        return 1.0
    return float(0.55 / max(np.percentile(lit, 90), 1e-3)) ** 0.65


def _encode(frames: list[Frame], exposure: float) -> tuple[dict[str, Float32[np.ndarray, "f h w 3"]], float, float]:
    """Return the encoded images by label, and the depths that are encoded as 0 and 1."""
    near, far = min(frame.near for frame in frames), max(frame.far for frame in frames)
    if near >= far:  # the frames are empty, or all at one depth
        near, far = far - 1e-3, far
    coverage = _stack(frames, "coverage")

    def over(name: str, background) -> np.ndarray:
        return _stack(frames, name) + (1 - coverage) * np.float32(background)

    def srgb(linear: np.ndarray) -> np.ndarray:
        return np.asarray(linear_to_srgb_jnp(jnp.asarray(linear.clip(0, 1))))

    normal = over("normal", (0, 0, 1))
    images = {
        "rgb": srgb(_stack(frames, "rgb") * np.float32(exposure)),
        "basecolor": srgb(over("basecolor", 0)),
        "normal": encode_normal(normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)),
        "depth": (over("depth", far) - near) / (far - near),
        "roughness": over("roughness", 0.5),
        "metallic": over("metallic", 0),
        "mask": coverage,
    }
    return {label: np.broadcast_to(x, (*x.shape[:3], 3)).astype(np.float32) for label, x in images.items()}, near, far


def _stack(frames: list[Frame], name: str) -> Float32[np.ndarray, "f h w _c"]:
    return np.stack([getattr(frame, name) for frame in frames])
