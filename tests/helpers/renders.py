"""Renders as Blender writes them: multi-layer EXR files beside a transforms.json."""

import json
from pathlib import Path

import numpy as np

from drender.media.images import write_exr

# The camera is turned by 90° about z: its x axis is the world's y. Blender's matrices may have a scale.
POSE = [[0, -2, 0, 1], [2, 0, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]]


def write_blender(folder: Path, poses=(POSE, POSE), size: int = 2, **layers) -> Path:
    """Write a clip of two frames; `layers` are passes besides the usual ones, as name=(components, values)."""
    depths = np.repeat(np.repeat([[[2, 6], [4, np.inf]], [[2, 2], [2, 2]]], size // 2, axis=1), size // 2, axis=2)
    for frame, depth in enumerate(depths):
        passes = {
            "Combined": ("RGB", (0.2140, 0.2140, 7.0)),
            "DiffCol": ("RGB", (0.2140, 0.0, 1.0)),
            "Normal": ("XYZ", (0.0, 1.0, 0.0)),
            **layers,
        }
        channels = {
            f"ViewLayer.{name}.{component}": np.full((size, size), value, np.float32)
            for name, (components, values) in passes.items()
            for component, value in zip(components, values, strict=True)
        }
        write_exr(folder / f"{frame:04d}.exr", channels | {"ViewLayer.Depth.Z": np.float32(depth)})
    frames = [{"file_path": f"./{i:04d}", "transform_matrix": pose} for i, pose in enumerate(poses)]
    (folder / "transforms.json").write_text(json.dumps({"frames": frames}))
    return folder
