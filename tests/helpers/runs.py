"""Inputs and results of `sample.py` runs: write, damage and list files; check errors; stop in the middle."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import OpenImageIO as oiio

from drender.config import CONDITIONS, DEFAULT_PASSES
from drender.media.images import write_png
from drender.media.video import write_video

ROOT = Path(__file__).parents[2]
QUICK = ("--size", 64, 64, "--steps", 1, "--frames", 2, "--overlap", 1)
QUICK_LIGHT = ("--environment-size", 64, 64)
PASSES = ("basecolor", "normal")
PNG_NAMES = {"rgb", *DEFAULT_PASSES}


def write_hdr(path: Path, image: np.ndarray) -> Path:
    output = oiio.ImageOutput.create(str(path))
    assert output.open(str(path), oiio.ImageSpec(image.shape[1], image.shape[0], 3, "float"))
    assert output.write_image(np.ascontiguousarray(image, np.float32)) and output.close()
    return path


def pictures(count: int, height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, height, width, 3)).astype(np.float32)


def write_frames(folder: Path, count: int = 2, **options) -> Path:
    for i, image in enumerate(pictures(count, **options)):
        write_png(folder / f"{i:03d}.png", image)
    return folder


def write_gbuffers(folder: Path, chunks: tuple[int, ...] = (2,), labels=CONDITIONS, **options) -> Path:
    for label in labels:
        for chunk, count in enumerate(chunks):
            for i, image in enumerate(pictures(count, seed=len(label) + 9 * chunk, **options)):
                write_png(folder / f"{chunk:04d}.{i:04d}.{label}.png", image)
    return folder


def png(path: Path, **options) -> Path:
    write_png(path, pictures(1, **options)[0])
    return path


def video(path: Path, count: int = 4) -> Path:
    write_video(path, pictures(count), 5.0)
    return path


def text(path: Path, content: str | bytes = "no picture") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def damaged(path: Path, keep: float = 0.5) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def labels(folder: Path) -> set[str]:
    return {path.name.split(".")[2] for path in folder.glob("*.png")}


def frames(folder: Path, label: str) -> list[str]:
    return sorted(path.name.removesuffix(f".{label}.png") for path in folder.glob(f"*.{label}.png"))


class Stop:
    """Stands for `write_png`: raises at the n-th call."""

    def __init__(self, after: int, error: BaseException):
        self.left, self.error = after, error

    def __call__(self, *arguments):
        self.left -= 1
        if self.left < 0:
            raise self.error
        write_png(*arguments)


def check_one_line(result: tuple[int, str, str], *fragments: str) -> None:
    code, _, err = result
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    for fragment in fragments:
        assert fragment in err


def start(*arguments, **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, str(ROOT / "sample.py"), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )
