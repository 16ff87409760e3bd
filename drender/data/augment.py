"""Augmentation of a clip's images and its light together, as if the world itself had changed."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from drender.errors import InputError
from drender.fields import bounded, check_ranges
from drender.media.color import linear_to_srgb_jnp, srgb_to_linear
from drender.sharding import on_cpu

# The lowest value that an 8-bit file stores as 255. The scene may have been brighter than such a pixel.
CLIPPED = 1 - 1 / 510


@dataclass(frozen=True)
class Augmentation:
    """One change of a clip."""

    mirrored: bool = False  # flip the world from left to right; normals negate their x
    exposure: float = 1.0  # factor on the radiance of light and image
    light_turn: float = 0.0  # degrees of the light alone, because the light of real footage is only an estimate
    side: float = 1.0  # height and width of the crop, relative to the frame's
    place: tuple[float, float] = (0.5, 0.5)  # of the crop, from 0 at the top or left to 1 at the bottom or right

    def crop(self, image: Float32[np.ndarray, "h w 3"], smallest: tuple[int, int]) -> Float32[np.ndarray, "_h _w 3"]:
        """Crop a frame, to no less than `smallest`, so that nothing is enlarged that was not before."""
        for axis, least in enumerate(smallest):
            length = image.shape[axis]
            kept = min(length, max(least, round(length * self.side)))
            start = round((length - kept) * self.place[axis])
            image = image.take(range(start, start + kept), axis)
        return image

    def image(self, label: str, frames: Float32[np.ndarray, "f h w 3"]) -> Float32[np.ndarray, "f h w 3"]:
        """Augment the frames of one label; `LabeledClip.environment` applies exposure and turn to the light."""
        if label == "rgb" and self.exposure != 1:
            frames = expose(frames, self.exposure)
        if label == "depth" and self.side < 1 and np.ptp(frames) > 0:  # it is relative to what is in the picture
            frames = (frames - frames.min()) / np.ptp(frames)
        if self.mirrored:
            frames = frames[:, :, ::-1]
            # Every direction of camera space keeps its place in the environment images, so env_nrm is unchanged.
            if label == "normal":
                frames = np.concatenate([1 - frames[..., :1], frames[..., 1:]], axis=-1)
        return frames


@dataclass(frozen=True)
class AugmentationConfig:
    """The distribution of augmentations."""

    flip: float = bounded(0.0, at_least=0, at_most=1)  # probability of mirroring
    exposure_range: tuple[float, float] = bounded((1.0, 1.0), above=0)  # lowest and highest, drawn log-uniformly
    rotation: float = bounded(0.0, at_least=0)  # largest turn of the light in degrees, in either direction
    crop: float = bounded(1.0, above=0, at_most=1)  # smallest side of a crop, relative to the frame's

    def __post_init__(self):
        check_ranges(self)
        if self.exposure_range[0] > self.exposure_range[1]:
            raise InputError(f"exposure_range: expected the lowest factor first, got {self.exposure_range}")

    def draw(self, rng: np.random.Generator) -> Augmentation:
        """Draw an augmentation."""
        mirrored = rng.random() < self.flip
        exposure = np.exp(rng.uniform(*np.log(self.exposure_range)))
        light_turn = rng.uniform(-self.rotation, self.rotation)
        augmentation = Augmentation(bool(mirrored), float(exposure), float(light_turn))
        if self.crop == 1:
            return augmentation
        side, *place = rng.uniform((self.crop, 0, 0), 1)
        return replace(augmentation, side=float(side), place=tuple(map(float, place)))


def expose(rgb: Float32[np.ndarray, "f h w 3"], factor: float) -> Float32[np.ndarray, "f h w 3"]:
    """Return sRGB images as if under `factor` times the light.

    Clipped channels stay clipped in darker images: their radiance is unknown, and gray suns would be wrong.
    """
    linear = np.clip(srgb_to_linear(rgb) * np.float32(factor), 0, 1)
    with on_cpu():
        exposed = np.asarray(linear_to_srgb_jnp(jnp.asarray(linear)))
    return np.where((rgb >= CLIPPED) & (factor < 1), rgb, exposed)
