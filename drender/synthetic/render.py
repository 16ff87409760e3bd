"""From a synthetic scene to the images of a clip: its bodies in place, its light, its exposure, its encodings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from drender.lighting.latlong import load_latlong
from drender.lighting.light_file import Light
from drender.media.color import LUMINANCE, linear_to_srgb_jnp
from drender.media.encodings import encode_normal
from drender.synthetic import meshes, shapes
from drender.synthetic.meshes import Mesh
from drender.synthetic.scene import Scene, SceneObject
from drender.synthetic.tracer import TILE, Frame, Tracer


@dataclass(frozen=True)
class RenderedClip:
    """A clip: its images by label, in [0, 1] as `encodings.py` wants them, and what they were made with."""

    images: dict[str, Float32[np.ndarray, "f h w 3"]]
    light: Light
    fov: float  # of the height, in radians
    near: float  # distance along the camera's axis where depth is 0
    far: float  # and where it is 1


def film(tracer: Tracer, scene: Scene, take: int, environment: Path, name: str, seeds: Sequence[int]) -> RenderedClip:
    """The clip of a scene under its light number `take`.

    Args:
      environment: the file of that light; `name` is what light.json calls it.
      seeds: of the path tracer, one for each frame; the frames lie evenly over the time from 0 to 1.
    """
    light = scene.lights[take]
    times = np.linspace(0, 1, len(seeds))
    bare = load_latlong(environment)
    width = bare.shape[1]
    # Half a column more, for `light_image` cuts off the fraction.
    rotation = 360 * (int(light.turn * width) + 0.5) / width
    strength = 1 / _mean_luminance(bare)  # so that the tracer meets light of one scale
    image = load_latlong(environment, rotation, light.flip, strength)
    angles = [float(time * light.spin) for time in times]
    poses = [scene.camera.pose(float(time)) for time in times]

    bodies = [(body, _mesh(body)) for body in scene.bodies]
    ground = [shapes.plane(plane.half, plane.round) for plane in (scene.plane,) if plane is not None]
    materials = [thing.material for thing in (*scene.bodies, scene.plane) if thing is not None]
    tracer.set_materials([material.maps(TILE) for material in materials])
    traced = []
    for time, angle, pose, seed in zip(times, angles, poses, seeds, strict=True):
        tracer.set_bodies([*(_placed(body, mesh, float(time), bool(ground)) for body, mesh in bodies), *ground])
        tracer.set_light(image, angle)
        traced.append(tracer.trace(pose, scene.camera.fov, seed))
    exposure = light.exposure * _exposure(traced)
    images, near, far = _encode(traced, exposure)
    poses = tuple(tuple(tuple(float(x) for x in row) for row in pose) for pose in poses)
    light = Light(name, rotation, light.flip, strength * exposure, tuple(angles), poses)
    return RenderedClip(images, light, scene.camera.fov, near, far)


def _mesh(body: SceneObject) -> Mesh:
    return shapes.parametric(body.shape, body.seed) if body.shape in shapes.FAMILIES else meshes.read_mesh(body.shape)


def _placed(body: SceneObject, mesh: Mesh, time: float, standing: bool) -> Mesh:
    centre = body.centre(time)
    if standing:
        centre = centre - [0, body.radius * (mesh.positions @ body.rotation(time)[1]).min(), 0]
    return mesh.placed(body.rotation(time), body.radius, centre)


def _mean_luminance(image: Float32[np.ndarray, "h w 3"]) -> float:
    """Over all directions."""
    share = np.sin(np.pi * (np.arange(len(image)) + 0.5) / len(image))
    return float(np.average((image @ LUMINANCE).mean(axis=1), weights=share))


def _exposure(frames: list[Frame]) -> float:
    """The factor on the radiance that makes a clip a well-exposed picture.

    It brings the brighter parts of what is lit near white, though a dark scene stays darker than a light one.
    """
    lit = np.concatenate([frame.rgb[frame.coverage[..., 0] > 0.5] for frame in frames]) @ LUMINANCE
    if len(lit) == 0:
        return 1.0
    return float(0.55 / max(np.percentile(lit, 90), 1e-3)) ** 0.65


def _encode(frames: list[Frame], exposure: float) -> tuple[dict[str, Float32[np.ndarray, "f h w 3"]], float, float]:
    """The images by label, and the depths that are shown as 0 and 1."""
    near, far = min(frame.near for frame in frames), max(frame.far for frame in frames)
    if near >= far:  # nothing there, or all at one depth
        near, far = far - 1e-3, far
    stack = lambda name: np.stack([getattr(frame, name) for frame in frames])
    coverage = stack("coverage")
    over = lambda name, background: stack(name) + (1 - coverage) * np.float32(background)
    srgb = lambda linear: np.asarray(linear_to_srgb_jnp(jnp.asarray(linear.clip(0, 1))))
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
    return {label: np.broadcast_to(x, (*x.shape[:3], 3)).astype(np.float32) for label, x in images.items()}, near, far
