"""TODO."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from drender.config import to_dict
from drender.files import atomic_write
from drender.lighting.camera import camera_rotations

LIGHT = "light.json"


@dataclass(frozen=True)
class Light:
    """What lights a clip: the keys of its `light.json`.

    Attributes:
      environment: lat-long HDR file; a relative path begins at the clip's folder.
      rotation, flip, strength: as `load_environment` takes them; the exposure of `rgb` is part of the strength.
      angles: the light's turn in every frame, in radians; None: it stands still.
      poses: the camera-to-world matrix of every frame; None: the camera looks along −z and stands still.
    """

    environment: str
    rotation: float = 180.0
    flip: bool = False
    strength: float = 1.0
    angles: tuple[float, ...] | None = None
    poses: tuple[tuple[tuple[float, ...], ...], ...] | None = None


def _rotations(light: Light, num_frames: int) -> Float32[np.ndarray, "f 3 3"]:
    """The camera's rotation in every frame; InputError if there is not a pose for each."""
    return camera_rotations(num_frames, poses=None if light.poses is None else np.array(light.poses, np.float32))


def write_light(folder: Path, light: Light) -> None:
    """Writes the `light.json` of the clip in `folder`."""
    values = {name: value for name, value in to_dict(light).items() if value is not None}
    with atomic_write(folder / LIGHT) as temporary:
        temporary.write_text(json.dumps(values) + "\n")
