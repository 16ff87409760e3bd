"""TODO."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from drender.errors import InputError
from drender.media.color import linear_to_srgb_jnp, srgb_to_linear
from drender.sharding import on_cpu

# What an 8-bit file stores as 255, and so may have been brighter.
CLIPPED = 1 - 1 / 510


@dataclass(frozen=True)
class Augmentation:
    """What is done to a clip's images and light together.

    Attributes:
      mirrored: the world is: images and light from left to right, normals with −x.
      intensity: factor on the radiance of light and image.
      turn: degrees by which the light is turned against what the clip says, which is no more than an estimate; the
        images stay.
    """

    mirrored: bool = False
    intensity: float = 1.0
    turn: float = 0.0

    def image(self, label: str, frames: Float32[np.ndarray, "f h w 3"]) -> Float32[np.ndarray, "f h w 3"]:
        """A clip's frames of one label. (What depends on strength and turn of the light, `TrainingClip` does.)"""
        if label == "rgb" and self.intensity != 1:
            frames = exposed(frames, self.intensity)
        if self.mirrored:
            frames = frames[:, :, ::-1]
            # Every direction of camera space keeps its place in the environment's images, so env_nrm stays as it is.
            if label == "normal":
                frames = np.concatenate([1 - frames[..., :1], frames[..., 1:]], axis=-1)
        return frames


@dataclass(frozen=True)
class AugmentationConfig:
    """What augmentations are drawn from.

    Attributes:
      flip: probability that the world is mirrored.
      intensity: least and greatest factor on the radiance, log-uniform between.
      rotation: degrees up to which the light is turned, either way.
    """

    flip: float = 0.0
    intensity: tuple[float, float] = (1.0, 1.0)
    rotation: float = 0.0

    def __post_init__(self):
        if not 0 <= self.flip <= 1:
            raise InputError(f"flip is {self.flip}; it is a probability, from 0 to 1")
        if not 0 < self.intensity[0] <= self.intensity[1] < np.inf:
            raise InputError(f"intensity is {self.intensity}; expected a least and a greatest factor over 0")
        if not 0 <= self.rotation < np.inf:
            raise InputError(f"rotation is {self.rotation}; it must be 0 degrees or more")

    def draw(self, rng: np.random.Generator) -> Augmentation:
        mirrored = rng.random() < self.flip
        low, high = np.log(self.intensity)
        intensity, turn = np.exp(rng.uniform(low, high)), rng.uniform(-self.rotation, self.rotation)
        return Augmentation(bool(mirrored), float(intensity), float(turn))


def exposed(rgb: Float32[np.ndarray, "f h w 3"], factor: float) -> Float32[np.ndarray, "f h w 3"]:
    """sRGB images as they would have come out under `factor` times the light.

    A channel that is clipped stays so where they become darker: what it was is unknown, and grey suns would be wrong.
    """
    linear = np.clip(srgb_to_linear(rgb) * np.float32(factor), 0, 1)
    with on_cpu():
        result = np.asarray(linear_to_srgb_jnp(jnp.asarray(linear)))
    return np.where((rgb >= CLIPPED) & (factor < 1), rgb, result)
