"""HTML pages of runs, and parsers of their contents."""

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from drender.sampling.report import PageClip, PageLight

HOSTILE = "</script><b>&amp;\"'`${x}<!--{{clips}}"
LABELS = ("rgb", "normal", "env0000", "env0001")


def frame(label: str, i: int, size=(6, 8)) -> np.ndarray:
    """Return a smooth image whose red encodes the label and whose green encodes the frame."""
    shade = np.linspace(0, 0.2, size[1], dtype=np.float32)[None, :, None]
    return np.float32([0.1 + 0.2 * LABELS.index(label), 0.1 + 0.1 * (i % 8), 0.5]) + np.zeros((*size, 1)) + shade


def clip(name="ball", count=5, size=(6, 8), labels=LABELS, fps=5.0) -> PageClip:
    frames = {label: lambda i, label=label: frame(label, i, size).astype(np.float32) for label in labels}
    turning = lambda i: np.full((8, 16, 3), 0.1 * i, np.float32)
    lights = {"env0000": PageLight("still", lambda i: turning(1)), "env0001": PageLight("turning", turning)}
    return PageClip(name, fps, count, frames, {label: lights[label] for label in labels if label in lights})


class Page(HTMLParser):
    """A page's elements, its text outside of scripts, and its data."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.text, self.data, self.links = [], "", {"run": [], "clip": [], "images": []}, []
        self._kind, self._script = None, ""
        self.feed(path.read_text("utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag == "script":
            self._kind, self._script = dict(attrs).get("class"), ""

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "script" and self._script is not None:
            self._script += data
        else:
            self.text += data

    def handle_endtag(self, tag):
        if tag == "script":
            if self._kind:
                self.data[self._kind].append(json.loads(self._script))
            self._script = None


def decode(uri: str) -> np.ndarray:
    kind, _, content = uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(content, validate=True))) as image:
        return np.asarray(image.convert("RGB"), np.float32) / 255
