"""The file `light.json` in the folder of a training clip: which HDR map lit it, and how light and camera moved."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from drender.errors import InputError, naming
from drender.fields import bounded, check_ranges, read_config, to_dict
from drender.files import folder_name, write_text
from drender.lighting.camera import camera_rotations

LIGHT_FILE = "light.json"


@dataclass(frozen=True)
class Light:
    """The light of a clip: the keys of its `light.json`."""

    environment: str  # lat-long HDR file; a relative path begins at the clip's folder
    # These three as `load_environment` takes them; the exposure of `rgb` is part of the strength.
    rotation: float = bounded(180.0)
    flip: bool = False
    strength: float = bounded(1.0, at_least=0)
    angles: tuple[float, ...] | None = bounded(None)  # turn in every frame, of `light_angles`; None: it stands still
    poses: tuple[tuple[tuple[float, ...], ...], ...] | None = None  # camera-to-world matrices; None: fixed, along −z

    def __post_init__(self):
        check_ranges(self)

    def rotations(self, num_frames: int) -> Float32[np.ndarray, "f 3 3"]:
        """Return the camera's rotation in every frame; InputError unless there is one finite 4x4 pose for each."""
        return camera_rotations(num_frames, poses=None if self.poses is None else np.array(self.poses, np.float32))


def read_light(folder: Path, num_frames: int) -> Light:
    """Return the checked `light.json` of a clip's folder; raise InputError if missing, damaged or inconsistent."""
    path = folder / LIGHT_FILE
    if not path.exists():
        raise InputError(f"clip {folder_name(folder)!r} has no {LIGHT_FILE}, which names its environment; add it")
    light = read_config(Light, path, "write it again")
    if not (folder / light.environment).is_file():
        raise InputError(f"{path}: its environment {light.environment} does not exist; correct the path")
    if light.angles is not None and len(light.angles) != num_frames:
        raise InputError(f"{path}: {len(light.angles)} angles for {num_frames} frames; give one for each")
    if light.poses is not None and {len(row) for pose in light.poses for row in (pose, *pose)} != {4}:
        raise InputError(f"{path}: every pose must be 4x4; correct it")
    with naming(path):
        light.rotations(num_frames)
    return light


def write_light(folder: Path, light: Light) -> None:
    """Write the `light.json` of the clip in `folder`, without the keys that are None."""
    values = {name: value for name, value in to_dict(light).items() if value is not None}
    write_text(folder / LIGHT_FILE, json.dumps(values) + "\n")
