"""Draw principled materials: a single one, or two that a seamless pattern mixes; guess others from their names.

A material is basecolor (linear), roughness and metallic, as in Disney's model. A pattern is a tileable image in [0, 1].
"""

import colorsys
import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from drender.media.color import srgb_to_linear

# Linear basecolors.
METAL_TINTS = ((0.95, 0.93, 0.9), (1.0, 0.78, 0.34), (0.95, 0.64, 0.54), (0.56, 0.57, 0.58), (0.91, 0.92, 0.92))


@dataclass(frozen=True)
class Material:
    """A uniform principled material."""

    basecolor: tuple[float, float, float]  # linear
    roughness: float
    metallic: float


@dataclass(frozen=True)
class MaterialMix:
    """A texture that is `first` where a pattern is 0 and `second` where it is 1."""

    first: Material
    second: Material
    pattern: str  # "uniform" or a key of PATTERNS
    frequency: int  # repetitions over the texture
    seed: int
    grain: float  # share of the basecolor that fine noise takes away, in [0, 1)

    def maps(self, size: int) -> Float32[np.ndarray, "n n 5"]:
        """Return basecolor, roughness and metallic of a texture of `size` × `size` pixels."""
        rng = np.random.default_rng(self.seed)
        mask = pattern(self.pattern, size, self.frequency, rng)[..., None]
        first, second = (np.array([*x.basecolor, x.roughness, x.metallic]) for x in (self.first, self.second))
        maps = first * (1 - mask) + second * mask
        maps[..., :3] *= 1 - self.grain * _noise(size, 8 * self.frequency, rng, octaves=2)[..., None]
        return maps.astype(np.float32)


def random_material(rng: np.random.Generator, frequency: int = 1) -> MaterialMix:
    """Draw a material, uniform in about half of the cases; patterns repeat at least 2 × `frequency` times."""
    first = _random_uniform(rng)
    kind = "uniform" if rng.random() < 0.45 else str(rng.choice(list(PATTERNS)))
    second = _random_uniform(rng)
    change = rng.random()
    if change < 0.5:  # another color of the same surface
        second = Material(second.basecolor, first.roughness, first.metallic)
    elif change < 0.7:  # the same color, scratched or polished
        second = Material(first.basecolor, second.roughness, first.metallic)
    grain = rng.uniform(0, 0.5) if rng.random() < 0.3 else 0.0
    return MaterialMix(first, second, kind, frequency * int(rng.integers(2, 7)), int(rng.integers(2**31)), grain)


def _random_uniform(rng: np.random.Generator) -> Material:
    metallic = rng.random() < 0.3
    roughness = rng.uniform(0.05, 1) if rng.random() < 0.8 else rng.uniform(0.05, 0.3)
    if metallic and rng.random() < 0.6:
        color = np.array(METAL_TINTS[rng.integers(len(METAL_TINTS))]) * rng.uniform(0.7, 1)
    else:
        # Draw evenly in sRGB, so that dark colors are as frequent as light ones; a fifth are grays.
        saturation = rng.beta(1.5, 1.5) if rng.random() < 0.8 else rng.uniform(0, 0.1)
        value = rng.uniform(0.5 if metallic else 0.08, 0.98)
        color = srgb_to_linear(np.array(colorsys.hsv_to_rgb(rng.random(), saturation, value)))
    return Material(tuple(color.tolist()), roughness, float(metallic))


# --- Patterns ---


def pattern(kind: str, size: int, frequency: int, rng: np.random.Generator) -> Float32[np.ndarray, "n n"]:
    """Return a tileable image in [0, 1] that repeats `frequency` times or has details of that scale."""
    if kind == "uniform":
        return np.zeros((size, size), np.float32)
    v, u = np.meshgrid(*[(np.arange(size) + 0.5) / size * frequency] * 2, indexing="ij")
    return PATTERNS[kind](u, v, frequency, rng).clip(0, 1).astype(np.float32)


def _noise(size: int, frequency: int, rng: np.random.Generator, octaves: int = 4) -> np.ndarray:
    """Return fractal noise of `octaves` octaves from `frequency` waves up, each half as strong, spread over [0, 1]."""
    waves = np.fft.fftfreq(size, 1 / size)
    wave = np.hypot(waves[:, None], waves[None, :])
    amplitude = np.where((wave >= frequency / 2) & (wave < frequency * 2**octaves), 1 / np.maximum(wave, 1) ** 2, 0)
    if not amplitude.any():  # finer than the texture resolves
        return np.full((size, size), 0.5)
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) * amplitude).real
    return (noise / (5 * noise.std()) + 0.5).clip(0, 1)


def _step(x: np.ndarray | float, edge: np.ndarray | float, width: float = 0.05) -> np.ndarray:
    """Return 0 below an edge and 1 above it, with a linear ramp of `width` between."""
    return ((x - edge) / width + 0.5).clip(0, 1)


def _clouds(u, v, frequency, rng):
    return _noise(len(u), frequency, rng)


def _spots(u, v, frequency, rng):
    return _step(_noise(len(u), frequency, rng, octaves=int(rng.integers(1, 4))), rng.uniform(0.35, 0.65))


def _checker(u, v, frequency, rng):
    return _step(0.5 + 0.5 * np.sin(2 * np.pi * u) * np.sin(2 * np.pi * v), 0.5)


def _stripes(u, v, frequency, rng):
    across = (u, v, u + v)[rng.integers(3)]
    return _step(0.5 + 0.5 * np.sin(2 * np.pi * across), rng.uniform(0.2, 0.8), rng.choice([0.1, 1.0]))


def _dots(u, v, frequency, rng):
    return _step(rng.uniform(0.15, 0.45), np.hypot(u % 1 - 0.5, v % 1 - 0.5))


def _marble(u, v, frequency, rng):
    vein = np.abs(np.sin(np.pi * (u + rng.integers(0, 2) * v + 2 * _noise(len(u), frequency, rng, octaves=3))))
    return vein ** rng.uniform(0.3, 1.5)


def _bricks(u, v, frequency, rng):
    row = np.floor(2 * v)
    joint = rng.uniform(0.03, 0.1)
    along, across = (u + row / 2) % 1, 2 * v % 1
    return _step(np.minimum(np.minimum(along, 1 - along), np.minimum(across, 1 - across) / 2), joint)


def _cells(u, v, frequency, rng):
    """Return the distance to the nearest of jittered points (Worley 1996), or a gray per point."""
    points, grays = rng.random((2, frequency, frequency)), rng.random((frequency, frequency))
    nearest, gray = np.full(u.shape, np.inf), np.zeros(u.shape)
    for right, down in np.ndindex(3, 3):
        column, row = np.floor(u).astype(int) + right - 1, np.floor(v).astype(int) + down - 1
        x, y, own_gray = (field[row % frequency, column % frequency] for field in (*points, grays))
        distance = np.hypot(u - column - x, v - row - y)
        nearest, gray = np.minimum(nearest, distance), np.where(distance < nearest, own_gray, gray)
    return gray if rng.random() < 0.5 else nearest


PATTERNS = {
    draw.__name__.removeprefix("_"): draw
    for draw in (_clouds, _spots, _checker, _stripes, _dots, _marble, _bricks, _cells)
}


# --- Guesses from names, as the files of everyday objects rarely store metallic and roughness ---

# Words of material names -> metallic, range of roughness. The first entry with a match wins, so finishes come first.
# Words are matched as parts of names ("blackplastic"), in English and in the languages of common model libraries.
NAMES: tuple[tuple[str, float, tuple[float, float]], ...] = (
    ("mirror|espejo|miroir", 1.0, (0.02, 0.05)),
    ("wood|madera|fusta|bois|oak|walnut|pine|teak|bamboo|parquet|rattan|wicker|bark|trunk", 0.0, (0.35, 0.75)),
    ("rubber|tire|tyre|tread|goma", 0.0, (0.6, 0.95)),
    ("fabric|cloth|textile|tela|cushion|coixi|pillow|sofa|couch|mattress|towel|carpet|rug|wool", 0.0, (0.75, 1.0)),
    ("shirt|skirt|trouser|sock|hair|fur|cotton|curtain|sheet$|lampshade", 0.0, (0.75, 1.0)),
    ("leather|cuir|cuero|skin|shoe", 0.0, (0.4, 0.7)),
    ("paper|card|book|label|etiqueta|leaf|leaves|soil|earth|ground", 0.0, (0.6, 1.0)),
    ("brushed|cage|grille|sheetmetal", 1.0, (0.3, 0.5)),
    ("rust|castiron|iron|hierro", 1.0, (0.45, 0.75)),
    ("chrome|chrom|cromo|polished|faucet|tap$", 1.0, (0.04, 0.15)),
    ("stainless|inox|steel|acero|acier|silver|argent", 1.0, (0.12, 0.4)),
    ("alumin|alumain", 1.0, (0.2, 0.5)),
    ("brass|gold|bronze|copper|laton|oro$", 1.0, (0.1, 0.4)),
    ("metal", 1.0, (0.15, 0.5)),
    ("ceramic|porcelain|enamel|glaze", 0.0, (0.05, 0.25)),
    ("gloss|lacquer|varnish|polish", 0.0, (0.08, 0.25)),
    ("matte|chalk|plaster|concrete|brick|clay|terracotta|stone", 0.0, (0.7, 1.0)),
    ("marble|granite|tile", 0.0, (0.1, 0.35)),
    ("plastic|plastico|vinyl|pvc|polymer", 0.0, (0.2, 0.55)),
    ("paint|pintura", 0.0, (0.25, 0.6)),
    ("glass|vidro|cristal|screen|display", 0.0, (0.03, 0.12)),
)


def named_material(name: str, rng: np.random.Generator) -> tuple[float, float] | None:
    """Return (metallic, roughness) of a material called `name`, drawn from the range of its kind; None if unknown."""
    position = rng.random()
    for words, metallic, (low, high) in NAMES:
        if re.search(words, name.lower()):
            return metallic, low + position * (high - low)
    return None


def phong_roughness(exponent: float) -> float:
    """Return the roughness whose GGX lobe is as wide as a Blinn-Phong lobe: α² = 2 / (Ns + 2) with α = roughness²."""
    return (2 / (max(exponent, 0.0) + 2)) ** 0.25
