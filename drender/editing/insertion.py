"""Insertion: an object's G-buffers laid over a clip's, by depth and mask, so that `forward` lights both as one scene.

The object comes from files, G-buffers with a `mask` as `python -m drender.synthetic` writes them, or from a mesh or a
shape that is rendered here by Mitsuba (the extra `data`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from scipy.ndimage import distance_transform_edt
from scipy.spatial.transform import Rotation

from drender.editing.masks import of_clip, same_view
from drender.editing.materials import blend, to_linear, to_stored
from drender.errors import InputError, unknown_name_error
from drender.media.encodings import decode_normal, encode_normal, renormalize_normals
from drender.media.gbuffers import GBufferClip, find_gbuffer_clips
from drender.media.resize import resize

Image, Mask = Float32[np.ndarray, "h w 3"], Float32[np.ndarray, "h w 1"]

SOLID = 0.999  # coverage of a pixel that shows nothing but the object
# Over how much more depth a surface in front covers an object: estimated depths are not exact where they touch.
SOFT = 0.02
RENDERED = ("basecolor", "normal", "depth", "roughness", "metallic")
CAMERA_DISTANCE = 4.0  # of a rendered object; what it shows depends on its size and the field of view alone
# Light of the guide, over the viewer's right shoulder, and how much of it there is everywhere.
GUIDE_LIGHT, GUIDE_AMBIENT = np.array([0.3, 0.8, 0.52], np.float32), 0.35


@dataclass(frozen=True)
class Layer:
    """A frame of an object.

    Attributes:
      images: by label, `h w 3` as stored, of the object alone up to its edges: not mixed with a background.
      coverage: the share of each pixel that the object covers.
    """

    images: Mapping[str, Image]
    coverage: Mask

    @classmethod
    def cut(cls, images: Mapping[str, Image], mask: Image) -> "Layer":
        """Of buffers in which the edges are mixed with some background: these take what lies next to them inside."""
        coverage = mask.mean(axis=-1, keepdims=True)
        solid = coverage[..., 0] >= (SOLID if coverage.max() >= SOLID else 0.5)
        if solid.any():
            rows, columns = distance_transform_edt(~solid, return_distances=False, return_indices=True)
            images = {label: image[rows, columns] for label, image in images.items()}
        return cls(images, coverage)

    def depth_range(self) -> tuple[float, float]:
        """Its least and greatest depth, as stored; infinite and minus that where nothing is covered."""
        inside = self.coverage[..., 0] > 0.5
        depth = self.images["depth"][..., 0]
        return float(depth.min(initial=np.inf, where=inside)), float(depth.max(initial=-np.inf, where=inside))


def insert(
    buffers: Mapping[str, Image], layer: Layer, own: tuple[float, float], place: tuple[float, float]
) -> tuple[dict[str, Image], Mask]:
    """A frame's buffers with the object among them, and how much of each pixel shows it: where that is 0, every buffer
    keeps its bits.

    What lies in front of the object, by more than SOFT, hides it. Edges mix by coverage: colours in linear light,
    normals as vectors that are made unit again.

    Args:
      own: the object's depths, as it has them, that are put at the clip's depths `place`, near and far; in [0, 1].
    Raises:
      InputError: the object lacks a buffer, or the frame its depth.
    """
    if lacks := [label for label in buffers if label not in layer.images and label not in ("rgb", "mask")]:
        raise InputError(f"the object has no {', no '.join(lacks)}, which the clip has; add it to the object's files")
    if "depth" not in buffers:
        raise InputError("the clip has no depth, which says what is in front of the object")
    within = (layer.images["depth"] - np.float32(own[0])) / np.float32(max(own[1] - own[0], 1e-6))
    depth = (place[0] + within.clip(0, 1) * (place[1] - place[0])).astype(np.float32)
    visible = ((buffers["depth"] - depth)[..., :1] / SOFT + 1).clip(0, 1) * layer.coverage
    images = {**layer.images, "depth": depth, "mask": np.ones_like(depth)}
    result = dict(buffers)
    for label in buffers.keys() - {"rgb"}:
        if label == "normal":
            mixed = decode_normal(buffers[label]) * (1 - visible) + decode_normal(images[label]) * visible
            mixed = encode_normal(mixed / np.maximum(np.linalg.norm(mixed, axis=-1, keepdims=True), 1e-6))
            result[label] = np.where(visible > 0, mixed, buffers[label]).astype(np.float32)
        else:
            result[label] = blend(label, buffers[label], images[label], visible)
    return result, visible


def guide(rgb: Image, layer: Layer, visible: Mask) -> Image:
    """The picture with the object over it, in a plain light: no shadows, no highlights; to judge its place by."""
    normal = decode_normal(layer.images["normal"])
    facing = (normal @ (GUIDE_LIGHT / np.linalg.norm(GUIDE_LIGHT)))[..., None] / 2 + 0.5
    light = to_linear("basecolor", layer.images["basecolor"]) * (GUIDE_AMBIENT + (1 - GUIDE_AMBIENT) * facing)
    return blend("basecolor", rgb, to_stored("basecolor", light), visible)


def with_albedo(images: Mapping[str, Image]) -> dict[str, Image]:
    """The buffers of an object with its diffuse albedo, basecolor × (1 − metallic) in linear light, if they lack it."""
    if "diffuse_albedo" in images or not {"basecolor", "metallic"} <= images.keys():
        return dict(images)
    diffuse = to_linear("basecolor", images["basecolor"]) * (1 - images["metallic"])
    return {**images, "diffuse_albedo": to_stored("diffuse_albedo", diffuse)}


# ---- Where a layer's depth goes ----


def placed(layer: Layer, depth: Image, place: tuple[float, ...] | None) -> tuple[float, float]:
    """The clip's depths, near and far, that an object's least and greatest one are put at.

    Args:
      layer, depth: of a frame in which the object can be seen: depth of the clip.
      place: near and far; or the depth of its middle, beyond which nothing of a convex object can be seen; its front
        is nearer by half its height, where the picture's height counts as 1. None: the middle is where its foot is: at
        the clip's depth behind the lowest row of its mask, so that it stands on what is there.
    """
    if place is not None and len(place) == 2:
        return place
    inside = layer.coverage[..., 0] > 0.5
    rows = np.flatnonzero(inside.any(axis=1))
    if len(rows) == 0:
        raise InputError("the object cannot be seen in the picture; move it, or look at its mask")
    middle = place[0] if place else float(np.median(depth[rows[-1], inside[rows[-1]], 0]))
    return max(middle - (len(rows) / len(inside)) / 2, 0.0), middle


# ---- Objects ----


class FileObject:
    """An object of G-buffers on disk, with a mask; InputError if they cannot be read.

    Args:
      path: the folder of a clip, or of several, of which each goes with the clip of its name.
      frame: to hold; None: an object of one frame stands still, another has as many as the clip that it is put in.
    """

    def __init__(self, path: str | Path, frame: int | None = None):
        self.path, self.frame = path, frame
        try:
            found = find_gbuffer_clips(path, ("depth",), labels=("mask",))
        except InputError as error:
            raise InputError(f"--object: {error}") from None
        self._clips = {clip.name: clip for clip in found}

    def check(self, name: str, num_frames: int, labels: Sequence[str]) -> None:
        """InputError if it does not fit to a clip of that name, with so many frames and these buffers."""
        clip, count = self._clip(name), len(self._places(name))
        if "mask" not in clip.labels:
            raise InputError(
                f"--object {self.path}: has no mask of every frame (….mask.png) to cut the object out by; add it"
            )
        if self.frame is not None and not 0 <= self.frame < count:
            raise InputError(f"--object-frame {self.frame}: {self.path} has frames 0 to {count - 1}")
        if self.frame is None and count not in (1, num_frames):
            raise InputError(
                f"--object {self.path}: has {count} frames, but clip {name!r} {num_frames}; hold one by --object-frame"
            )
        if lacks := [label for label in labels if label not in (*clip.labels, "diffuse_albedo")]:
            raise InputError(
                f"--object {self.path}: has no {', no '.join(lacks)}, which clip {name!r} has; add the files"
            )

    def layer(self, name: str, index: int, size: tuple[int, int]) -> Layer:
        """What it looks like in a frame of (height, width) = `size`, of the clip of that name."""
        clip, places = self._clip(name), self._places(name)
        chunk, i = places[self.frame if self.frame is not None else index if len(places) > 1 else 0]
        images = {label: clip.read(label, chunk, i, i + 1)[0] for label in clip.labels}
        for label, image in images.items():
            if not same_view(image.shape[:2], size):
                (h, w), (height, width) = image.shape[:2], size
                raise InputError(
                    f"--object {self.path}: its {label} of {w}x{h} pixels has another shape than the clip's "
                    f"{width}x{height}; make them the same"
                )
        images = {label: resize(image, size) for label, image in images.items()}
        return Layer.cut(images, images.pop("mask"))

    def still(self, name: str) -> bool:
        """Whether it looks the same in all frames."""
        return self.frame is not None or len(self._places(name)) == 1

    def _clip(self, name: str) -> GBufferClip:
        return of_clip(name, self._clips, f"--object {self.path}")

    def _places(self, name: str) -> list[tuple[int, int]]:
        return [(chunk, i) for chunk, count in self._clip(name).chunks.items() for i in range(count)]


class RenderedObject:
    """An object that stands still before a fixed camera; of one material, a dull grey.

    Args:
      shape: a family of `synthetic.shapes.FAMILIES`, or the path of a mesh.
      position: of its middle in the picture: 0 0 is the upper left corner, 1 1 the lower right one.
      height: of the ball around it, where the picture's height is 1.
      turn: yaw about the vertical, pitch and roll in degrees; 0 0 0 shows the side that looks along +z.
      fov: field of view of the picture's height, in degrees.
    Raises:
      InputError: a value that makes no sense, a mesh that cannot be read, or where `data` is not installed.
    """

    def __init__(self, shape: str, position=(0.5, 0.5), height=0.4, turn=(0.0, 0.0, 0.0), fov=40.0):
        from drender.synthetic import meshes, shapes  # what they need is not always installed
        from drender.synthetic.tracer import load_mitsuba

        if not (np.isfinite(height) and height > 0):
            raise InputError(f"--height {height:g}: must be more than 0")
        if not 1 <= fov <= 150:
            raise InputError(f"--fov {fov:g}: must be 1 to 150 degrees")
        if not np.isfinite([*position, *turn]).all():
            raise InputError("--position and --turn must be finite numbers")
        self.position, self.height, self.turn, self.fov = position, height, turn, np.deg2rad(fov)
        if shape in shapes.FAMILIES:
            self._mesh = shapes.parametric(shape, 0)
        elif Path(shape).suffix.lower() in meshes.MESH_SUFFIXES:
            if not Path(shape).is_file():
                raise InputError(f"--object {shape} does not exist")
            self._mesh = meshes.read_mesh(shape)
        else:
            hint = str(unknown_name_error("shape", shape, shapes.FAMILIES)).partition("; ")[2]
            raise InputError(
                f"--object {shape}: no folder of G-buffers, "
                f"no mesh ({' '.join(meshes.MESH_SUFFIXES)}) and no shape; {hint}"
            )
        load_mitsuba()  # told before anything is read, if it is not installed
        self._layers: dict[tuple[int, int], Layer] = {}

    def check(self, name: str, num_frames: int, labels: Sequence[str]) -> None:
        """It goes with every clip."""

    def still(self, name: str) -> bool:
        return True

    def layer(self, name: str, index: int, size: tuple[int, int]) -> Layer:
        """What it looks like in a frame of (height, width) = `size`."""
        if size not in self._layers:
            self._layers[size] = self._render(size)
        return self._layers[size]

    def _render(self, size: tuple[int, int]) -> Layer:
        from drender.synthetic.tracer import TILE, Tracer

        tracer, (height, width) = Tracer(size, spp=1), size
        extent = np.tan(self.fov / 2) * CAMERA_DISTANCE  # of half the picture's height, at the object
        radius = ball_radius(self.height, self.fov)
        x, y = (2 * self.position[0] - 1) * extent * width / height, (1 - 2 * self.position[1]) * extent
        rotation = Rotation.from_euler("YXZ", self.turn, degrees=True).as_matrix()
        material = np.array([*[0.6] * 3, 0.5, 0.0], np.float32)  # basecolor is linear here
        tracer.set_materials([np.broadcast_to(material, (TILE, TILE, 5))])
        tracer.set_bodies([self._mesh.placed(rotation, radius, np.array([x, y, -CAMERA_DISTANCE]))])
        frame = tracer.surfaces(np.eye(4, dtype=np.float32), self.fov)
        alone = {name: getattr(frame, name) / np.maximum(frame.coverage, 1e-6) for name in RENDERED}
        alone["normal"] = renormalize_normals(encode_normal(alone["normal"]))
        alone["basecolor"] = to_stored("basecolor", alone["basecolor"].clip(0, 1))
        far = max(frame.far, 1e-6)
        alone["depth"] = alone["depth"] / far
        images = {
            label: np.broadcast_to(image, (height, width, 3)).astype(np.float32) for label, image in alone.items()
        }
        return Layer(images, frame.coverage)


def ball_radius(height: float, fov: float) -> float:
    """Of a ball at CAMERA_DISTANCE that is seen `height` high, where the picture, of `fov` radians, is 1."""
    outline = height * np.tan(fov / 2)
    return float(CAMERA_DISTANCE * outline / np.sqrt(1 + outline**2))  # where rays touch it, before its middle
