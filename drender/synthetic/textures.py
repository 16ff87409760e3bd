"""Materials from pictures, for floors and walls: a basecolor picture with optional roughness and metallic maps.

A folder of textures holds `NAME.png` (or .jpg …), taken as basecolor, or sets `NAME_basecolor.png`,
`NAME_roughness.png`, `NAME_metallic.png`, in upper or lower case. Missing maps are guessed from NAME.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from drender.errors import InputError
from drender.files import find_files
from drender.media.color import srgb_to_linear
from drender.media.images import IMAGE_SUFFIXES, read_image
from drender.media.resize import resize
from drender.synthetic.named_materials import named_material

BASECOLOR = "_basecolor"
OTHER_MAPS = ("_roughness", "_metallic", "_normal", "_height")


@dataclass(frozen=True)
class PictureMaterial:
    """A material that repeats a picture; `seed` selects the values of missing maps."""

    path: str
    seed: int

    def maps(self, size: int) -> Float32[np.ndarray, "n n 5"]:
        """Return basecolor, roughness and metallic of a texture of `size` × `size` pixels."""
        rng = np.random.default_rng(self.seed)
        path, name = Path(self.path), re.sub(f"{BASECOLOR}$", "", Path(self.path).stem, flags=re.IGNORECASE)
        files = {file.stem.lower(): file for file in path.parent.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES}
        metallic, roughness = named_material(name, rng) or (0.0, rng.uniform(0.3, 0.9))
        maps = np.empty((size, size, 5), np.float32)
        maps[..., :3] = srgb_to_linear(resize(read_image(path), (size, size)))
        for channel, (label, default) in enumerate((("roughness", roughness), ("metallic", metallic)), 3):
            file = files.get(f"{name}_{label}".lower())
            maps[..., channel] = resize(read_image(file), (size, size)).mean(axis=-1) if file else default
        return maps


def find_textures(folder: str | Path) -> tuple[str, ...]:
    """Return the basecolor pictures of a folder in natural order; raise InputError if there are none."""
    pictures = find_files(folder, IMAGE_SUFFIXES, "textures")
    files = tuple(str(path) for path in pictures if not path.stem.lower().endswith(OTHER_MAPS))
    if not files:
        raise InputError(f"{folder}: no basecolor pictures found, only {pictures[0].name} and other maps; add them")
    return files
