"""Render a synthetic scene to the images of a clip: place objects, set the light, trace, expose and encode."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from drender.lighting.latlong import load_latlong, mean_luminance
from drender.lighting.light_file import Light
from drender.media.color import LUMINANCE, linear_to_srgb_jnp
from drender.media.encodings import encode_normal
from drender.synthetic import scene as scenes
from drender.synthetic import shapes
from drender.synthetic.atlas import TILE, Surface
from drender.synthetic.mesh_files import load_mesh, part_surfaces
from drender.synthetic.meshes import Mesh
from drender.synthetic.scene import Scene, SceneObject
from drender.synthetic.tracer import Frame, Tracer


def render_clip(
    tracer: Tracer, scene: Scene, light: scenes.Light, folder: Path, environment: str, seeds: Sequence[int]
) -> tuple[dict[str, Float32[np.ndarray, "f h w 3"]], Light, tuple[float, float]]:
    """Render a scene under one of its lights.

    Args:
      light: one of the scene's.
      environment: path of its map from the clip's `folder`.
      seeds: seed of the path tracer for each frame; frames are evenly spaced in time from 0 to 1.
    Returns:
      The images by label, encoded in [0, 1] as in `media/encodings.py`; the content of light.json; and the distances
      along the optical axis at which depth is 0 and 1.
    """
    times = np.linspace(0, 1, len(seeds))
    source = (folder / environment).resolve()
    unscaled = load_latlong(source)
    width = unscaled.shape[1]
    # `load_latlong` truncates the rotation to whole columns, so aim at the middle of one.
    rotation = 360 * (int(light.turn * width) + 0.5) / width
    strength = 1 / mean_luminance(unscaled)  # the tracer clamps samples relative to a mean of 1
    image = load_latlong(source, rotation, light.flip, strength)
    angles = tuple(float(time * light.spin) for time in times)
    poses = [scene.camera.pose(time) for time in times]

    fixed = [surface.mesh() for surface in scene.surroundings]
    objects = [(item, *_object_mesh(item)) for item in scene.objects]
    # The atlas averages the last textures if there are too many, so floors and walls come first.
    surfaces = [surface.material.maps(TILE) for surface in scene.surroundings]
    tracer.set_materials([*surfaces, *itertools.chain.from_iterable(surfaces for _, _, surfaces in objects)])
    traced = []
    for time, angle, pose, seed in zip(times, angles, poses, seeds, strict=True):
        placed = (_place_object(item, mesh, time, scene.plane is not None) for item, mesh, _ in objects)
        tracer.set_objects([*fixed, *placed])
        tracer.set_light(image, angle)
        traced.append(tracer.trace(pose, scene.camera.fov, seed))
    exposure = light.exposure * _exposure(traced)
    images, depths = _encode(traced, exposure)
    rows = tuple(tuple(map(tuple, pose.tolist())) for pose in poses)
    return images, Light(environment, rotation, light.flip, strength * exposure, angles, rows), depths


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


def _encode(
    frames: list[Frame], exposure: float
) -> tuple[dict[str, Float32[np.ndarray, "f h w 3"]], tuple[float, float]]:
    """Return the encoded images by label, and the depths that are encoded as 0 and 1."""
    near, far = min(frame.near for frame in frames), max(frame.far for frame in frames)
    if near >= far:  # the frames are empty, or all at one depth
        near, far = far - 1e-3, far

    def stack(name: str) -> np.ndarray:
        return np.stack([getattr(frame, name) for frame in frames])

    coverage = stack("coverage")

    def over(name: str, background) -> np.ndarray:
        return stack(name) + (1 - coverage) * np.float32(background)

    def srgb(linear: np.ndarray) -> np.ndarray:
        return np.asarray(linear_to_srgb_jnp(jnp.asarray(linear.clip(0, 1))))

    normal = over("normal", (0, 0, 1))
    images = {
        "rgb": srgb(stack("rgb") * np.float32(exposure)),
        "basecolor": srgb(over("basecolor", 0)),
        "normal": encode_normal(normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)),
        "depth": (over("depth", far) - near) / (far - near),
        "roughness": over("roughness", 0.5),
        "metallic": over("metallic", 0),
        "mask": coverage,
    }
    images = {label: np.broadcast_to(x, (*x.shape[:3], 3)).astype(np.float32) for label, x in images.items()}
    return images, (near, far)
