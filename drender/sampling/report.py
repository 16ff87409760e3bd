"""The HTML page of a run: one file with all frames inside, which needs no server, network or other file.

`assets/page.html` is the template; this module adds the clips.
"""

import base64
import html
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from drender.assets import ASSETS
from drender.files import atomic_write
from drender.media.images import to_integers
from drender.media.resize import fit_cover

MAX_FRAMES = 120  # per clip; longer clips show every second, third, … frame
MAX_SIDE = 512  # pixels; larger frames are scaled down
# Pixels of all images together: those of six relit clips of 24 frames of 512×512. A pixel takes 0.15 bytes in rendered
# video and buffers, 0.4 in photographs, so the page has 60 to 150 MB, which browsers open easily.
MAX_PIXELS = 1500 * MAX_SIDE**2
POSTER_SIDE = 96  # pixels; of the thumbnail of a clip
QUALITY = 92  # of JPEG, 0 to 100

# Meaning of an image's values, by label; other labels have no note.
NOTES = {
    "rgb": "The source, as the renderer saw it.",
    "basecolor": "sRGB-encoded; of the metallic-roughness model.",
    "diffuse_albedo": "sRGB-encoded.",
    "metallic": "One channel: black 0, a dielectric; white 1, a metal.",
    "roughness": "One channel: black 0, smooth; white 1, rough.",
    "normal": "In camera space with OpenGL's axes, stored as n·½ + ½: red is x, to the right; green is y, "
    "up; blue is z, toward the camera.",
    "depth": "Relative: black is near (0), white is far (1), and so is the background.",
}

Reader = Callable[[int], Float[np.ndarray, "h w 3"]]  # frame index -> image in [0, 1], ready for display


class PageLight(NamedTuple):
    """An environment that a clip is relit under: its name, and its thumbnail at every frame."""

    name: str
    thumbnail: Reader


@dataclass(frozen=True)
class PageClip:
    """A clip on the page.

    Labels, such as "rgb" or "normal", are compared with the first one. The images of a frame may differ in size and are
    displayed at one size.
    """

    name: str  # any text
    fps: float
    num_frames: int  # per label
    frames: dict[str, Reader]  # by label
    lights: dict[str, PageLight] = field(default_factory=dict)  # by label, of those that are relit frames


def write_page(path: str | Path, title: str, clips: Sequence[PageClip], settings: dict[str, Any]) -> None:
    """Write the page of a run of one or more clips. The same frames give the same bytes.

    Images are read one by one; memory holds the JPEGs of one label of a clip. A clip shows at most MAX_FRAMES evenly
    spaced frames, of at most MAX_SIDE pixels along the longer side. All images together have at most MAX_PIXELS pixels,
    and every clip gets the same share: the number of frames is reduced first, then the size of a single frame. The page
    states this. It takes at most about 150 MB, or 1 GB for images of noise. Settings that are None, False or empty are
    not shown. InputError if a frame cannot be read or the page cannot be written; no partial file is left.
    """
    template = (ASSETS / "page.html").read_text("utf-8")
    head, tail = template.split("{{clips}}")
    texts = {name.replace("_", " "): _setting_text(value) for name, value in settings.items()}
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", errors="replace") as page:
        page.write(head.replace("{{title}}", html.escape(title)))
        page.write(_script("run", {"title": title, "settings": {name: text for name, text in texts.items() if text}}))
        for clip in clips:
            sizes = {label: read(0).shape[:2] for label, read in clip.frames.items()}
            shown, scales = _selection(clip.num_frames, sizes, MAX_PIXELS // len(clips))
            page.write(_script("clip", _description(clip, shown, sizes)))
            # The page parses a clip's images only when it is chosen, so they are not in the description.
            page.write('<script type="application/json" class="images">{')
            for number, (label, read) in enumerate(clip.frames.items()):
                images = ",".join(json.dumps(_data_uri(_scaled(read(i), scales[label]))) for i in shown)
                page.write(f"{',' if number else ''}\n{_json(label)}:[{images}]")
            page.write("}</script>\n")
        page.write(tail)


def _selection(num_frames: int, sizes: dict[str, tuple[int, int]], share: int) -> tuple[range, dict[str, float]]:
    """Return the frames of a clip that fit into its share of the page's pixels, and each label's scale."""
    scales = {label: min(1.0, MAX_SIDE / max(size)) for label, size in sizes.items()}
    pixels = sum(h * w * scales[label] ** 2 for label, (h, w) in sizes.items())  # of one frame
    max_frames = max(1, min(MAX_FRAMES, int(share / pixels)))
    shrink = min(1.0, math.sqrt(share / pixels))
    shown = range(0, num_frames, math.ceil(num_frames / max_frames))
    return shown, {label: scale * shrink for label, scale in scales.items()}


def _description(clip: PageClip, shown: range, sizes: dict[str, tuple[int, int]]) -> dict:
    """Return everything that the page needs before a clip's images."""
    first = next(iter(clip.frames.values()))(0)
    lights = {}
    for label, light in clip.lights.items():
        thumbnails = [_data_uri(light.thumbnail(i)) for i in shown]
        still = len(set(thumbnails)) == 1
        lights[label] = {"name": light.name, "thumbnails": thumbnails[:1] if still else thumbnails}
    return {
        "name": clip.name,
        "fps": clip.fps,
        "numFrames": clip.num_frames,
        "shown": list(shown),
        "sizes": sizes,
        "poster": _data_uri(_scaled(first, min(1.0, POSTER_SIDE / max(first.shape[:2])))),
        "labels": list(clip.frames),
        "lights": lights,
        "notes": {label: NOTES[label] for label in clip.frames if label in NOTES},
    }


def _setting_text(value: Any) -> str:
    """Return a setting as text, "" if it is off, with paths of built-in files relative to the package."""
    if value is None or isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, list | tuple):
        return ", ".join(map(_setting_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value).replace(str(ASSETS), "drender/assets")


def _script(kind: str, content: Any) -> str:
    return f'<script type="application/json" class="{kind}">{_json(content)}</script>\n'


def _json(content: Any) -> str:
    """Return JSON in which no text can end the surrounding script element."""
    return json.dumps(content).replace("<", "\\u003c")


def _scaled(image: Float[np.ndarray, "h w 3"], scale: float) -> Float[np.ndarray, "H W 3"]:
    """Return the image with its sides multiplied by `scale`, at most 1."""
    return fit_cover(image, tuple(max(1, int(side * scale + 1e-6)) for side in image.shape[:2]))


def _data_uri(image: Float[np.ndarray, "h w 3"]) -> str:
    """Return the image as a JPEG without chroma subsampling, which would smear normals and small frames."""
    jpeg = io.BytesIO()
    Image.fromarray(to_integers(image)).save(jpeg, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()
