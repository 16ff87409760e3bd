"""Materials from pictures, for floors and walls: a basecolor picture with optional roughness and metallic maps.

A folder of textures holds `NAME.png` (or .jpg …), taken as basecolor, or sets `NAME_basecolor.png`,
`NAME_roughness.png`, `NAME_metallic.png`, in upper or lower case and with the suffixes of common libraries (`MAP`).
Missing maps are guessed from NAME.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from drender.errors import InputError
from drender.files import find_files
from drender.media.color import srgb_to_linear
from drender.media.images import HDR_SUFFIXES, IMAGE_SUFFIXES, read_image
from drender.media.resize import resize
from drender.synthetic.materials import named_material

# Suffixes of maps, as of Substance, ambientCG, and Poly Haven, whose short words come before a resolution (`_1k`).
MAP = re.compile(
    r"(?P<name>.+?)_(?:(?P<basecolor>base_?colou?r|albedo|diffuse|colou?r|diff(?=_\d+k))"
    r"|(?P<roughness>roughness|rough(?=_\d+k))|(?P<metallic>metallic|metalness|metal(?=_\d+k))"
    r"|normal(_?gl|_?dx|_opengl|_directx)?|height|displacement|bump|ao|ambient_?occlusion|specular|glossiness|opacity"
    r"|(nor|nor_gl|nor_dx|disp|arm|spec|mask|translucent)(?=_\d+k))(_\d+k)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class PictureMaterial:
    """A material that repeats a picture; `seed` selects the values of missing maps."""

    path: str
    seed: int

    def maps(self, size: int) -> Float32[np.ndarray, "n n 5"]:
        """Return basecolor, roughness and metallic of a texture of `size` × `size` pixels."""
        rng = np.random.default_rng(self.seed)
        path = Path(self.path)
        name, _ = _parse(path)
        pictures = (file for file in path.parent.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES + HDR_SUFFIXES)
        files = {_parse(file): file for file in pictures}
        metallic, roughness = named_material(name, rng) or (0.0, rng.uniform(0.3, 0.9))
        maps = np.empty((size, size, 5), np.float32)
        maps[..., :3] = srgb_to_linear(resize(read_image(path), (size, size)))
        for channel, (label, default) in enumerate((("roughness", roughness), ("metallic", metallic)), 3):
            file = files.get((name, label))
            maps[..., channel] = resize(read_image(file), (size, size)).mean(axis=-1) if file else default
        return maps


def find_textures(folder: str | Path) -> tuple[str, ...]:
    """Return the basecolor pictures of a folder in natural order; raise InputError if there are none."""
    pictures = find_files(folder, IMAGE_SUFFIXES, "textures")
    files = tuple(str(path) for path in pictures if _parse(path)[1] == "basecolor")
    if not files:
        raise InputError(f"{folder}: no basecolor pictures found, only {pictures[0].name} and other maps; add them")
    return files


def _parse(picture: Path) -> tuple[str, str | None]:
    """Return the set's name in lower case and the kind of a map: basecolor, roughness, metallic, or None for others."""
    match = MAP.fullmatch(picture.stem)
    if match is None:
        return picture.stem.lower(), "basecolor"
    kinds = match.groupdict()
    return kinds.pop("name").lower(), next((kind for kind, word in kinds.items() if word), None)
