"""The part of a training configuration that describes its data."""

from dataclasses import dataclass

from drender.config import DEFAULT_PASSES
from drender.errors import InputError
from drender.fields import bounded, check_ranges


@dataclass(frozen=True)
class Source:
    """Clips to train on: a folder of G-buffer clips, or a set of cached latents (`python -m drender.data encode`).

    Attributes:
      path: the folder.
      weight: sampling frequency relative to the other sources.
      real: auto-labeled footage. LoRA factors that train together with other weights act on its rows only.
    """

    path: str
    weight: float = bounded(1.0, above=0)
    real: bool = False

    def __post_init__(self):
        check_ranges(self, f"data.sources: {self.path}: ")


@dataclass(frozen=True)
class DataConfig:
    """The rows that a training step reads.

    Augmentation (`flip`, `exposure_range`, `rotation`, `crop`) needs pixels. Cached latents are augmented when they are
    made, by `encode --variants`.

    Attributes:
      sources: mixed by weight. Either all hold clips, or all hold cached latents.
      batch: rows per step, over all devices and microbatches.
      frames: frames per row; longer clips give a random window.
      size: height and width in pixels. Frames are scaled to cover it and center-cropped. None: the model's size.
        Cached latents have their own.
      passes: the G-buffers of which the inverse objective draws one per row, and the VAE's one image kind per row. A
        pass that is listed twice is drawn twice as often.
      image_fraction: fraction of rows whose frames are unrelated images, with the temporal branches switched off.
      flip: probability of a horizontal flip of images, normals and light together.
      exposure_range: lowest and highest factor on the radiance of light and image (0.7 to 1.4 in related work).
      rotation: largest angle in degrees by which the estimated light of real sources is turned.
      crop: smallest side of a random crop, relative to the frame's, which is drawn for every row; 1: the whole frame. A
        crop is at least `size` large, and its depth is normalized by its own range. The light stays the frame's.
      num_workers: threads that read ahead.
    """

    sources: tuple[Source, ...]
    batch: int = bounded(32, at_least=1)
    frames: int = bounded(24, at_least=1)
    size: tuple[int, int] | None = bounded(None, at_least=1)
    passes: tuple[str, ...] = DEFAULT_PASSES
    image_fraction: float = bounded(0.0, at_least=0, at_most=1)
    flip: float = bounded(0.5, at_least=0, at_most=1)
    exposure_range: tuple[float, float] = bounded((1.0, 1.0), above=0)
    rotation: float = bounded(0.0, at_least=0)
    crop: float = bounded(1.0, above=0, at_most=1)
    num_workers: int = bounded(8, at_least=1)

    def __post_init__(self):
        check_ranges(self, "data.")
        if not self.sources:
            raise InputError("data.sources: empty; give at least one folder of clips or set of cached latents")
        if not self.passes:
            raise InputError("data.passes: empty; give at least one G-buffer")
