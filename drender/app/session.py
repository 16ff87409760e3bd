"""What a visitor of the page has: a clip, its G-buffers, edits, and the clip under another light.

Clips are `f h w 3` in [0, 1], sRGB-encoded, at the size that suits the models.
"""

import functools
import re
import shutil
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float32

from drender.editing import materials
from drender.errors import InputError, extent, oom_guard
from drender.lighting.camera import camera_rotations, light_angles, light_orientation
from drender.lighting.environment import environment_maps, load_environment
from drender.lighting.projection import project
from drender.media.encodings import ImageFormat
from drender.media.gbuffers import frame_path
from drender.media.resize import ResizeConfig
from drender.media.video import find_clips, write_video
from drender.renderers.forward import ForwardRenderer
from drender.renderers.inverse import InverseRenderer
from drender.renderers.windows import concat_frames

# Frames are scaled to cover the model's size; panoramas and strips beyond this multiple of its area are refused.
MAX_AREA = 4
SMALLER = "give a smaller picture or fewer frames"


@dataclass(frozen=True)
class Light:
    """An environment (path of a lat-long map) and its turn in degrees and exposure in stops, as for `Environment`."""

    path: str
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    exposure: float = 0.0

    def mirror_ball(self, side: int = 192) -> Float32[np.ndarray, "{side} {side} 3"]:
        """Return a mirror ball in this light, as a camera sees it."""
        # Turning the camera back equals turning the light, and needs no new cube map.
        turn = light_orientation(self.yaw, self.pitch, self.roll).T @ camera_rotations(1)[0]
        light = _cube(self.path) * np.float32(2.0**self.exposure)
        return np.asarray(project(light, (side, side), turn[None], light_angles(1, False), "ball")["env_ldr"][0])

    def maps(self, size: tuple[int, int]) -> dict[str, Float32[Array, "1 H W 3"]]:
        """Return the forward renderer's maps, of one frame for all."""
        turn = {"yaw": self.yaw, "pitch": self.pitch, "roll": self.roll}
        return environment_maps(self.path, 1, size, exposure=self.exposure, **turn)


_cube = functools.lru_cache(maxsize=8)(load_environment)


def _hex(color: str) -> str:
    """Return a color as #rrggbb: Gradio's picker gave `rgba(192.5, 48, 32, 1)` until 2026."""
    numbers = re.findall(r"[\d.]+", color)[:3] if color.startswith("rgb") else []
    return "#{:02x}{:02x}{:02x}".format(*(round(float(x)) for x in numbers)) if numbers else color


class Session:
    """One visitor's work."""

    def __init__(self, folder: Path):
        self.folder = folder  # temporary, of files to download
        self.name, self.fps, self.rgb, self.relit = "", 24.0, None, None  # of the clip
        self.estimated, self.buffers = {}, {}  # its G-buffers, and the same with edits
        self.stop = threading.Event()  # setting it aborts a job

    def close(self) -> None:
        self.stop.set()
        shutil.rmtree(self.folder, ignore_errors=True)

    def open(self, path: str | Path, size: tuple[int, int], max_frames: int) -> list[str]:
        """Read a picture or the first frames of a clip; return a line on it, and the reader's warnings.

        InputError if the file cannot be read, holds several clips, or is a strip. Then the session is unchanged.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            clip, *others = find_clips(path)
            if others:
                raise InputError(f"{Path(path).name} holds {len(others) + 1} clips; give one of them")
            plan = ResizeConfig(size=size).place(clip.size)
            if np.prod(plan.outer) > MAX_AREA * np.prod(size):
                raise InputError(f"{clip.name} has {extent(clip.size)} pixels; crop it to a squarer shape")
            rgb = np.stack([plan.fit(frame) for frame in clip.frames(0, max_frames)])
        self.name, self.fps, self.rgb, self.relit = clip.name, clip.fps, rgb, None
        self.estimated, self.buffers = {}, {}
        read = f"{len(rgb)}" if len(rgb) == clip.num_frames else f"the first {len(rgb)} of {clip.num_frames}"
        count = "a picture" if clip.num_frames == 1 else f"{read} frames, {clip.fps:.4g} a second"
        sizes = f"{extent(clip.size)}, processed at {extent(plan.outer)}"
        return [f"{clip.name}: {count}, {sizes}", *dict.fromkeys(str(warning.message) for warning in caught)]

    def estimate(self, inverse: InverseRenderer, passes: list[str]) -> Iterator[str]:
        """Estimate the clip's G-buffers; yield the name of each as it is done."""
        with oom_guard(SMALLER):
            sampling = inverse.sampling({})
            latents = inverse.encode(self.rgb[None], sampling)
            noise = inverse.initial_noise(None, sampling, latents.shape)
            for name, estimated in inverse.estimate(latents, passes, sampling, noise, stop=self.stop):
                images = concat_frames(inverse.decode_buffer(name, estimated, sampling))[0]
                self.estimated[name] = self.buffers[name] = images
                yield name

    def edit(self, color: str, distance: float, values: dict[str, str]) -> float:
        """Set materials where the basecolor lies within a distance of a color; return the fraction of pixels."""
        if not values:
            raise InputError("nothing to change; choose a new color, roughness or metallic")
        self._require(["basecolor", *values])
        color, values = _hex(color), {name: _hex(value) for name, value in values.items()}
        mask = materials.color_range(self.buffers["basecolor"], color, distance)
        self.buffers |= materials.edit(self.buffers, materials.feather(mask, 1), set=values)
        return float(mask.mean())

    def reset(self) -> None:
        """Undo all edits."""
        self.buffers = dict(self.estimated)

    def relight(self, forward: ForwardRenderer, light: Light) -> None:
        """Render the G-buffers in a light."""
        self._require(forward.config.conditions)
        buffers = {name: self.buffers[name][None] for name in forward.config.conditions}
        with oom_guard(SMALLER):
            self.relit = forward(buffers, light.maps(forward.environment_size), stop=self.stop)[0]

    def _require(self, names: Iterable[str]) -> None:
        """Raise InputError unless the clip has these G-buffers: none is open, or their estimation was cancelled."""
        if missing := [name for name in names if name not in self.buffers]:
            raise InputError(f"no {', no '.join(missing)} yet; open a picture or clip and wait for its G-buffers")

    def save(self, kind: str) -> Path:
        """Write the relit clip as "png" or "exr" (of several frames, a zip of them) or "mp4", or the "gbuffers"."""
        name = f"{self.name}.{'gbuffers' if kind == 'gbuffers' else 'relit'}"
        format = ImageFormat("exr" if kind == "exr" else "png")
        images = {"rgb": self.rgb, **self.buffers} if kind == "gbuffers" else {"env0000": self.relit}
        file = self.folder / f"{name}.{'mp4' if kind == 'mp4' else format.kind}"
        if kind == "mp4":
            write_video(file, self.relit, self.fps)
            return file
        if kind != "gbuffers" and len(self.relit) == 1:
            format.write(file, self.relit[0], "rgb")
            return file
        frames = self.folder / f"{name}.files" / self.name
        for label, clip in images.items():
            for index, image in enumerate(clip):
                format.write(frame_path(frames, 0, index, label, format.kind), image, label)
        archive = shutil.make_archive(str(self.folder / name), "zip", frames.parent)
        shutil.rmtree(frames.parent)
        return Path(archive)
