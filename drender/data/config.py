"""TODO."""

from dataclasses import dataclass

from drender.config import DEFAULT_PASSES

OBJECTIVES = ("inverse", "forward", "environment", "vae")


@dataclass(frozen=True)
class Source:
    """Clips to train on: a folder of G-buffer clips, or a set of cached latents (`python -m drender.data encode`).

    Attributes:
      path: the folder.
      weight: how often it is drawn from, relative to the other sources.
      real: auto-labelled footage, on which the LoRA factors are active; synthetic data has exact labels.
    """

    path: str
    weight: float = 1.0
    real: bool = False


@dataclass(frozen=True)
class DataConfig:
    """What a step is fed.

    Attributes:
      sources: mixed by weight. All hold clips, or all hold cached latents.
      batch: rows per step, over all devices and accumulated parts.
      frames: per row; longer clips give a random window.
      size: height and width of the pixels, to cover, then cropped around the centre; cached latents have theirs.
      passes: the G-buffers of which the inverse objective draws one per row, and the VAE's one image kind per row; one
        that is named twice is drawn twice as often.
      images: share of rows whose frames are unrelated images, with the temporal branches switched off.
      flip: probability of a horizontal flip of images, normals and light together. (This and the two below are of
        pixels: cached latents have theirs from `encode --variants`.)
      intensity: range of the factor on the radiance of light and image together (0.7 to 1.4 in related work).
      rotation: degrees up to which the light of real sources, which is estimated, is turned against the clip's.
      threads: that read ahead.
    """

    sources: tuple[Source, ...]
    batch: int = 32
    frames: int = 24
    size: tuple[int, int] = (512, 512)
    passes: tuple[str, ...] = DEFAULT_PASSES
    images: float = 0.0
    flip: float = 0.5
    intensity: tuple[float, float] = (1.0, 1.0)
    rotation: float = 0.0
    threads: int = 8
