"""Clips to cached latents: read by threads, encoded by all devices, written entry by entry."""

import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float16, Float32
from tqdm import tqdm

from drender.checkpoints.fingerprint import fingerprint
from drender.checkpoints.orbax import load, load_config
from drender.config import ENVIRONMENT_LABELS, RendererConfig
from drender.data.augment import Augmentation, AugmentationConfig
from drender.data.clips import LabeledClip, open_clips
from drender.data.latent_cache import LatentCacheManifest, begin, create, missing, said
from drender.errors import InputError
from drender.models.params import abstract_module
from drender.models.vae import VAE
from drender.renderers.base import Renderer
from drender.sharding import check_process


class Encoder(Renderer):
    """The VAE of any checkpoint, without the other networks, which need not be there."""

    @classmethod
    def load_config(cls, path: str | Path) -> RendererConfig:
        return load_config(path)

    @classmethod
    def _load_params(cls, path: str | Path, config: RendererConfig, dtype: str) -> dict[str, dict]:
        return {"vae": load(path, "vae", abstract_module(VAE, config.vae)[1], dtype)}


def encode(
    source: str | Path,
    destination: str | Path,
    checkpoint: str | Path,
    labels: Sequence[str],
    *,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    environment_size: tuple[int, int] | None = None,
    variants: int = 1,
    augmentation: AugmentationConfig,
    seed: int = 0,
    dtype: str | None = None,
    process: tuple[int, int] = (0, 1),
    threads: int = 4,
    devices: Sequence[jax.Device] | None = None,
) -> None:
    """Encodes the clips of a folder; what is there of an earlier run with the same arguments is kept.

    Args:
      source: folder of clips.
      destination: folder of the set.
      checkpoint: of which the VAE is used.
      labels: what is encoded, of `rgb`, the G-buffers and the environment's images.
      frames: per entry; None: as many as every clip has. Longer clips are cut into windows, the last of which is moved
        back to end with its chunk.
      size, environment_size: None: the checkpoint's.
      variants, augmentation, seed: as in `Recipe`.
      dtype: to compute in; None: as `Renderer.load` chooses.
      process: this one's index, and how many share the entries.
      threads: that read, one entry each, ahead of the devices.
      devices: that encode, an entry each at a time; None: all local ones.
    Raises:
      InputError: bad clips, a set of other contents at `destination`, values that make no sense, a full disk.
    """
    config = load_config(checkpoint)
    least = {"frames": 1, "variants": 1, "threads": 1, "seed": 0}
    for (name, low), value in zip(least.items(), (frames, variants, threads, seed), strict=True):
        if value is not None and value < low:
            raise InputError(f"{name} is {value}; it must be {low} or more")
    check_process(process)
    size, environment_size = size or config.size, environment_size or config.environment_size
    for name, sides in (("size", size), ("environment size", environment_size)):
        if min(sides) < 1 or any(side % config.vae.downscale for side in sides):
            raise InputError(f"{name} {sides[0]} {sides[1]}: sides must be multiples of {config.vae.downscale}, over 0")
    clips = open_clips(source, labels)
    frames = frames or min(clip.longest for clip in clips)
    windows = {clip.name: _windows(clip, frames) for clip in clips}
    if len(windows) < len(clips):
        raise InputError(f"{source}: links lead to several clips of one name; rename the folders they lead to")
    encoders = [Encoder.load(checkpoint, dtype, device) for device in devices or jax.local_devices()]
    recipe = LatentCacheManifest(
        labels=tuple(dict.fromkeys(labels)),
        frames=frames,
        size=size,
        environment_size=environment_size,
        variants=variants,
        augmentation=augmentation,
        seed=seed,
        dtype=str(jax.tree.leaves(encoders[0].params)[0].dtype),
        vae=config.vae,
        weights=fingerprint(load(checkpoint, "vae", dtype=np.float32)),
        clips=windows,
    )
    writer = _Writer(Path(destination), recipe, clips, encoders)
    _write(writer, range(len(recipe.entries))[process[0] :: process[1]], threads)


def _windows(clip: LabeledClip, frames: int) -> tuple[int, ...]:
    """The first frames of windows that cover every chunk which is long enough."""
    if frames > clip.longest:
        raise InputError(
            f"clip {clip.name!r} has {clip.longest} frames, fewer than {frames}; lower --frames, or take it away"
        )
    return tuple(first for starts in clip.windows(frames) for first in (*starts[:-1:frames], starts[-1]))


def _write(writer: "_Writer", entries: range, threads: int) -> None:
    """Writes those of the entries that are missing, and says how far that brings the set."""
    todo = sorted(writer.missing() & set(entries))
    print(f"{writer.folder}: {len(todo)} of {len(entries)} entries to encode", flush=True)
    pool = ThreadPoolExecutor(threads)
    try:
        with tqdm(total=len(entries), initial=len(entries) - len(todo), unit="entry", disable=None) as bar:
            for written in as_completed([pool.submit(writer.write, index) for index in todo]):
                written.result()
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)  # those begun are completed
    left = len(writer.missing())
    print(f"{writer.folder}: " + (f"{left} entries left to other processes" if left else "complete"), flush=True)


class _Writer:
    """Encodes and writes entries, called by many threads; the encoders are on a device each.

    InputError if the folder holds something else than the beginning of this set.
    """

    def __init__(self, folder: Path, recipe: LatentCacheManifest, clips: list[LabeledClip], encoders: list[Encoder]):
        self.folder, self.recipe, self.entries = folder, recipe, recipe.entries
        self.clips = {clip.name: clip for clip in clips}
        self.free = queue.SimpleQueue()
        for encoder in encoders:
            self.free.put(encoder)
        begin(folder, recipe)
        self.arrays = {label: create(folder, recipe, label) for label in recipe.labels}

    def missing(self) -> set[int]:
        return missing(self.folder, self.recipe)

    def write(self, index: int) -> None:
        """Reads, encodes and writes one entry. InputError naming its clip."""
        name, first, variant = self.entries[index]
        augmentation = Augmentation()
        if variant > 0:
            augmentation = self.recipe.augmentation.draw(np.random.default_rng((self.recipe.seed, index)))
        try:
            encoded = self._encoded(self.clips[name], slice(first, first + self.recipe.frames), augmentation)
        except InputError as error:
            raise InputError(f"clip {name!r}: {error}") from error
        try:
            for writing in [self.arrays[label][index].write(latents) for label, latents in encoded.items()]:
                writing.result()
        except (ValueError, OSError) as error:
            raise InputError(f"{self.folder}: cannot be written ({said(error)}); free space and run again") from error

    def _encoded(
        self, clip: LabeledClip, frames: slice, augmentation: Augmentation
    ) -> dict[str, Float16[np.ndarray, "f _h _w c"]]:
        recipe, encoded = self.recipe, {}
        light = [label for label in recipe.labels if label in ENVIRONMENT_LABELS]
        # One kind of image at a time bounds the memory; those of the light come from one projection.
        for labels in [[label] for label in recipe.labels if label not in light] + [light] * bool(light):
            images = clip.images(labels, frames, recipe.size, recipe.environment_size, augmentation)
            encoded |= {label: self._latents(label, images[label]) for label in labels}
        return encoded

    def _latents(self, label: str, images: Float32[np.ndarray, "f h w 3"]) -> Float16[np.ndarray, "f h8 w8 c"]:
        """The latents of a clip's images; of one image where all are alike, as a light that stands still is."""
        some = images[:1] if (images == images[:1]).all() else images
        encoder = self.free.get()
        try:
            latents = np.asarray(encoder.encode_images(np.ascontiguousarray(some)))
        finally:
            self.free.put(encoder)
        with np.errstate(over="ignore"):
            latents = latents.astype(np.float16)
        if not np.isfinite(latents).all():
            raise InputError(f"the latents of its {label!r} are not finite; give a sound VAE, or a wider --dtype")
        return np.broadcast_to(latents, (len(images), *latents.shape[1:]))
