"""A page to look at a run's results: one HTML file with the frames inside, that needs no server, network or other file.

`assets/page.html` is the page itself, of no clips; what is written here are the clips it shows.
"""

import base64
import html
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import Float

from drender.assets import ASSETS
from drender.files import atomic_write
from drender.media.images import to_integers
from drender.media.resize import fit_cover

MAX_FRAMES = 120  # of a clip; of a longer one every second, third, … is shown
MAX_SIDE = 512  # pixels; larger frames are scaled down
# Of all images together: six relit clips of 24 frames of 512×512 have as many. A pixel takes 0.15 bytes of the page in
# a rendered video and its buffers, 0.4 in a photograph: 60 to 150 MB, which browsers open without ado.
MAX_PIXELS = 1500 * MAX_SIDE**2
POSTER_SIDE = 96  # pixels; of the small picture that stands for a clip
QUALITY = 3  # of JPEG, as FFmpeg counts: 2 is best, 31 worst

# How the values of an image are to be read; what is not here explains itself.
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

Reader = Callable[[int], Float[np.ndarray, "h w 3"]]  # frame number -> the image, in [0, 1], as it is to be shown


@dataclass(frozen=True)
class PageLight:
    """An environment that a clip is relit under: what it is called, and its thumbnail for every frame."""

    name: str
    thumbnail: Reader


@dataclass(frozen=True)
class PageClip:
    """A clip on the page.

    Attributes:
      name: any text.
      fps: frames per second.
      num_frames: of every image kind.
      frames: label, such as "rgb" or "normal" -> reader; the first is what others are compared with. Images of a frame
        may differ in size, and are shown at the same.
      lights: the labels among those which are results of an environment.
    """

    name: str
    fps: float
    num_frames: int
    frames: dict[str, Reader]
    lights: dict[str, PageLight] = field(default_factory=dict)


def write_page(path: str | Path, title: str, clips: Sequence[PageClip], settings: dict[str, Any]) -> None:
    """Writes the page of a run. The same frames give the same bytes.

    Images are read one by one; memory holds the JPEGs of one buffer of a clip. Of a clip at most MAX_FRAMES frames are
    shown, evenly spaced, and at most MAX_SIDE pixels along the longer side. All images together have at most MAX_PIXELS
    pixels, of which every clip gets the same share: first there are fewer frames of it, then, of one, fewer pixels. The
    page says so, and takes at most about 150 MB, or 1 GB if the pictures are noise.

    Args:
      path: of the HTML file.
      title: says what run it is.
      clips: one or more.
      settings: name -> value, shown but for those that are off: None, False or nothing.
    Raises:
      InputError: a frame that cannot be read, or a page that cannot be written; then nothing is left behind.
    """
    template = (ASSETS / "page.html").read_text("utf-8")
    head, tail = template.split("{{clips}}")
    said = {name.replace("_", " "): _said(value) for name, value in settings.items()}
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", errors="replace") as page:
        page.write(head.replace("{{title}}", html.escape(title)))
        page.write(_script("run", {"title": title, "settings": {x: text for x, text in said.items() if text}}))
        for clip in clips:
            sizes = {label: read(0).shape[:2] for label, read in clip.frames.items()}
            shown, scales = _selection(clip.num_frames, sizes, MAX_PIXELS // len(clips))
            page.write(_script("clip", _description(clip, shown, sizes)))
            # A clip's images are parsed only when it is chosen; hence not in the description.
            page.write('<script type="application/json" class="images">{')
            for number, (label, read) in enumerate(clip.frames.items()):
                images = ",".join(json.dumps(_data_uri(_scaled(read(i), scales[label]))) for i in shown)
                page.write(f"{',' if number else ''}\n{_json(label)}:[{images}]")
            page.write("}</script>\n")
        page.write(tail)


def _selection(num_frames: int, sizes: dict[str, tuple[int, int]], share: int) -> tuple[range, dict[str, float]]:
    """The frames of a clip that fit into its share of the page's pixels, and the factor on the sides of every image."""
    scales = {label: min(1.0, MAX_SIDE / max(size)) for label, size in sizes.items()}
    pixels = sum(h * w * scales[label] ** 2 for label, (h, w) in sizes.items())  # of one frame
    most = max(1, min(MAX_FRAMES, int(share / pixels)))
    shrink = min(1.0, math.sqrt(share / pixels))
    return range(0, num_frames, math.ceil(num_frames / most)), {
        label: scale * shrink for label, scale in scales.items()
    }


def _description(clip: PageClip, shown: range, sizes: dict[str, tuple[int, int]]) -> dict:
    """What the page needs to know of a clip before its images."""
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


def _said(value: Any) -> str:
    """A setting as text, of one that is off none; what comes with the package is called so, wherever that lies."""
    if value is None or isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value))
    return f"{value:g}" if isinstance(value, float) else str(value).replace(str(ASSETS), "drender/assets")


def _script(kind: str, content: Any) -> str:
    return f'<script type="application/json" class="{kind}">{_json(content)}</script>\n'


def _json(content: Any) -> str:
    """JSON that no text in it can break out of the script element with."""
    return json.dumps(content).replace("<", "\\u003c")


def _scaled(image: Float[np.ndarray, "h w 3"], scale: float) -> Float[np.ndarray, "H W 3"]:
    """The image with its sides multiplied by `scale`, at most 1."""
    return fit_cover(image, tuple(max(1, int(side * scale + 1e-6)) for side in image.shape[:2]), multiple=1)


def _data_uri(image: Float[np.ndarray, "h w 3"]) -> str:
    """The image as JPEG without chroma subsampling, which would smear normals and the pixels of small frames."""
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.height, encoder.width = image.shape[:2]
    encoder.pix_fmt, encoder.color_range, encoder.time_base = "yuv444p", 2, Fraction(1)  # 2: full, as in JFIF
    encoder.options = {"qmin": str(QUALITY), "qmax": str(QUALITY), "strict": "unofficial"}
    frame = av.VideoFrame.from_ndarray(to_integers(image), format="rgb24")
    frame = frame.reformat(format="yuv444p", dst_colorspace="ITU601", dst_color_range="JPEG")
    jpeg = b"".join(bytes(packet) for packet in (*encoder.encode(frame), *encoder.encode()))
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
