"""The description of a synthetic clip: objects, surroundings, camera and lights.

World axes are those of `lighting/projection.py`: y up, the plane is y = 0. Time runs from 0 at the first frame to 1 at
the last. Angles are in radians.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32
from scipy.spatial.transform import Rotation

from drender.synthetic import shapes
from drender.synthetic.materials import MaterialMix
from drender.synthetic.meshes import Mesh, Vector, rectangle
from drender.synthetic.textures import PictureMaterial

MOTIONS = ("orbit", "oscillation", "light", "rotation", "translation")


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
