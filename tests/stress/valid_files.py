"""Valid files of every kind that is read, for `fuzzing.py` to damage."""

import functools
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import OpenImageIO as oiio
import yaml
from PIL import Image
from safetensors.numpy import save

from drender.config import EnvEncoderConfig, RendererConfig, VAEConfig
from drender.data.augment import AugmentationConfig
from drender.fields import to_dict

FRAME = np.random.default_rng(0).random((12, 16, 4)).astype(np.float32)
RECORD = {"settings": {"overlap": 1, "seed": None}, "labels": ["basecolor", "normal"], "chunks": [0], "finished": True}
POSES = {"frames": [{"file_path": f"a{i}.png", "transform_matrix": np.eye(4).tolist()} for i in range(3)]}
LIGHT = {"environment": "light.json", "strength": 2.0, "angles": [0.0, 0.5, 1.0], "poses": [np.eye(4).tolist()] * 3}
SET = {
    "labels": ["rgb", "normal"], "frames": 2, "size": [64, 64], "environment_size": [32, 64], "variants": 2,
    "augmentation": to_dict(AugmentationConfig()), "seed": 0, "dtype": "float32", "vae": to_dict(VAEConfig()),
    "weights": "0123456789abcdef", "clips": {"a": [0, 2], "b c": [1]},
}  # fmt: skip
CONFIG = """\
objective: inverse
output: runs/a
data: {sources: [{path: data/a, weight: 1.0}], size: [64, 64], passes: [normal, depth], batch: 2}
optimizer: {learning_rate: 1e-4, betas: [0.9, 0.99], steps: 10}
lora: null
seed: 3
"""


def still(suffix: str, channels: int, kind: str, **attributes) -> bytes:
    """A picture as OpenImageIO writes it."""
    path = f"/tmp/drender-fuzz-{os.getpid()}.{suffix}"
    spec = oiio.ImageSpec(16, 12, channels, kind)
    for name, value in attributes.items():
        spec.attribute(name.replace("__", ":"), value)
    if "tile" in attributes:
        spec.tile_width = spec.tile_height = attributes["tile"]
    output = oiio.ImageOutput.create(path)
    assert output.open(path, spec) and output.write_image(np.ascontiguousarray(FRAME[..., :channels]))
    assert output.close()
    data = Path(path).read_bytes()
    os.unlink(path)
    return data


def video(form: str, codec: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=7)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        container.metadata["title"] = "a title"
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def animation(form: str) -> bytes:
    """Return an animated image as Pillow writes it."""
    file = io.BytesIO()
    images = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (12, 16, 3), np.uint8)) for i in range(3)]
    images[0].save(file, form, save_all=True, append_images=images[1:], duration=40)
    return file.getvalue()


def weights() -> bytes:
    random = np.random.default_rng(0)
    tensors = {"conv.weight": random.random((2, 3)).astype("f4"), "conv.bias": random.random(3).astype("f2")}
    return save(tensors, {"format": "pt"})


def latents() -> bytes:
    file = io.BytesIO()
    np.savez(file, windows=np.array([(0, 2), (1, 3)]), pieces=np.zeros((2, 1, 2, 4, 4, 3), np.float32))
    return file.getvalue()


def train_values() -> dict:
    """Return the values of CONFIG, in which YAML alone would take 1e-4 for a string."""
    return yaml.safe_load(CONFIG.replace("1e-4", "0.0001"))


def as_json(value) -> bytes:
    return json.dumps(value).encode()


# Reader -> names and makers of valid files.
VALID: dict[str, list[tuple[str, Callable[[], bytes]]]] = {
    "png": [
        ("a.png", lambda: still("png", 3, "uint8")),
        ("a.png", lambda: still("png", 4, "uint16", ImageDescription="words")),
    ],
    "jpeg": [("a.jpg", lambda: still("jpg", 3, "uint8", Orientation=6, ImageDescription="words"))],
    "tiff": [
        ("a.tif", lambda: still("tif", 3, "uint16", compression="zip", ImageDescription="words")),
        ("a.tif", lambda: still("tif", 4, "uint8", compression="none")),
        ("a.tif", lambda: still("tif", 3, "uint8", compression="lzw", tile=16)),
        ("a.tiff", lambda: still("tif", 1, "float", compression="packbits")),
    ],
    "webp": [
        ("a.webp", lambda: still("webp", 3, "uint8")),
        ("a.webp", lambda: still("webp", 4, "uint8", compression="lossless:100")),
    ],
    "hdr": [("a.hdr", lambda: still("hdr", 3, "float"))],
    "exr": [
        ("a.exr", lambda: still("exr", 3, "half", compression="zip", ImageDescription="words")),
        ("a.exr", lambda: still("exr", 4, "float", compression="none", tile=16)),
        ("a.exr", lambda: still("exr", 3, "half", compression="piz")),
        ("a.exr", lambda: still("exr", 3, "half", compression="dwaa")),
        ("a.exr", lambda: still("exr", 3, "half", compression="b44")),
    ],
    "animation": [
        ("a.gif", lambda: animation("GIF")),
        ("a.webp", lambda: animation("WEBP")),
        ("a.png", lambda: animation("PNG")),
    ],
    "video": [
        ("a.mp4", lambda: video("mp4", "libx264")),
        ("a.mkv", lambda: video("matroska", "libx264")),
        ("a.avi", lambda: video("avi", "mpeg4")),
        ("a.mov", lambda: video("mov", "mjpeg")),
        ("a.webm", lambda: video("webm", "libvpx-vp9")),
    ],
    "safetensors": [("model.safetensors", weights)],
    "index": [
        ("model.safetensors.index.json", lambda: as_json({"weight_map": {"a": "model-00001-of-00001.safetensors"}}))
    ],
    "yaml": [("a.yaml", CONFIG.encode)],
    "record": [("inverse.json", lambda: as_json(RECORD | {"fps": 7.0}))],
    "config": [("config.json", lambda: as_json(to_dict(RendererConfig("forward", env_encoder=EnvEncoderConfig()))))],
    "run": [("run.json", lambda: as_json({"train": train_values(), "model": to_dict(RendererConfig("svd"))}))],
    "set": [("set.json", lambda: as_json(SET))],
    "light": [("light.json", lambda: as_json(LIGHT))],
    "poses": [("transforms.json", lambda: as_json(POSES))],
    "latents": [(".0000.normal.latents.npz", latents)],
}
TEXTS = ("index", "yaml", "record", "config", "run", "set", "light", "poses")
NAMES = "0000.0000.basecolor.png", "a.basecolor.png", "basecolor", "0001.0000.normal.png", "x.normal.exr"


@functools.cache
def valid(reader: str, number: int) -> tuple[str, bytes]:
    """The name and the bytes of a valid file."""
    name, make = VALID[reader][number]
    return name, make()
