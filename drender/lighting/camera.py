"""Orientation of the camera and of the light, frame by frame.

World axes: x right, y up, z backward. A camera without pose looks along −z, as in OpenGL and NeRF; so a camera-to-world
matrix has the camera's right, up and backward axes as its columns.
"""

from collections.abc import Sized
from pathlib import Path

import numpy as np
from einops import repeat
from jaxtyping import ArrayLike, Float, Float32
from scipy.spatial.transform import Rotation

from drender.errors import InputError, unknown_name_error
from drender.files import natural_order, read_json

ELEVATION_SIGNS = ("released", "up")
EXPECTED = "expected frames[i].transform_matrix"


def camera_rotations(
    num_frames: int, elevation: float = 0.0, poses: ArrayLike | None = None, elevation_sign: str = "released"
) -> Float32[np.ndarray, "f 3 3"]:
    """Return the camera-to-world rotation of every frame, of `poses` or of a fixed camera; InputError for bad values.

    Args:
      num_frames: f, at least 1.
      elevation: degrees above the horizon from which a fixed camera looks at the origin, from the +z side.
      poses: camera-to-world matrices, `f 4 4`; None: the camera is fixed.
      elevation_sign: "up" is that camera, rotated by −elevation about x. "released" is rotated by +elevation: the
        released code passes its world-to-camera rotation where camera-to-world belongs, so a raised camera sees the
        surroundings of a lowered one.
    """
    if num_frames < 1:
        raise InputError(f"number of frames {num_frames} is less than 1; give at least one")
    if not np.isfinite(elevation):
        raise InputError(f"elevation {elevation} is not a finite number of degrees")
    if elevation_sign not in ELEVATION_SIGNS:
        raise unknown_name_error("elevation sign", elevation_sign, ELEVATION_SIGNS)
    if poses is None:
        turn = np.deg2rad(elevation if elevation_sign == "released" else -elevation)
        c, s = np.cos(turn), np.sin(turn)
        return repeat(np.array([[1, 0, 0], [0, c, -s], [0, s, c]], np.float32), "i j -> f i j", f=num_frames)
    if elevation != 0:
        raise InputError(f"elevation {elevation} and poses exclude each other; leave one out")
    poses = np.asarray(poses, np.float32)
    if poses.shape != (num_frames, 4, 4) or not np.isfinite(poses).all():
        raise InputError(f"poses: expected {num_frames} finite 4x4 matrices, one per frame, got shape {poses.shape}")
    _scales(poses, "pose")  # raises InputError; the maps do not depend on the scale itself
    return poses[:, :3, :3]


def light_angles(num_frames: int, rotate: bool) -> Float32[np.ndarray, " f"]:
    """Return the light's turn about y in every frame, in radians: 0, or if `rotate` from 0 to 2π, both included.

    A positive angle turns the light as a positive yaw does: from ahead of the camera to its right, then behind it.
    """
    return np.linspace(0, 2 * np.pi if rotate else 0, num_frames, dtype=np.float32)


def light_orientation(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Float32[np.ndarray, "3 3"]:
    """Return the rotation from directions of a map to directions of the world, from angles in degrees.

    Roll comes first, about the line of sight, then pitch, about the axis from left to right, then yaw, about the
    vertical. As seen by a camera without pose, a positive yaw moves light from ahead to the right (as a greater
    `rotation` of the map does, by the same angle), a positive pitch moves it from ahead upward, and a positive roll
    moves it from above to the right, clockwise. The center of `env_ldr` lies behind the camera, so there yaw moves
    everything to the left, pitch lowers the center, and roll lowers the right half. InputError for a non-finite angle.
    """
    for name, angle in {"yaw": yaw, "pitch": pitch, "roll": roll}.items():
        if not np.isfinite(angle):
            raise InputError(f"environment {name} {angle} is not a finite number of degrees")
    return Rotation.from_euler("YXZ", [-yaw, pitch, -roll], degrees=True).as_matrix().astype(np.float32)


def read_poses(path: str | Path, relative: bool = False) -> Float32[np.ndarray, "f 4 4"]:
    """Return the camera-to-world matrices `frames[i].transform_matrix` of a transforms.json (OpenGL axes).

    They are in natural order of `file_path`, as the frames of a clip, or in file order unless every frame has one. The
    scale that cameras inherit in Blender is taken off. `relative` returns inverse(first) · pose, so that the light is
    upright for the first camera, whatever the vertical axis of the file's world. InputError if the file is unreadable,
    lacks a key, or has a matrix that is no rigid transform.
    """
    content = read_json(path, EXPECTED)
    try:
        frames = content["frames"]
        if all(isinstance(frame.get("file_path"), str) for frame in frames):
            frames = sorted(frames, key=lambda frame: natural_order(frame["file_path"]))
        poses = np.array([frame["transform_matrix"] for frame in frames], np.float64)
    except KeyError as error:
        raise InputError(f"{path} lacks the key {error}; {EXPECTED}") from error
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"{path} holds no list of poses ({error}); {EXPECTED}") from error
    if poses.shape[1:] != (4, 4) or not np.isfinite(poses).all():
        raise InputError(f"{path}: every transform_matrix must be 4x4 and finite, found shape {poses.shape[1:]}")
    poses[:, :3, :3] /= _scales(poses, f"{path}: transform_matrix")
    if relative:
        poses = np.linalg.inv(poses[0]) @ poses
    return poses.astype(np.float32)


def _scales(poses: Float[np.ndarray, "f 4 4"], name: str) -> Float[np.ndarray, "f 1 1"]:
    """Return the scale of every pose; raise InputError, with the name, for one that is no rigid transform besides."""
    rotations = poses[:, :3, :3]
    with np.errstate(all="ignore"):  # of huge numbers
        scales = np.cbrt(np.linalg.det(rotations))[:, None, None]  # not positive if a pose mirrors
        squares = rotations @ rotations.swapaxes(1, 2) / scales**2  # not the identity if it shears
        turned = (scales > 0) & np.isclose(squares, np.eye(3), atol=0.01)
    rigid = turned.all(axis=(1, 2)) & np.isclose(poses[:, 3], [0, 0, 0, 1]).all(axis=1)
    if not rigid.all():
        expected = "a rotation with columns right, up and backward, a position, and a last row 0 0 0 1"
        raise InputError(f"{name} {np.argmin(rigid)} is not a camera pose; expected {expected}")
    return scales


def require_poses(subject: str, num_frames: int, poses: Sized | None) -> None:
    """Raise InputError if there are poses, but fewer than frames; `subject` begins the message."""
    if poses is not None and len(poses) < num_frames:
        raise InputError(f"{subject} has {num_frames} frames, but --poses only {len(poses)}; give one for each")
