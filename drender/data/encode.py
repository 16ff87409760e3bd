"""Encode clips to cached latents: threads read, all devices encode, and entries are written one by one."""

import queue
import warnings
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
from drender.data.clips import VALID, LabeledClip, check_size, latent_mask, open_clips
from drender.data.latent_cache import LatentCacheManifest, begin_cache, brief, create_array, missing_entries
from drender.errors import InputError, naming, say
from drender.locks import lock_folder
from drender.models.params import abstract_module
from drender.models.vae import VAE
from drender.renderers.base import Renderer
from drender.sharding import check_process


class Encoder(Renderer):
    """The VAE of any checkpoint; the other networks may be missing."""

    @classmethod
    def load_config(cls, path: str | Path) -> RendererConfig:
        return load_config(path)

    @classmethod
    def _load_params(cls, path: str | Path, config: RendererConfig, dtype: str) -> dict[str, dict]:
        return {"vae": load(path, "vae", abstract_module(VAE, config.vae)[1], dtype)}


def encode_clips(
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
    num_workers: int = 4,
    devices: Sequence[jax.Device] | None = None,
) -> None:
    """Encode the clips of a folder. Entries that an earlier run with the same arguments has written are kept.

    Args:
      source: folder of clips.
      destination: folder of the set.
      checkpoint: checkpoint whose VAE encodes.
      labels: `rgb`, G-buffers and environment images to encode, of which every clip must have `rgb` and the
        environment. G-buffers that some clip lacks are left out, with a warning. A `valid` is added if clips have one,
        or files of floats, whose pixels may be invalid.
      frames: frames per entry; None: as many as every clip has. Longer clips are cut into windows. The last window is
        moved back to end with its chunk.
      size, environment_size: height and width in pixels; None: the checkpoint's.
      variants, augmentation, seed: see `LatentCacheManifest`.
      dtype: of the computation; None: the choice of `Renderer.load`.
      process: index of this process, and number of processes that share the entries.
      num_workers: threads that read ahead of the devices, one entry each.
      devices: devices that encode one entry each at a time; None: all local ones.
    Raises:
      InputError: invalid clips or arguments, a set of other contents at `destination`, or a full disk.
    """
    config = load_config(checkpoint)
    minima = (("frames", frames, 1), ("variants", variants, 1), ("num_workers", num_workers, 1), ("seed", seed, 0))
    for name, value, minimum in minima:
        if value is not None and value < minimum:
            raise InputError(f"{name}: expected at least {minimum}, got {value}")
    check_process(process)
    size, environment_size = size or config.size, environment_size or config.environment_size
    check_size("size", size, config.vae.downscale)
    check_size("environment size", environment_size, config.vae.downscale)
    clips, labels = _open(source, labels)
    if frames is None:
        shortest = min(clips, key=lambda clip: clip.longest)
        frames = shortest.longest
        if frames < min(config.frames, max(clip.longest for clip in clips)):
            problem = f"entries have {frames} frames, since clip {shortest.name!r} has no more"
            warnings.warn(f"{source}: {problem}; give --frames, and remove shorter clips", stacklevel=2)
    windows = {clip.name: _windows(clip, frames) for clip in clips}
    if len(windows) < len(clips):
        raise InputError(f"{source}: links lead to several clips of one name; rename the linked folders")
    encoders = [Encoder.load(checkpoint, dtype, device) for device in devices or jax.local_devices()]
    manifest = LatentCacheManifest(
        labels=labels,
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
    index, count = process
    with lock_folder(Path(destination), process):
        writer = _Writer(Path(destination), manifest, clips, encoders)
        _write_missing(writer, range(len(manifest.entries))[index::count], num_workers)


def _open(source: str | Path, labels: Sequence[str]) -> tuple[list[LabeledClip], tuple[str, ...]]:
    """Return the clips, and the labels that all have."""
    required = [label for label in labels if label in ("rgb", *ENVIRONMENT_LABELS)]
    clips = open_clips(source, required, [label for label in labels if label not in required])
    lacking = {}  # the first clip without a label
    for label in labels:
        without = (clip.name for clip in clips if label not in clip.labels)
        if label not in ENVIRONMENT_LABELS and (name := next(without, None)):
            lacking[label] = name
    shared = [label for label in dict.fromkeys(labels) if label not in lacking]
    if not shared:
        raise InputError(f"{source}: no clip has {', '.join(labels)}; give other --labels")
    for label, name in lacking.items():
        warnings.warn(f"{source}: {label} is left out, because clip {name!r} has none; add its files", stacklevel=3)
    return clips, (*shared, *((VALID,) if any(clip.masked(shared) for clip in clips) else ()))


def _windows(clip: LabeledClip, frames: int) -> tuple[int, ...]:
    """Return the first frames of windows that cover every chunk of `frames` frames or more."""
    if frames > clip.longest:
        raise InputError(
            f"clip {clip.name!r} has {clip.longest} frames, fewer than {frames}; lower --frames, or remove the clip"
        )
    return tuple(first for starts in clip.windows(frames) for first in (*starts[:-1:frames], starts[-1]))


def _write_missing(writer: "_Writer", entries: range, num_workers: int) -> None:
    """Write the missing ones of these entries, and print the progress of the set."""
    todo = sorted(writer.missing() & set(entries))
    say(f"{writer.folder}: {len(todo)} of {len(entries)} entries to encode")
    pool = ThreadPoolExecutor(num_workers)
    try:
        with tqdm(total=len(entries), initial=len(entries) - len(todo), unit="entry", disable=None) as bar:
            for written in as_completed([pool.submit(writer.write, index) for index in todo]):
                written.result()
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)  # entries that are being encoded are completed
    left = len(writer.missing())
    say(f"{writer.folder}: " + (f"{left} entries left to other processes" if left else "complete"))


class _Writer:
    """Encodes and writes entries, called from several threads that share one encoder per device.

    Raises:
      InputError: the folder holds anything but the beginning of this set.
    """

    def __init__(self, folder: Path, manifest: LatentCacheManifest, clips: list[LabeledClip], encoders: list[Encoder]):
        self.folder, self.manifest, self.entries = folder, manifest, manifest.entries
        self.clips = {clip.name: clip for clip in clips}
        self.idle_encoders = queue.SimpleQueue()
        for encoder in encoders:
            self.idle_encoders.put(encoder)
        begin_cache(folder, manifest)
        self.arrays = {label: create_array(folder, manifest, label) for label in manifest.labels}

    def missing(self) -> set[int]:
        return missing_entries(self.folder, self.manifest)

    def write(self, index: int) -> None:
        """Read, encode and write one entry; raise InputError naming its clip."""
        name, first, variant = self.entries[index]
        augmentation = Augmentation()
        if variant > 0:
            augmentation = self.manifest.augmentation.draw(np.random.default_rng((self.manifest.seed, index)))
        with naming(f"clip {name!r}"):
            encoded = self._encode(self.clips[name], slice(first, first + self.manifest.frames), augmentation)
        try:
            for write in [self.arrays[label][index].write(latents) for label, latents in encoded.items()]:
                write.result()
        except (ValueError, OSError) as error:
            raise InputError(f"{self.folder}: cannot be written ({brief(error)}); free space and run again") from error

    def _encode(
        self, clip: LabeledClip, frames: slice, augmentation: Augmentation
    ) -> dict[str, Float16[np.ndarray, "f _h _w c"]]:
        manifest, encoded = self.manifest, {}
        light = [label for label in manifest.labels if label in ENVIRONMENT_LABELS]
        is_masked, valid = VALID in manifest.labels, np.bool_(True)
        # One image kind at a time bounds the memory. The environment images share a projection.
        for labels in [[label] for label in manifest.labels if label not in (*light, VALID)] + [light] * bool(light):
            read = [*labels, VALID] if is_masked and labels != light else labels
            images = clip.images(read, frames, manifest.size, manifest.environment_size, augmentation)
            valid = valid & (images.pop(VALID, np.float32(1)) > 0)
            encoded |= {label: self._latents(label, images[label]) for label in labels}
        if is_masked:
            encoded[VALID] = latent_mask(valid, manifest.vae.downscale).astype(np.float16)
        return encoded

    def _latents(self, label: str, images: Float32[np.ndarray, "f h w 3"]) -> Float16[np.ndarray, "f h8 w8 c"]:
        """Return the latents of a clip's images; equal images, as of a static light, are encoded once."""
        unique = images[:1] if (images == images[:1]).all() else images
        encoder = self.idle_encoders.get()
        try:
            latents = np.asarray(encoder.encode_images(np.ascontiguousarray(unique)))
        finally:
            self.idle_encoders.put(encoder)
        with np.errstate(over="ignore"):
            latents = latents.astype(np.float16)
        if not np.isfinite(latents).all():
            raise InputError(f"the latents of its {label!r} are non-finite; use an intact VAE, or a wider --dtype")
        return np.broadcast_to(latents, (len(images), *latents.shape[1:]))
