"""Path-trace the radiance and the G-buffers of one frame with Mitsuba 3.

The structure of Mitsuba's scene never changes, so its kernels are compiled once per process: all objects are one mesh
with one atlas of textures. Every frame sets new vertices, every clip new textures. A process traces on one core, so
sums have a fixed order and equal seeds give equal bits.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata

import numpy as np
from einops import rearrange, reduce
from jaxtyping import Float, Float32

from drender.errors import InputError
from drender.synthetic.atlas import BORDERED, COLUMNS, ROWS, Surface, encode_uv, pack, register_atlas
from drender.synthetic.meshes import Mesh

BUFFERS = 4  # G-buffer rays per pixel and axis
DENOISED = 2  # pixels of the denoised image per pixel and axis
MAX_DEPTH = 6
EXTENT = 100.0  # half the side of the box that contains every scene
MAX_SAMPLE = 50.0  # clamp of one path's radiance against fireflies; the environment's mean is 1


@dataclass(frozen=True)
class Frame:
    """Linear radiance and surface attributes, averaged over the rays of each pixel.

    Rays without a hit count as 0, so a background is added as (1 − coverage) × value.
    """

    rgb: Float32[np.ndarray, "h w 3"]
    coverage: Float32[np.ndarray, "h w 1"]  # share of rays that hit a surface
    basecolor: Float32[np.ndarray, "h w 3"]  # linear
    normal: Float32[np.ndarray, "h w 3"]  # in camera space with OpenGL axes, facing the camera
    roughness: Float32[np.ndarray, "h w 1"]
    metallic: Float32[np.ndarray, "h w 1"]
    depth: Float32[np.ndarray, "h w 1"]  # along the optical axis
    near: float  # least depth; infinite without a hit
    far: float  # greatest depth; 0 without a hit


class Tracer:
    """A path tracer of frames of (height, width) = `size` with `spp` paths per pixel; see also `load_mitsuba`."""

    def __init__(self, size: tuple[int, int], spp: int):
        self.size, self.paths = size, max(1, round(spp / DENOISED**2))
        self._mi, self._dr, self._denoise = load_mitsuba()
        mi = self._mi
        register_atlas(mi, self._dr)
        surface = {"base_color": self._texture(3), "roughness": self._texture(1), "metallic": self._texture(1)}
        properties = mi.Properties()
        properties["mesh_bsdf"] = mi.load_dict({"type": "twosided", "sides": {"type": "principled", **surface}})
        mesh = mi.Mesh("objects", 3, 1, has_vertex_normals=True, has_vertex_texcoords=True, props=properties)
        sky = {"type": "envmap", "bitmap": mi.Bitmap(np.ones((64, 128, 3), np.float32))}
        self._scene = mi.load_dict({"type": "scene", "objects": mesh, "sky": sky})
        self._parameters = mi.traverse(self._scene)
        self._places = np.empty((0, 4))
        self.set_objects([])
        self._parameters.update()
        self._integrator = mi.load_dict({"type": "path", "max_depth": MAX_DEPTH, "rr_depth": 4})
        self._sampler = mi.load_dict({"type": "independent"})

    def _texture(self, channels: int) -> dict:
        pixels = np.full((ROWS * BORDERED, COLUMNS * BORDERED, channels), 0.5, np.float32)
        bitmap = {"type": "bitmap", "raw": True, "wrap_mode": "clamp", "bitmap": self._mi.Bitmap(pixels)}  # raw: linear
        return {"type": "atlas", "bitmap": bitmap}

    def set_materials(self, surfaces: Sequence[Surface]) -> None:
        """Set the materials of the objects' parts, in order: those of the first object, of the second, and so on."""
        atlas, self._places = pack(surfaces)
        for name, channels in {"base_color": slice(3), "roughness": slice(3, 4), "metallic": slice(4, 5)}.items():
            values = self._mi.TensorXf(np.ascontiguousarray(atlas[..., channels]))
            self._parameters[f"objects.bsdf.brdf_0.{name}.bitmap.data"] = values

    def set_objects(self, meshes: Sequence[Mesh]) -> None:
        """Set the objects, in world space and in the order of their materials."""
        first_part = np.cumsum([0, *(mesh.num_parts for mesh in meshes)])
        uv = (encode_uv(mesh, self._places[first:]) for mesh, first in zip(meshes, first_part, strict=False))
        # Mitsuba ends shadow rays at the scene bounds of the previous frame, so a degenerate triangle fixes the bounds.
        bounds = np.array([[-EXTENT] * 3, [EXTENT] * 3, [EXTENT] * 3])
        corners = {
            "positions": np.concatenate([*(mesh.positions for mesh in meshes), bounds]),
            "normals": np.concatenate([*(mesh.normals for mesh in meshes), np.tile([0, 1, 0], (3, 1))]),
            "texcoords": np.concatenate([*uv, np.zeros((3, 2))]),
        }
        for name, rows in corners.items():
            values = self._mi.Float(np.ascontiguousarray(rows, np.float32).ravel())
            self._parameters[f"objects.vertex_{name}"] = values
        self._parameters["objects.faces"] = self._mi.UInt32(np.arange(len(corners["positions"]), dtype=np.uint32))

    def set_light(self, image: Float32[np.ndarray, "h w 3"], angle: float) -> None:
        """Set the light: an image of `latlong.load_latlong`, rotated by `angle` as `projection.project` rotates it."""
        # Mitsuba's first and last rows are the poles themselves. Doubling the rows makes its map equal ours.
        rows = np.clip(np.arange(2 * len(image) + 1) / 2 - 0.5, 0, len(image) - 1)
        above, down = np.floor(rows).astype(int), (rows % 1)[:, None, None]
        image = image[above] * (1 - down) + image[np.minimum(above + 1, len(image) - 1)] * down
        emitter = self._mi.load_dict({"type": "envmap", "bitmap": self._mi.Bitmap(image.astype(np.float32))})
        self._parameters["sky.data"] = self._mi.traverse(emitter)["data"]
        half_turn = 180 - float(np.rad2deg(angle))  # Mitsuba's map has +z in its center, ours −z
        self._parameters["sky.to_world"] = self._mi.Transform4f().rotate([0, 1, 0], half_turn)

    def trace(self, pose: Float32[np.ndarray, "4 4"], fov: float, seed: int) -> Frame:
        """Trace the frame seen from `pose` (camera to world, OpenGL axes); `fov` is vertical, in radians."""
        self._parameters.update()
        height, width = (DENOISED * side for side in self.size)
        self._sampler.seed(seed, height * width * self.paths)
        rays = self._rays(pose, fov, height, width, self.paths, self._sampler.next_2d())
        radiance, _, _ = self._integrator.sample(self._scene, self._sampler, self._mi.RayDifferential3f(rays))
        radiance = self._dr.select(self._dr.isfinite(radiance), self._dr.clip(radiance, 0, MAX_SAMPLE), 0)
        self._dr.eval(radiance)  # evaluate all channels together; otherwise each sum would trace the paths again
        rgb = _image([self._dr.block_sum(channel, self.paths) / self.paths for channel in radiance], height, width)
        surfaces = self._surfaces(pose, fov)
        means = {name: _mean(samples, (height, width)) for name, samples in surfaces.items()}
        # Noise-free surface attributes keep the denoiser from blurring edges and textures.
        rgb = self._denoise(rgb, albedo=means["basecolor"], normal=means["normal"], hdr=True, clean_aux=True)
        return self._frame(np.maximum(rgb, 0), means, surfaces)

    def surfaces(self, pose: Float32[np.ndarray, "4 4"], fov: float) -> Frame:
        """Return the frame of `trace` with black `rgb`, at a fraction of the time."""
        self._parameters.update()
        surfaces = self._surfaces(pose, fov)
        return self._frame(np.zeros((*self.size, 3), np.float32), surfaces, surfaces)

    def _frame(self, rgb: np.ndarray, means: dict[str, np.ndarray], surfaces: dict[str, np.ndarray]) -> Frame:
        """Average `rgb` and `means` over the pixels; the range of depths is that of the samples, `surfaces`."""
        hit, depth = surfaces["coverage"] > 0, surfaces["depth"]
        near, far = float(depth.min(initial=np.inf, where=hit)), float(depth.max(initial=0, where=hit))
        means = {name: _mean(image, self.size) for name, image in means.items()}
        return Frame(_mean(rgb, self.size), **means, near=near, far=far)

    def _surfaces(self, pose: Float32[np.ndarray, "4 4"], fov: float) -> dict[str, Float32[np.ndarray, "H W _c"]]:
        """Return the attributes hit by BUFFERS×BUFFERS rays per pixel, one sample each; 0 without a hit."""
        mi, dr = self._mi, self._dr
        height, width = (BUFFERS * side for side in self.size)
        rays = self._rays(pose, fov, height, width, 1, mi.Point2f(0.5))
        hits = self._scene.ray_intersect(rays)
        hit, surface = hits.is_valid(), hits.bsdf(mi.RayDifferential3f(rays))
        basecolor = surface.eval_attribute_3("base_color", hits, hit)
        roughness = surface.eval_attribute_1("roughness", hits, hit)
        metallic = surface.eval_attribute_1("metallic", hits, hit)
        arrays = [*basecolor, roughness, metallic, *hits.sh_frame.n, *hits.p, hit]
        dr.eval(arrays)
        image = _image(arrays, height, width)
        image = np.where(image[..., 11:] > 0, image, 0)
        normal = image[..., 5:8] @ pose[:3, :3]
        position = (image[..., 8:11] - pose[:3, 3]) @ pose[:3, :3] * image[..., 11:]
        backfacing = np.einsum("hwc,hwc->hw", normal, position)[..., None] > 0  # open meshes show their inside
        return {
            "coverage": image[..., 11:],
            "basecolor": image[..., :3],
            "normal": np.where(backfacing, -normal, normal),
            "roughness": image[..., 3:4],
            "metallic": image[..., 4:5],
            "depth": -position[..., 2:],
        }

    def _rays(self, pose: Float[np.ndarray, "4 4"], fov: float, height: int, width: int, paths: int, offset):
        """Return `paths` rays per pixel, at `offset` in [0, 1]² inside it; rows run from the top."""
        mi, dr = self._mi, self._dr
        numbers = [mi.Float(float(x)) for x in (*pose[:3].ravel(), np.tan(fov / 2))]
        dr.make_opaque(numbers)  # pass them as data: literal constants would recompile the kernel
        *pose, extent = numbers
        pixel = dr.arange(mi.UInt32, height * width * paths) // paths
        x = ((mi.Float(pixel % width) + offset.x) * 2 - width) / height * extent
        y = (height - (mi.Float(pixel // width) + offset.y) * 2) / height * extent
        direction = [pose[4 * i] * x + pose[4 * i + 1] * y - pose[4 * i + 2] for i in range(3)]
        return mi.Ray3f(mi.Point3f(pose[3], pose[7], pose[11]), dr.normalize(mi.Vector3f(*direction)))


def _image(channels: list, height: int, width: int) -> Float32[np.ndarray, "h w c"]:
    rows = np.stack([np.array(channel, np.float32) for channel in channels], axis=-1)
    return rearrange(rows, "(h w) c -> h w c", h=height, w=width)


def _mean(samples: Float32[np.ndarray, "H W c"], size: tuple[int, int]) -> Float32[np.ndarray, "h w c"]:
    """Average the samples of every pixel of an image of (h, w) = `size`."""
    return np.ascontiguousarray(reduce(samples, "(h i) (w j) c -> h w c", "mean", h=size[0], w=size[1]))


def load_mitsuba():
    """Import Mitsuba, Dr.Jit and the denoiser, limited to one core; raise InputError if one is not installed."""
    os.environ.setdefault("OIDN_NUM_THREADS", "1")
    os.environ.setdefault("OIDN_SET_AFFINITY", "0")  # otherwise the denoisers of all processes share the first core
    # Dr.Jit aborts with some systems' LLVM; the one of karellen-llvm-core works.
    with suppress(metadata.PackageNotFoundError):
        files = metadata.files("karellen-llvm-core") or ()
        library = next((file for file in files if file.name in ("libLLVM.so", "libLLVM.dylib")), None)
        if library:
            os.environ.setdefault("DRJIT_LIBLLVM_PATH", str(library.locate()))
    try:
        import drjit
        import mitsuba
        import mitsuba_oidn

        mitsuba.set_variant("llvm_ad_rgb")
        drjit.set_thread_count(1)
    except ImportError as error:
        raise InputError(f'path tracing needs Mitsuba 3 ({error}); pip install "drender[data]"') from error
    return mitsuba, drjit, mitsuba_oidn.denoise
