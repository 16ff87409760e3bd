"""Import public data sets and renders as training clips, in our layout and conventions.

    hypersim        Roberts et al. 2021     {scene}/images/scene_cam_{NN}_{final,geometry}_hdf5/frame.{IIII}.*.hdf5
    interiorverse   Zhu et al. 2022         {scene}/{NNN}_{im,albedo,material,normal,depth,mask}.exr
    blender         own renders             transforms.json and multi-layer EXR files

A clip appears when it is complete, and clips that exist are kept, so that a second start continues. None of the sets
has the light: they train the inverse renderer.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32
from tqdm import tqdm

from drender.errors import Failures, InputError, first_line
from drender.files import atomic_dir, folder_name, list_dir, map_collecting_errors, natural_order, read_json
from drender.lighting.camera import read_poses
from drender.media.color import linear_to_srgb
from drender.media.encodings import SCALAR_LABELS, ImageFormat, encode_normal, is_color
from drender.media.gbuffers import frame_path
from drender.media.images import IMAGE_SUFFIXES, load_image, open_image, write_png
from drender.media.layers import find_layer

# By label: linear colors [h, w, 3], unit normals [h, w, 3] in camera space, z depth, roughness and metallic [h, w],
# valid [h, w], true where all labels are valid.
Frame = dict[str, np.ndarray]
# Blender writes 1e10 where no surface is.
MAX_DEPTH = 1e9
# Tone mapping as published for Hypersim: this percentile of the brightness becomes 0.8 after a gamma of 2.2.
PERCENTILE, DISPLAYED = 90, 0.8**2.2
BRIGHTNESS = (0.3, 0.59, 0.11)
# Hypersim's horizontal field of view.
HYPERSIM_FOV = math.pi / 3


@dataclass(frozen=True)
class SourceClip:
    """A clip of a data set."""

    name: str  # of the folder to write
    frames: tuple[Callable[[], Frame], ...]  # a function per frame that reads it
    tone_maps: bool = True  # scale the picture by the percentile rule; else its exposure is kept


def import_clips(kind: str, source: str | Path, destination: str | Path) -> None:
    """Import the clips below `source` that `destination` does not hold yet.

    Args:
      kind: one of `READERS`.
      source: folder of the set, or of one scene.
    Raises:
      InputError: there is no clip, two have one name, or some cannot be read; the others are imported.
    """
    if not Path(source).is_dir():
        raise InputError(f"{source} is not a folder" if Path(source).exists() else f"{source} does not exist")
    find, layout = READERS[kind]
    clips = list(find(Path(source)))
    if not clips:
        raise InputError(f"{source}: no clips of {kind} found; expected {layout}")
    if twice := [name for name, count in Counter(clip.name for clip in clips).items() if count > 1]:
        raise InputError(f"{source}: several clips are named {twice[0]!r}; rename their folders")
    missing = [clip for clip in clips if not (Path(destination) / clip.name).exists()]
    print(f"{destination}: {len(missing)} of {len(clips)} clips to import", flush=True)
    failures = Failures()
    interval = 0.1 if sys.stderr.isatty() else 30  # seconds
    with tqdm(total=len(missing), unit="clip", mininterval=interval, disable=not missing) as bar:

        def write(clip: SourceClip) -> None:
            bar.update()
            with atomic_dir(Path(destination) / clip.name, overwrite=False, replaceable=lambda _: False) as folder:
                write_clip(folder, clip)

        map_collecting_errors(write, missing, failures.add)
    failures.raise_if_any(len(missing))


def write_clip(folder: Path, clip: SourceClip) -> None:
    """Write the frames of a clip; depth and exposure have one scale for all of them."""
    near, far, brightness, is_masked = math.inf, -math.inf, [], False
    for read in clip.frames:
        frame = read()
        valid = frame["valid"]
        is_masked |= not valid.all()
        depth = frame["depth"][valid & (frame["depth"] < MAX_DEPTH)] if "depth" in frame else np.zeros(0)
        if depth.size:
            near, far = min(near, float(depth.min())), max(far, float(depth.max()))
        if clip.tone_maps:
            # A hundred thousand pixels of a frame suffice for a percentile.
            values = frame["rgb"][valid] @ np.float32(BRIGHTNESS)
            brightness.append(values[:: max(1, values.size // 100_000)])
    exposure = tone_scale(np.concatenate(brightness)) if clip.tone_maps else 1.0
    for index, read in enumerate(clip.frames):
        for label, image in encode_frame(read(), exposure, (near, far)).items():
            if label == "valid":
                if is_masked:
                    write_png(frame_path(folder, 0, index, label), image)
            else:
                bits = 16 if label in ("depth", "normal") else 8
                ImageFormat(bits=bits).write(frame_path(folder, 0, index, label), image, label)


def tone_scale(brightness: Float[np.ndarray, " n"]) -> float:
    """Return the factor on linear light by the published rule; 1 without pixels, 0 for black ones."""
    if not brightness.size:
        return 1.0
    current = float(np.percentile(brightness, PERCENTILE))
    return 0.0 if current < 1e-4 else DISPLAYED / current


def encode_frame(frame: Frame, exposure: float, depths: tuple[float, float]) -> dict[str, Float32[np.ndarray, "h w 3"]]:
    """Return the images to store, in [0, 1]; see `drender.media.encodings`."""
    valid, images = frame["valid"], {}
    depth = frame.get("depth")
    background = ~valid if depth is None else ~(valid & (depth < MAX_DEPTH))
    near, far = depths
    for label, values in frame.items():
        values = np.where(valid if values.ndim == 2 else valid[..., None], values, 0)
        if is_color(label):
            scaled = np.maximum(values, 0) * np.float32(exposure if label == "rgb" else 1)
            image = linear_to_srgb(np.minimum(scaled, 1).astype(np.float32))
        elif label == "normal":
            length = np.linalg.norm(values, axis=-1, keepdims=True)
            unit = np.where(background[..., None] | (length < 0.5), (0, 0, 1), values / np.maximum(length, 1e-6))
            image = encode_normal(unit)
        elif label == "depth":
            image = np.where(background, 1, (values - near) / max(far - near, 1e-6))
        else:
            image = np.where(background, 0.5, values) if label == "roughness" else values
        if label in (*SCALAR_LABELS, "valid"):
            image = np.repeat(image[..., None], 3, axis=-1)
        images[label] = np.clip(image, 0, 1).astype(np.float32)
    return images


def _require(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path}: missing; add it, or remove the other files of its frame")
    return path


# --- Hypersim --------------------------------------------------------------------------------------------------------


def find_hypersim(source: Path) -> Iterator[SourceClip]:
    """Yield a clip per camera trajectory."""
    pattern = "images/scene_cam_*_final_hdf5"
    for final in sorted([*source.glob(pattern), *source.glob(f"*/{pattern}")]):
        scene, camera = folder_name(final.parents[1]), final.name.removesuffix("_final_hdf5").removeprefix("scene_")
        frames = sorted(file.name.split(".")[1] for file in final.glob("frame.*.color.hdf5"))
        if frames:
            readers = tuple(partial(read_hypersim, final, frame) for frame in frames)
            yield SourceClip(f"{scene}_{camera}", readers)


def read_hypersim(final: Path, frame: str) -> Frame:
    """Read a frame: color, diffuse albedo, normal and depth.

    `depth_meters` is the distance along the ray through (x, y, 1): z = distance / √(1 + x² + y²).
    """
    geometry = final.with_name(final.name.replace("_final_", "_geometry_"))
    color = _read_hdf5(final / f"frame.{frame}.color.hdf5")
    distance = _read_hdf5(geometry / f"frame.{frame}.depth_meters.hdf5")
    normal = _read_hdf5(geometry / f"frame.{frame}.normal_cam.hdf5")
    entity = _read_hdf5(geometry / f"frame.{frame}.render_entity_id.hdf5")
    height, width = distance.shape
    focal = width / 2 / math.tan(HYPERSIM_FOV / 2)
    x, y = (np.arange(width) + 0.5 - width / 2) / focal, (np.arange(height) + 0.5 - height / 2) / focal
    depth = distance / np.sqrt(1 + x**2 + y[:, None] ** 2)
    albedo = _read_hdf5(final / f"frame.{frame}.diffuse_reflectance.hdf5")
    images = {"rgb": color, "diffuse_albedo": albedo, "normal": normal, "depth": depth.astype(np.float32)}
    return images | {"valid": (entity != -1) & _finite(images)}


def _read_hdf5(path: Path) -> np.ndarray:
    try:
        import h5py
    except ImportError:
        raise InputError("hypersim: the package h5py is missing; pip install 'drender[hypersim]'") from None
    try:
        with h5py.File(_require(path)) as file:
            array = file["dataset"][()]
    except (OSError, KeyError, RuntimeError) as error:
        raise InputError(f"{path}: not a readable HDF5 file ({first_line(error)}); download it again") from error
    return array.astype(np.float32) if np.issubdtype(array.dtype, np.floating) else array


def _finite(images: Mapping[str, np.ndarray]) -> Bool[np.ndarray, "h w"]:
    """Return where the values of all labels are finite."""
    return np.logical_and.reduce([np.isfinite(x) if x.ndim == 2 else np.isfinite(x).all(-1) for x in images.values()])


# --- InteriorVerse ---------------------------------------------------------------------------------------------------


def find_interiorverse(source: Path) -> Iterator[SourceClip]:
    """Yield a clip of one frame per view, because the views of a scene are unrelated."""
    for file in sorted(source.rglob("*_im.exr")):
        view = file.name.removesuffix("_im.exr")
        yield SourceClip(f"{folder_name(file.parent)}_{view}", (partial(read_interiorverse, file.parent, view),))


def read_interiorverse(scene: Path, view: str) -> Frame:
    """Read a view; `material` holds roughness in R and metallic in G, and depth is in millimeters, infinite outside."""
    kinds = ("im", "albedo", "material", "normal", "depth", "mask")
    im, albedo, material, normal, depth, mask = (
        load_image(_require(scene / f"{view}_{kind}.exr"), kind).image for kind in kinds
    )
    images = {"rgb": im, "basecolor": albedo, "normal": normal, "depth": depth[..., 0] / np.float32(1000)}
    images |= {"roughness": material[..., 0], "metallic": material[..., 1]}
    return images | {"valid": (mask[..., 0] > 0.5) & _finite(images)}


# --- Blender ---------------------------------------------------------------------------------------------------------

# Strict names: `DiffCol`, which is black on metals, is the diffuse albedo and no basecolor.
BLENDER_LABELS = {"rgb": "rgb", "basecolor": "base_color", "diffuse_albedo": "diffuse_albedo", "normal": "normal"} | {
    name: name for name in SCALAR_LABELS
}


def find_blender(source: Path) -> Iterator[SourceClip]:
    """Yield a clip per transforms.json, in `source` or in folders below it."""
    for folder in (source, *(entry for entry in list_dir(source) if entry.is_dir())):
        if not (file := folder / "transforms.json").is_file():
            continue
        poses, remedy = read_poses(file), "give frames with file_path and transform_matrix"
        try:
            paths = sorted((frame["file_path"] for frame in read_json(file, remedy)["frames"]), key=natural_order)
        except (KeyError, AttributeError) as error:
            raise InputError(f"{file}: unreadable ({error}); {remedy}") from None
        readers = tuple(partial(read_blender, folder / path, pose) for path, pose in zip(paths, poses, strict=True))
        yield SourceClip(folder_name(folder), readers, tone_maps=False)


def read_blender(path: Path, pose: Float32[np.ndarray, "4 4"]) -> Frame:
    """Read the passes of a multi-layer EXR; normals are turned from world to camera space.

    Args:
      path: without its suffix, or with it or that of another image of the frame.
      pose: camera-to-world, with OpenGL's axes.
    """
    if path.suffix.lower() != ".exr":
        path = path.with_suffix(".exr") if path.suffix.lower() in IMAGE_SUFFIXES else path.with_name(f"{path.name}.exr")
    images: dict[str, Any] = {}
    for label, name in BLENDER_LABELS.items():
        if _has_layer(path, name):
            far = 2 * MAX_DEPTH if label == "depth" else 0.0  # where a region that was rendered ends
            still = load_image(path, name, background=far)
            image = still.as_linear(path) if is_color(label) else still.image
            images[label] = image[..., 0] if label in SCALAR_LABELS else image
    if "rgb" not in images or len(images) == 1:
        raise InputError(f"{path}: expected the passes Combined and others such as Normal, Depth or DiffCol; add them")
    if "normal" in images:
        images["normal"] = images["normal"] @ pose[:3, :3]
    if "depth" in images:  # infinite is background too
        images["depth"] = np.where(np.isposinf(images["depth"]), np.float32(2 * MAX_DEPTH), images["depth"])
    return images | {"valid": _finite(images)}


def _has_layer(path: Path, name: str) -> bool:
    """Whether a layer of an EXR has one of the names of a pass; raise InputError if several have."""
    source = open_image(_require(path))
    try:
        layer = find_layer(source, path, name)
    except InputError as error:
        if "several layers fit" in str(error):
            raise
        return False
    finally:
        source.close()
    return layer is not None and (bool(layer.name) or name == "rgb")


# Per kind: the function that finds the clips in a folder, and the files that it expects.
READERS: dict[str, tuple[Callable[[Path], Iterator[SourceClip]], str]] = {
    "hypersim": (find_hypersim, "{scene}/images/scene_cam_00_final_hdf5/frame.0000.color.hdf5 and …_geometry_hdf5"),
    "interiorverse": (find_interiorverse, "{scene}/000_im.exr with 000_albedo.exr, …"),
    "blender": (find_blender, "transforms.json beside the EXR files of a clip, or in a folder per clip"),
}
