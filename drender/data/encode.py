"""Encode clips to cached latents: threads read, all devices encode, and entries are written one by one."""

import queue
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float16, Float32
from tqdm import tqdm

from drender.checkpoints.orbax import load, load_config
from drender.config import DEFAULT_PASSES, ENVIRONMENT_LABELS, RendererConfig
from drender.data.augment import Augmentation, AugmentationConfig
from drender.data.clips import VALID, LabeledClip, check_size, latent_mask, open_clips
from drender.data.latent_cache import LatentCacheManifest, begin_cache, brief, fingerprint, make_array, missing_entries
from drender.errors import InputError, naming, say
from drender.locks import lock_folder
from drender.models.params import abstract_module
from drender.models.vae import VAE
from drender.renderers.base import Renderer
from drender.sampling.options import DeviceOptions, option
from drender.sharding import check_process


@dataclass(frozen=True, kw_only=True)
class EncodeOptions(DeviceOptions):
    """Clips to cached latents."""

    source: str = option("clips: rgb, G-buffers and light.json", metavar="FOLDER", name="source")
    destination: str = option("output folder of the latents", metavar="SET", name="destination")
    checkpoint: str = option("checkpoint whose VAE encodes", metavar="FOLDER", required=True)
    frames: int | None = option(
        "frames per entry (as many as every clip has); longer clips are cut into windows", metavar="N"
    )
    labels: tuple[str, ...] = option("image kinds to encode", ("rgb", *DEFAULT_PASSES), "NAME")
    environment: bool = option("leave out the environment images", True, name="--no-environment", action="store_false")
    environment_size: tuple[int, int] | None = option(
        "pixels of the environment images (the checkpoint's)", metavar=("H", "W")
    )
    size: tuple[int, int] | None = option("pixels to cover (the checkpoint's)", metavar=("H", "W"))
    variants: int = option(
        "variants per window: the first is unchanged, others are augmented by the options below", 1, "N"
    )
    flip: float = option("probability of mirroring", 0.5, "P")
    exposure_range: tuple[float, float] = option("factor on the radiance", (1.0, 1.0), ("LOW", "HIGH"))
    rotation: float = option("largest turn of the light", 0.0, "DEGREES")
    crop: float = option("smallest side of a random crop, relative to the frame's", 1.0, "FRACTION")
    seed: int = option("random seed", 0, "N")
    num_workers: int = option("threads that read ahead of the devices", 4, "N")

    @property
    def all_labels(self) -> tuple[str, ...]:
        """The labels with those of the environment images."""
        return (*self.labels, *(ENVIRONMENT_LABELS if self.environment else ()))

    @property
    def augmentation(self) -> AugmentationConfig:
        """The distribution of the augmentations; raises InputError for a value out of range."""
        return AugmentationConfig(self.flip, self.exposure_range, self.rotation, self.crop)


class Encoder(Renderer):
    """The VAE of any checkpoint; the other networks may be missing."""

    @classmethod
    def load_config(cls, path: str | Path) -> RendererConfig:
        return load_config(path)

    @classmethod
    def _load_params(cls, path: str | Path, config: RendererConfig, dtype: str) -> dict[str, dict]:
        return {"vae": load(path, "vae", abstract_module(VAE, config.vae)[1], dtype)}


def encode_clips(options: EncodeOptions, devices: Sequence[jax.Device]) -> None:
    """Encode the clips of a folder. Entries that an earlier run with the same options has written are kept.

    Every clip must have `rgb` and the environment; G-buffers that some clip lacks are left out, with a warning. A
    `valid` is added if clips have one, or files of floats, whose pixels may be invalid. Windows of longer clips follow
    each other; the last is moved back to end with its chunk. Each device encodes an entry at a time.

    Raises:
      InputError: invalid clips or options, a set of other contents at `destination`, or a full disk.
    """
    source, destination, checkpoint, frames = options.source, options.destination, options.checkpoint, options.frames
    augmentation, config = options.augmentation, load_config(checkpoint)
    for name, minimum in (("frames", 1), ("variants", 1), ("num_workers", 1), ("seed", 0)):
        if (value := getattr(options, name)) is not None and value < minimum:
            raise InputError(f"{name}: expected at least {minimum}, got {value}")
    check_process(options.process)
    size, environment_size = options.size or config.size, options.environment_size or config.environment_size
    check_size("size", size, config.vae.downscale)
    check_size("environment size", environment_size, config.vae.downscale)
    clips, labels = _open(source, options.all_labels)
    if frames is None:
        shortest = min(clips, key=lambda clip: clip.longest)
        frames = shortest.longest
        if frames < min(config.frames, max(clip.longest for clip in clips)):
            problem = f"entries have {frames} frames, since clip {shortest.name!r} has no more"
            warnings.warn(f"{source}: {problem}; give --frames, and remove shorter clips", stacklevel=2)
    windows = {clip.name: _windows(clip, frames) for clip in clips}
    if len(windows) < len(clips):
        raise InputError(f"{source}: links lead to several clips of one name; rename the linked folders")
    encoders = [Encoder.load(checkpoint, options.dtype, device) for device in devices]
    manifest = LatentCacheManifest(
        labels=labels,
        frames=frames,
        size=size,
        environment_size=environment_size,
        variants=options.variants,
        augmentation=augmentation,
        seed=options.seed,
        dtype=str(jax.tree.leaves(encoders[0].params)[0].dtype),
        vae=config.vae,
        weights=fingerprint(load(checkpoint, "vae", dtype=np.float32)),
        clips=windows,
    )
    index, count = options.process
    with lock_folder(Path(destination), options.process):
        writer = _Writer(Path(destination), manifest, clips, encoders)
        _write_missing(writer, range(len(manifest.entries))[index::count], options.num_workers)


def _open(source: str | Path, labels: Sequence[str]) -> tuple[list[LabeledClip], tuple[str, ...]]:
    """Return the clips, and the labels that all have."""
    required = [label for label in labels if label in ("rgb", *ENVIRONMENT_LABELS)]
    clips = open_clips(source, required, [label for label in labels if label not in required])
    lacking = {label: [x.name for x in clips if label not in (*x.labels, *ENVIRONMENT_LABELS)] for label in labels}
    shared = [label for label, names in lacking.items() if not names]
    if not shared:
        raise InputError(f"{source}: no clip has {', '.join(labels)}; give other --labels")
    for label, names in lacking.items():
        if names:
            problem = f"{label} is left out, because clip {names[0]!r} has none"
            warnings.warn(f"{source}: {problem}; add its files", stacklevel=3)
    return clips, (*shared, *((VALID,) if any(clip.masked(shared) for clip in clips) else ()))


def _windows(clip: LabeledClip, frames: int) -> tuple[int, ...]:
    """Return the first frames of windows that cover every chunk of `frames` frames or more."""
    if frames > clip.longest:
        problem = f"clip {clip.name!r} has {clip.longest} frames, fewer than {frames}"
        raise InputError(f"{problem}; lower --frames, or remove the clip")
    return tuple(first for starts in clip.windows(frames) for first in (*starts[:-1:frames], starts[-1]))


def _write_missing(writer: "_Writer", entries: range, num_workers: int) -> None:
    """Write the missing ones of these entries, and print the progress of the set."""
    todo = sorted(missing_entries(writer.folder, writer.manifest) & set(entries))
    say(f"{writer.folder}: {len(todo)} of {len(entries)} entries to encode")
    pool = ThreadPoolExecutor(num_workers)
    try:
        options = {"disable": not todo, "mininterval": 0.1 if sys.stderr.isatty() else 30}  # seconds
        with tqdm(total=len(entries), initial=len(entries) - len(todo), unit="entry", **options) as bar:
            for written in as_completed([pool.submit(writer.write, index) for index in todo]):
                written.result()
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)  # entries that are being encoded are completed
    left = len(missing_entries(writer.folder, writer.manifest))
    say(f"{writer.folder}: " + (f"{left} entries left to other processes" if left else "complete"))


class _Writer:
    """Encodes and writes entries, called from several threads that share one encoder per device."""

    def __init__(self, folder: Path, manifest: LatentCacheManifest, clips: list[LabeledClip], encoders: list[Encoder]):
        self.folder, self.manifest, self.entries = folder, manifest, manifest.entries
        self.clips = {clip.name: clip for clip in clips}
        self.idle_encoders = queue.SimpleQueue()
        for encoder in encoders:
            self.idle_encoders.put(encoder)
        begin_cache(folder, manifest)
        self.arrays = {label: make_array(folder, manifest, label) for label in manifest.labels}

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
