"""How the camera and the light stand in the world, frame by frame.

World axes: x right, y up, z backward. A camera without pose looks along −z, as in OpenGL and NeRF; so a camera-to-world
matrix has the camera's right, up and backward axes as its columns.
"""

import json
from pathlib import Path

import numpy as np
from einops import repeat
from jaxtyping import ArrayLike, Float32
from scipy.spatial.transform import Rotation

from drender.errors import InputError, unknown_name_error
from drender.files import natural_order

ELEVATION_SIGNS = ("released", "up")


def camera_rotations(
    num_frames: int, elevation: float = 0.0, poses: ArrayLike | None = None, elevation_sign: str = "released"
) -> Float32[np.ndarray, "f 3 3"]:
    """The camera's rotation in every frame, as `project` takes it: of `poses`, or of a fixed camera.

    `poses` are camera-to-world matrices, `f 4 4`. A fixed camera looks at the origin from azimuth 90°, which is the +z
    side, and from `elevation` degrees above the horizon: a turn by −elevation about x, if `elevation_sign` is "up". The
    released code passes its world-to-camera rotation where camera-to-world belongs: a turn by +elevation, so that a
    raised camera gets the surroundings of a lowered one. That is "released", for it is what the released results show.
    InputError for poses that do not fit.
    """
    if num_frames < 1:
        raise InputError(f"number of frames {num_frames} is less than 1")
    if not np.isfinite(elevation):
        raise InputError(f"elevation {elevation} is not a number of degrees")
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
        raise InputError(f"poses have shape {poses.shape}; {num_frames} frames need that many finite 4x4 matrices")
    return poses[:, :3, :3]


def light_angles(num_frames: int, rotate: bool) -> Float32[np.ndarray, " f"]:
    """The light's turn about y in every frame, in radians: 0, or from 0 to 2π with both ends if it is to `rotate`.

    It turns the way of a growing yaw: light from ahead of the camera comes from its right, then from behind it.
    """
    return np.linspace(0, 2 * np.pi if rotate else 0, num_frames, dtype=np.float32)


def light_orientation(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Float32[np.ndarray, "3 3"]:
    """The rotation, in degrees, that takes the directions of a map to those of the world: as it hangs there.

    Roll comes first, about the line of sight, then pitch, about the horizontal from left to right, then yaw, about the
    vertical. As a camera without pose sees it: a positive yaw takes light from ahead to the right (as does a greater
    `rotation` of the map, by the same angle), a positive pitch takes it from ahead upward, and a positive roll from
    above to the right, clockwise. In `env_ldr`, whose middle lies behind the camera, yaw moves all to the left, pitch
    lowers the middle, and roll lowers the right half. InputError for values that are no numbers.
    """
    for name, angle in {"yaw": yaw, "pitch": pitch, "roll": roll}.items():
        if not np.isfinite(angle):
            raise InputError(f"environment {name} {angle} is not a number of degrees")
    return Rotation.from_euler("YXZ", [-yaw, pitch, -roll], degrees=True).as_matrix().astype(np.float32)


def read_poses(path: str | Path, relative: bool = False) -> Float32[np.ndarray, "f 4 4"]:
    """The camera-to-world matrices `frames[i].transform_matrix` of a transforms.json, whose axes are OpenGL's.

    They come in the natural order of their `file_path`, as the frames of a clip do, or, where not every frame has one,
    in the order of the file. With `relative`, as seen from the first camera: inverse(first) · pose; so the light stands
    upright for the first camera, whatever axis the file's world has as its vertical. InputError naming what is wrong.
    """
    try:
        frames = json.loads(Path(path).read_text(encoding="utf-8"))["frames"]
        if all(isinstance(frame.get("file_path"), str) for frame in frames):
            frames = sorted(frames, key=lambda frame: natural_order(frame["file_path"]))
        poses = np.array([frame["transform_matrix"] for frame in frames], np.float64)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except KeyError as error:
        raise InputError(f"{path} lacks the key {error}; expected are frames[i].transform_matrix") from error
    except RecursionError:
        raise InputError(f"{path} holds no list of poses; expected are frames[i].transform_matrix") from None
    except (ValueError, TypeError, AttributeError, OverflowError) as error:  # no JSON, or other types of values
        raise InputError(f"{path} holds no list of poses ({error}); expected are frames[i].transform_matrix") from error
    if poses.shape[1:] != (4, 4) or not np.isfinite(poses).all():
        raise InputError(f"{path}: every transform_matrix must be 4x4 and finite, found shape {poses.shape[1:]}")
    for index, pose in enumerate(poses):
        if not _is_rigid(pose):
            raise InputError(
                f"{path}: transform_matrix {index} is no pose of a camera: expected are a rotation, whose columns are "
                "right, up and backward, a position, and 0 0 0 1 below"
            )
    if relative:
        poses = np.linalg.inv(poses[0]) @ poses
    return poses.astype(np.float32)


def _is_rigid(pose: np.ndarray) -> bool:
    """Whether a 4×4 matrix turns and moves, but does not mirror or shear; it may scale."""
    rotation = pose[:3, :3]
    scale = np.cbrt(np.linalg.det(rotation))
    rigid = scale > 0 and np.allclose(rotation @ rotation.T / scale**2, np.eye(3), atol=0.01)
    return bool(rigid and (pose[3] == [0, 0, 0, 1]).all())
