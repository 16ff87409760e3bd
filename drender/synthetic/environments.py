"""Provide the HDR environments of synthetic scenes: bundled maps, users' files, and procedural skies and studios.

All are lat-long images `h w 3` of linear radiance in the orientation of `lighting/projection.py`: −z in the center, +x
to the right, y up. They are kept small, so that the tracer sees the same map as the models.
"""

import zlib
from pathlib import Path

import numpy as np
import OpenImageIO as oiio
from jaxtyping import Float32

from drender.assets import ENVIRONMENTS
from drender.errors import InputError
from drender.files import find_files
from drender.lighting.latlong import MAX_RADIANCE
from drender.media.images import HDR_SUFFIXES, read_hdr, write_hdr

HELD_OUT = ("forest", "lobby", "sunset", "warehouse")  # bundled maps of the test split
MAX_HEIGHT = 256  # rows of the copies of users' files
HEIGHT, WIDTH = 64, 128  # pixels of generated environments


def find_environments(folder: str | Path = ENVIRONMENTS) -> dict[str, Path]:
    """Return the .hdr and .exr files of a folder by stem; raise InputError if there are none, or a stem is taken."""
    files: dict[str, Path] = {}
    for path in find_files(folder, HDR_SUFFIXES, "environments"):
        if path.stem in GENERATED:
            raise InputError(f"{path}: generated environments have the name {path.stem!r}; rename the file")
        if files.setdefault(path.stem, path) is not path:
            raise InputError(f"{files[path.stem]} and {path.name} have the same stem; rename one")
    return files


def is_held_out(name: str) -> bool:
    """Return whether a file is in the test split, by its name alone: one of HELD_OUT, or one in ten by a hash."""
    bundled = {path.stem for path in ENVIRONMENTS.glob("*.exr")}
    return name in HELD_OUT if name in bundled else zlib.crc32(name.encode()) % 10 == 0


def copy_environment(source: Path, destination: Path) -> None:
    """Write an environment as EXR, box-averaged to at most MAX_HEIGHT rows, without NaN or negative radiance."""
    image = np.nan_to_num(read_hdr(source), nan=0.0).clip(0, MAX_RADIANCE)
    if not image.any():
        raise InputError(f"{source}: the environment is black; remove it")
    height, width, _ = image.shape
    if height > MAX_HEIGHT:
        roi = oiio.ROI(0, round(width * MAX_HEIGHT / height), 0, MAX_HEIGHT, 0, 1, 0, 3)
        image = oiio.ImageBufAlgo.resize(oiio.ImageBuf(image), filtername="box", roi=roi).get_pixels("float")
    write_hdr(destination, image)


# --- Generated ---

_polar = np.pi * (np.arange(HEIGHT) + 0.5)[:, None] / HEIGHT
_azimuth = 2 * np.pi * (np.arange(WIDTH) + 0.5) / WIDTH - np.pi
UP = np.broadcast_to(np.cos(_polar), (HEIGHT, WIDTH))
DIRECTIONS = np.stack([np.sin(_polar) * np.sin(_azimuth), UP, -np.sin(_polar) * np.cos(_azimuth)], axis=-1)
SOLID_ANGLES = np.broadcast_to(np.sin(_polar) * (np.pi / HEIGHT) * (2 * np.pi / WIDTH), UP.shape)


def procedural(seed: int) -> Float32[np.ndarray, "h w 3"]:
    """Return a random clear sky, overcast sky, or dark studio with lamps, of mean radiance 1."""
    rng = np.random.default_rng(seed)
    return _normalized((_clear, _clear, _overcast, _studio, _studio)[rng.integers(5)](rng))


def sunsky(seed: int) -> Float32[np.ndarray, "h w 3"]:
    """Return Mitsuba's sky of a random hour (Hošek & Wilkie 2012), its sun widened to suit the resolution; mean 1."""
    from drender.synthetic.tracer import load_mitsuba

    mi, _, _ = load_mitsuba()
    rng = np.random.default_rng(seed)
    sun = _random_direction(rng, np.sin(np.deg2rad(rng.uniform(3, 75))))
    emitter = mi.load_dict(
        {
            "type": "sunsky",
            "sun_direction": sun.tolist(),
            "to_world": mi.ScalarTransform4f().rotate([1, 0, 0], -90),  # the emitter's zenith is +z
            "turbidity": rng.uniform(2, 8),
            "albedo": 0.3,
            "sun_scale": 0.0,
        }
    )
    interaction = mi.SurfaceInteraction3f()
    interaction.wi = mi.Vector3f(*(-DIRECTIONS.reshape(-1, 3).T.astype(np.float32)))
    sky = np.array(emitter.eval(interaction), np.float64).T.reshape(DIRECTIONS.shape)
    return _normalized(_daylight(np.nan_to_num(sky), sun, rng))


def _normalized(image: np.ndarray) -> Float32[np.ndarray, "h w 3"]:
    return (image / image.mean()).clip(0, MAX_RADIANCE).astype(np.float32)


def _clear(rng: np.random.Generator) -> np.ndarray:
    """Return the daylight of Preetham, Shirley & Smits 1999, its sun widened to 3° to suit the resolution."""
    turbidity, sun_polar = rng.uniform(2, 8), np.deg2rad(rng.uniform(15, 87))
    sun = _random_direction(rng, np.cos(sun_polar))
    chi = (4 / 9 - turbidity / 120) * (np.pi - 2 * sun_polar)
    zenith_y = (4.0453 * turbidity - 4.971) * np.tan(chi) - 0.2155 * turbidity + 2.4192
    powers = np.array([sun_polar**3, sun_polar**2, sun_polar, 1.0])
    zenith = [max(zenith_y, 0.1), *(np.array([turbidity**2, turbidity, 1.0]) @ np.array(m) @ powers for m in ZENITH)]
    luminance, x, y = (
        top
        * _perez_luminance(UP.clip(0.01), (DIRECTIONS @ sun).clip(-1, 1), slope * turbidity + start)
        / _perez_luminance(1.0, np.cos(sun_polar), slope * turbidity + start)
        for top, (slope, start) in zip(zenith, PEREZ, strict=True)
    )
    xyz = np.stack([luminance * x / y, luminance, luminance * (1 - x - y) / y], axis=-1)
    return _daylight(xyz @ XYZ_TO_RGB.T, sun, rng, turbidity)


def _daylight(sky: np.ndarray, sun: np.ndarray, rng: np.random.Generator, turbidity: float | None = None) -> np.ndarray:
    """Add to a sky the ground, and a sun of 3° with a multiple of its irradiance, reddened by the air it crosses."""
    sky = np.where(UP[..., None] > 0, sky.clip(0), 0)
    ratio = rng.uniform(2, 7)
    turbidity = rng.uniform(2, 8) if turbidity is None else turbidity
    air = 1 / (sun[1] + 0.15 * np.rad2deg(np.arcsin(sun[1]) + 0.0663) ** -1.253)  # mass, relative to the zenith's
    color = np.exp(-air * np.array([0.05, 0.1, 0.2]) * turbidity / 4)
    disc = np.exp(-((np.arccos((DIRECTIONS @ sun).clip(-1, 1)) / np.deg2rad(3)) ** 2))
    sky_light = (sky.mean(axis=-1) * UP.clip(0.01) * SOLID_ANGLES)[UP > 0].sum()
    sun_light = ratio * sky_light * color / (disc * SOLID_ANGLES).sum()
    return _with_ground(sky + disc[..., None] * sun_light * (UP[..., None] > 0), rng)


def _overcast(rng: np.random.Generator) -> np.ndarray:
    """Return the CIE overcast sky, three times as bright at the zenith as at the horizon, with clouds."""
    waves, phases = rng.normal(0, 4, (12, 3)), rng.uniform(0, 2 * np.pi, 12)
    clouds = 1 + rng.uniform(0, 0.6) * np.sin(np.einsum("hwc,kc->hwk", DIRECTIONS, waves) + phases).mean(axis=-1) * 2
    gray = ((1 + 2 * UP) / 3 * clouds)[..., None] * rng.uniform([0.85, 0.95, 1], [1, 1, 1.15])
    return _with_ground(np.where(UP[..., None] > 0, gray, 0), rng)


def _studio(rng: np.random.Generator) -> np.ndarray:
    """Return walls with a gradient and one to four soft-edged lamps, white or colored."""
    top, bottom = rng.uniform(0.02, 0.2, (2, 1)) * rng.uniform(0.6, 1, (2, 3))
    image = bottom + (top - bottom) * (UP[..., None] + 1) / 2
    for _ in range(rng.integers(1, 5)):
        center = _random_direction(rng, rng.uniform(-0.2, 0.95))
        across = np.cross(center, [0.0, 1.0, 0.0])
        across /= np.linalg.norm(across)
        upward, toward = np.cross(across, center), (DIRECTIONS @ center).clip(0.05)
        half_width, half_height = np.tan(np.deg2rad(rng.uniform(4, 30, 2)))
        x, y = np.abs(DIRECTIONS @ across) / toward / half_width, np.abs(DIRECTIONS @ upward) / toward / half_height
        inside = np.maximum(x, y) if rng.random() < 0.6 else np.hypot(x, y)
        lamp = ((1.15 - inside) / 0.3).clip(0, 1) * (DIRECTIONS @ center > 0.05)
        color = rng.uniform(0.8, 1, 3) if rng.random() < 0.6 else rng.uniform(0.1, 1, 3)
        image = image + lamp[..., None] * color * rng.uniform(0.2, 1) / (half_width * half_height)
    return image


def _with_ground(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fill the lower half with a diffuse floor of a random color, lit by the upper half."""
    irradiance = (image * UP[..., None].clip(0) * SOLID_ANGLES[..., None]).sum(axis=(0, 1))
    floor = rng.uniform(0.05, 0.5) * rng.uniform([0.8, 0.7, 0.5], 1) * irradiance / np.pi
    return np.where(UP[..., None] > 0, image, floor)


def _random_direction(rng: np.random.Generator, up: float) -> np.ndarray:
    azimuth, level = rng.uniform(0, 2 * np.pi), np.sqrt(1 - up**2)
    return np.array([level * np.sin(azimuth), up, level * np.cos(azimuth)])


def _perez_luminance(up, toward_sun, coefficients):
    """Evaluate the distribution of Perez; `up` and `toward_sun` are cosines."""
    a, b, c, d, e = coefficients
    return (1 + a * np.exp(b / up)) * (1 + c * np.exp(d * np.arccos(toward_sun)) + e * toward_sun**2)


GENERATED = {"procedural": procedural, "sunsky": sunsky}  # functions of a seed, by the environment's name

# Tables of Preetham et al. for Y, x and y: slope and offset in turbidity of the five Perez coefficients; then the
# zenith's x and y.
PEREZ = np.array([
    [[0.1787, -0.3554, -0.0227, 0.1206, -0.0670], [-1.4630, 0.4275, 5.3251, -2.5771, 0.3703]],
    [[-0.0193, -0.0665, -0.0004, -0.0641, -0.0033], [-0.2592, 0.0008, 0.2125, -0.8989, 0.0452]],
    [[-0.0167, -0.0950, -0.0079, -0.0441, -0.0109], [-0.2608, 0.0092, 0.2102, -1.6537, 0.0529]],
])  # fmt: skip
ZENITH = (
    ((0.00166, -0.00375, 0.00209, 0), (-0.02903, 0.06377, -0.03202, 0.00394), (0.11693, -0.21196, 0.06052, 0.25886)),
    ((0.00275, -0.00610, 0.00317, 0), (-0.04214, 0.08970, -0.04153, 0.00516), (0.15346, -0.26756, 0.06670, 0.26688)),
)
XYZ_TO_RGB = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])
