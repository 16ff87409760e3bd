"""Composite an object's G-buffers into those of a clip by depth and mask, so that `forward` lights both as one scene.

The object is read from G-buffers with a `mask`, as `python -m drender.synthetic` writes them, or rendered here from a
mesh or a parametric shape by Mitsuba (the extra `data`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from scipy.ndimage import distance_transform_edt
from scipy.spatial.transform import Rotation

from drender.editing.masks import mask_weights, same_aspect, select_clip
from drender.editing.materials import blend, to_linear, to_stored
from drender.errors import InputError, extent, naming, unknown_name_error
from drender.lighting.camera import require_poses
from drender.media.encodings import DEFAULT, Cameras, InputEncoding, decode_normal, encode_normal, read_labeled
from drender.media.gbuffers import GBufferClip, buffer_labels, find_gbuffer_clips
from drender.media.resize import resize

Image, Mask = Float32[np.ndarray, "h w 3"], Float32[np.ndarray, "h w 1"]

SOLID_COVERAGE = 0.999  # from this coverage on, a pixel shows the object alone
# Estimated depths are inexact where surfaces touch, so occlusion fades in over this difference in depth.
OCCLUSION_SOFTNESS = 0.02
GRAY = (0.6, 0.6, 0.6, 0.5, 0.0)  # basecolor (linear), roughness and metallic of shapes and files without material
RENDERED = ("basecolor", "normal", "depth", "roughness", "metallic")
CAMERA_DISTANCE = 4.0  # from a rendered object; its image depends only on the size in the picture and the field of view
# The guide is lit from over the viewer's right shoulder, plus an ambient share.
GUIDE_LIGHT, GUIDE_AMBIENT = np.array([0.3, 0.8, 0.52], np.float32), 0.35


@dataclass(frozen=True)
class Layer:
    """One frame of an object."""

    images: Mapping[str, Image]  # as stored, of the object alone: edge pixels are not mixed with a background
    coverage: Mask  # share of each pixel that the object covers, in [0, 1]

    @classmethod
    def from_mask(cls, images: Mapping[str, Image], coverage: Mask) -> "Layer":
        """Cut an object out of buffers; edge pixels, mixed with a background, take the nearest value inside."""
        solid = coverage[..., 0] >= (SOLID_COVERAGE if coverage.max() >= SOLID_COVERAGE else 0.5)
        if solid.any():
            rows, columns = distance_transform_edt(~solid, return_distances=False, return_indices=True)
            images = {label: image[rows, columns] for label, image in images.items()}
        return cls(images, coverage)

    def depth_range(self) -> tuple[float, float]:
        """Return the least and greatest stored depth; (inf, -inf) if no pixel is covered."""
        inside = self.coverage[..., 0] > 0.5
        depth = self.images["depth"][..., 0]
        return float(depth.min(initial=np.inf, where=inside)), float(depth.max(initial=-np.inf, where=inside))


def insert(
    buffers: Mapping[str, Image], layer: Layer, own: tuple[float, float], place: tuple[float, float]
) -> tuple[dict[str, Image], Mask]:
    """Composite an object into the buffers of a frame; return them, and the visible share of the object in each pixel.

    Surfaces in front of the object by more than OCCLUSION_SOFTNESS hide it. Edges mix by coverage: colors in linear
    light, normals as vectors that are renormalized. Where the object is invisible, every buffer keeps its bits.
    InputError if the object lacks a buffer of the clip, or the clip has no depth.

    Args:
      own, place: near and far depth of the object, and the depths in the clip, in [0, 1], that they are mapped to.
    """
    if missing := [label for label in buffers if label not in layer.images and label not in ("rgb", "mask")]:
        raise InputError(f"the object has no {', no '.join(missing)}, which the clip has; add it to the object's files")
    if "depth" not in buffers:
        raise InputError("the clip has no depth to occlude the object by; add its depth images")
    relative = (layer.images["depth"] - np.float32(own[0])) / np.float32(max(own[1] - own[0], 1e-6))
    depth = (place[0] + relative.clip(0, 1) * (place[1] - place[0])).astype(np.float32)
    visible = ((buffers["depth"] - depth)[..., :1] / OCCLUSION_SOFTNESS + 1).clip(0, 1) * layer.coverage
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
    """Return the picture with the object drawn over it, without shadows or highlights, as a preview of its place."""
    normal = decode_normal(layer.images["normal"])
    facing = (normal @ (GUIDE_LIGHT / np.linalg.norm(GUIDE_LIGHT)))[..., None] / 2 + 0.5
    light = to_linear("basecolor", layer.images["basecolor"]) * (GUIDE_AMBIENT + (1 - GUIDE_AMBIENT) * facing)
    return blend("basecolor", rgb, to_stored("basecolor", light), visible)


def add_diffuse_albedo(images: Mapping[str, Image]) -> dict[str, Image]:
    """Add the diffuse albedo, basecolor × (1 − metallic) in linear light, to an object's buffers that lack it."""
    if "diffuse_albedo" in images or not {"basecolor", "metallic"} <= images.keys():
        return dict(images)
    diffuse = to_linear("basecolor", images["basecolor"]) * (1 - images["metallic"])
    return {**images, "diffuse_albedo": to_stored("diffuse_albedo", diffuse)}


# --- Placement in depth ---


def place_depth(layer: Layer, depth: Image, place: tuple[float, ...] | None) -> tuple[float, float]:
    """Return the near and far depth in the clip for an object's least and greatest depth.

    Args:
      layer, depth: the object and the clip's depth in a frame; InputError if the object is not visible there.
      place: (near, far), or (middle,): the depth of the object's center, which is the far depth of a convex object; its
        front is nearer by half its height in units of the picture's height. None: the middle is the clip's depth behind
        the lowest row of the mask, so that the object stands on the surface there.
    """
    if place is not None and len(place) == 2:
        return place
    inside = layer.coverage[..., 0] > 0.5
    rows = np.flatnonzero(inside.any(axis=1))
    if len(rows) == 0:
        raise InputError("the object is outside the picture; give it another --position, or check its mask")
    middle = place[0] if place else float(np.median(depth[rows[-1], inside[rows[-1]], 0]))
    return max(middle - (len(rows) / len(inside)) / 2, 0.0), middle


# --- Objects ---


class FileObject:
    """An object read from G-buffers with a mask; InputError if there are none.

    Args:
      path: folder of a clip, or of several clips that are matched to the input's clips by name.
      frame: frame to hold. None: an object of one frame is static; otherwise it has as many frames as the clip.
      encoding: of files that do not state theirs.
      cameras: camera-to-world rotations of the frames of the object, for normals in world space.
    """

    def __init__(
        self, path: str | Path, frame: int | None = None, encoding: InputEncoding = DEFAULT, cameras: Cameras = None
    ):
        self.path, self.frame, self.cameras = path, frame, cameras
        with naming("--object"):
            labels = ("mask", *buffer_labels(path))
            clips = find_gbuffer_clips(path, ("depth",), labels=labels, assumed=encoding)
        self._clips = {clip.name: clip for clip in clips}

    def check(self, name: str, num_frames: int, labels: Sequence[str]) -> None:
        """Raise InputError unless the object fits a clip of this name, frame count and buffer labels."""
        clip, where = self._clip(name), f"--object {self.path}"
        count = clip.num_frames
        if "mask" not in clip.labels:
            raise InputError(f"{where}: expected a mask of every frame (….mask.png) to cut it out; add the files")
        if self.frame is not None and not 0 <= self.frame < count:
            raise InputError(f"--object-frame {self.frame}: expected a frame of {self.path}, 0 to {count - 1}")
        if self.frame is None and count not in (1, num_frames):
            expected = f"expected 1 or {num_frames} frames for clip {name!r}, got {count}"
            raise InputError(f"{where}: {expected}; hold one with --object-frame")
        require_poses(f"{where}:", count if self.frame is None else self.frame + 1, self.cameras)
        if missing := [label for label in labels if label not in (*clip.labels, "diffuse_albedo")]:
            raise InputError(f"{where}: has no {', no '.join(missing)}, which clip {name!r} has; add the files")

    def layer(self, name: str, index: int, size: tuple[int, int]) -> Layer:
        """Return the object for frame `index` of the clip `name`, at (height, width) = `size`."""
        clip = self._clip(name)
        index = self.frame if self.frame is not None else index if clip.num_frames > 1 else 0
        camera, images = None if self.cameras is None else self.cameras[index], {}
        for label, paths in clip.paths.items():
            image = read_labeled(paths[index], label, clip.encoding(label), camera=camera)
            if not same_aspect(image.shape[:2], size):
                expected = f"expected {label} of the clip's aspect ratio, {extent(size)}, got {extent(image.shape)}"
                raise InputError(f"--object {self.path}: {expected}; resize or crop it")
            images[label] = resize(image, size)
        return Layer.from_mask(images, mask_weights(f"--object {self.path}", images.pop("mask")))

    def still(self, name: str) -> bool:
        """Return whether the object looks the same in all frames."""
        return self.frame is not None or self._clip(name).num_frames == 1

    def _clip(self, name: str) -> GBufferClip:
        return select_clip(name, self._clips, f"--object {self.path}")


class RenderedObject:
    """A static object rendered before a fixed camera, with the materials of its file or else a dull gray one.

    Args:
      shape: a family of `synthetic.shapes.FAMILIES`, or the path of a mesh.
      position: center in the picture; (0, 0) is the upper left corner, (1, 1) the lower right one.
      height: height of the bounding ball, in units of the picture's height.
      turn: yaw about the vertical, pitch and roll in degrees; (0, 0, 0) shows the side that faces +z.
      fov: vertical field of view in degrees.
    Raises:
      InputError: a value is out of range, the mesh is unreadable, or the extra `data` is not installed.
    """

    def __init__(self, shape: str, position=(0.5, 0.5), height=0.4, turn=(0.0, 0.0, 0.0), fov=40.0):
        from drender.synthetic import mesh_files, shapes  # local: needs the extra `data`
        from drender.synthetic.tracer import load_mitsuba

        if not (np.isfinite(height) and height > 0):
            raise InputError(f"--height: expected more than 0, got {height:g}")
        if not 1 <= fov <= 150:
            raise InputError(f"--fov: expected 1 to 150 degrees, got {fov:g}")
        if not np.isfinite([*position, *turn]).all():
            raise InputError("--position, --turn: expected finite numbers")
        self.position, self.height, self.turn, self.fov = position, height, turn, np.deg2rad(fov)
        self._surfaces, self.files = [np.array(GRAY, np.float32)], ()
        if shape in shapes.FAMILIES:
            self._mesh = shapes.parametric(shape, 0)
        elif Path(shape).suffix.lower() in mesh_files.MESH_SUFFIXES:
            if not Path(shape).is_file():
                raise InputError(f"--object {shape}: file not found")
            file = mesh_files.read_mesh(shape)
            self.files = file.files  # on which the results depend
            self._mesh, self._surfaces = file.mesh, mesh_files.part_surfaces(file.parts, seed=0) or self._surfaces
        else:
            hint = str(unknown_name_error("shape", shape, shapes.FAMILIES)).partition("; ")[2]
            expected = f"expected a folder of G-buffers, a mesh ({' '.join(mesh_files.MESH_SUFFIXES)}) or a shape"
            raise InputError(f"--object {shape}: {expected}; {hint}")
        load_mitsuba()  # raises before any clip is read if Mitsuba is not installed
        self._layers: dict[tuple[int, int], Layer] = {}

    def check(self, name: str, num_frames: int, labels: Sequence[str]) -> None:
        """Accept every clip."""

    def still(self, name: str) -> bool:
        return True

    def layer(self, name: str, index: int, size: tuple[int, int]) -> Layer:
        """Return the rendered object at (height, width) = `size`; the same for every clip and frame."""
        if size not in self._layers:
            self._layers[size] = self._render(size)
        return self._layers[size]

    def _render(self, size: tuple[int, int]) -> Layer:
        from drender.synthetic.tracer import Tracer

        tracer, (height, width) = Tracer(size, spp=1), size
        extent = np.tan(self.fov / 2) * CAMERA_DISTANCE  # half the picture's height in world units at the object
        x, y = (2 * self.position[0] - 1) * extent * width / height, (1 - 2 * self.position[1]) * extent
        rotation = Rotation.from_euler("YXZ", self.turn, degrees=True).as_matrix()
        placed = self._mesh.placed(rotation, ball_radius(self.height, self.fov), np.array([x, y, -CAMERA_DISTANCE]))
        tracer.set_materials(self._surfaces)
        tracer.set_objects([placed])
        frame = tracer.surfaces(np.eye(4, dtype=np.float32), self.fov)
        alone = {name: getattr(frame, name) / np.maximum(frame.coverage, 1e-6) for name in RENDERED}
        alone["normal"] = encode_normal(decode_normal(encode_normal(alone["normal"])))  # of unit length again
        alone["basecolor"] = to_stored("basecolor", alone["basecolor"].clip(0, 1))
        alone["depth"] = alone["depth"] / max(frame.far, 1e-6)
        images = {label: np.broadcast_to(x, (height, width, 3)).astype(np.float32) for label, x in alone.items()}
        return Layer(images, frame.coverage)


def ball_radius(height: float, fov: float) -> float:
    """Return the radius of a ball at CAMERA_DISTANCE whose outline is `height` picture heights high; fov in radians."""
    outline = height * np.tan(fov / 2)  # where rays touch the ball, in front of its center
    return float(CAMERA_DISTANCE * outline / np.sqrt(1 + outline**2))
