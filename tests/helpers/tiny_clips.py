"""Training clips of a few pixels, whose colors encode their label, clip and frame."""

from pathlib import Path

import numpy as np
import OpenImageIO as oiio

from drender.config import DEFAULT_PASSES
from drender.lighting.light_file import Light, write_light
from drender.media.gbuffers import frame_path
from drender.media.images import write_png

LABELS = ("rgb", *DEFAULT_PASSES)
STEP = 200  # small, so that the channels of one-channel labels are about equal


def colour(label: str, clip: int, frame: int) -> tuple[float, float, float]:
    """Return the color of a frame, exact in 16 bits: red encodes the label, green the clip, blue the frame."""
    return tuple(STEP * (1 + value) / 65535 for value in (LABELS.index(label), clip, frame))


def write_clip(
    folder: Path, clip: int = 0, chunks=(3,), labels=LABELS, size=(2, 2), light: Light | None = None
) -> Path:
    """Write a clip of uniformly colored frames, numbered through its chunks."""
    frame = 0
    for chunk, count in enumerate(chunks):
        for i in range(count):
            for label in labels:
                image = np.broadcast_to(np.float32(colour(label, clip, frame)), (*size, 3))
                write_png(frame_path(folder, chunk, i, label), image, bits=16)
            frame += 1
    if light is not None:
        write_light(folder, light)
    return folder


def write_noise(folder: Path, frames: int = 2, labels=LABELS, size=(8, 8), seed: int = 0, light: Light | None = None):
    """Write a clip of random pixels and return `folder`."""
    random = np.random.default_rng(seed)
    for frame in range(frames):
        for label in labels:
            write_png(frame_path(folder, 0, frame, label), random.random((*size, 3), np.float32), bits=16)
    if light is not None:
        write_light(folder, light)
    return folder


def write_sky(path: Path, seed: int = 0, size=(16, 32)) -> Path:
    """Write a lat-long environment in which no two directions look alike."""
    image = np.random.default_rng(seed).gamma(0.5, 2.0, (*size, 3)).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    output = oiio.ImageOutput.create(str(path))
    assert output.open(str(path), oiio.ImageSpec(size[1], size[0], 3, "float")) and output.write_image(image)
    output.close()
    return path


def random_poses(count: int, seed: int = 0) -> np.ndarray:
    """Return random camera-to-world matrices."""
    rotations = [np.linalg.qr(m)[0] for m in np.random.default_rng(seed).normal(size=(count, 3, 3))]
    result = np.tile(np.eye(4), (count, 1, 1))
    result[:, :3, :3] = [r * np.sign(np.linalg.det(r)) for r in rotations]
    return result


def light_with_poses(matrices: np.ndarray, **options) -> Light:
    """Return a light with a moving camera."""
    return Light("../sky.hdr", poses=tuple(tuple(map(tuple, matrix)) for matrix in matrices.tolist()), **options)
