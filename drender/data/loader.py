"""The training rows of a run.

Row i is a function of the seed and i alone. Hence the rows of a step are the same on any number of processes, and a run
resumes at any step without a record of its place in the data.
"""

import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import grain
import jax
import numpy as np

from drender.config import ENVIRONMENT_LABELS, RendererConfig
from drender.data.augment import AugmentationConfig
from drender.data.clips import VALID, ClipDataset, check_size, open_clips
from drender.data.config import DataConfig
from drender.data.latent_cache import LatentDataset, is_latent_cache
from drender.errors import InputError, unknown_name_error

Row = dict[str, np.ndarray | np.generic]


class TrainingData:
    """The stream of rows of a run, drawn from clips or cached latents.

    A row holds, by objective:
      inverse: rgb, buffer [f, h, w, c]; domain [], the buffer's number in `model.domains`; image_only, real [].
        The buffer is one of `data.passes` that the clip has.
      forward: rgb [f, h, w, c]; conditions [i, f, h, w, c]; environment [e, f, H, W, c]; image_only, real [].
      environment: environment [e, f, H, W, c].
      vae: images [f, h, w, 3], of one kind, `rgb` or a G-buffer.
    Pixels are float32 in [0, 1], cached latents float16. Where a source has masks, or pixels of float files that may be
    invalid, rows of inverse and forward also have valid [f, h, w, 1], bool.

    Args:
      model: names and orders of domains, conditions and environment images, and sizes.
      rows: rows of a batch that this process reads.
      seed: of all random draws.
      process_index, process_count: shard of the rows.
    Attributes:
      latent: rows hold cached latents, not pixels.
      fingerprint: of the VAE that made the latents, see `latent_cache.fingerprint`; None for pixels.
    Raises:
      InputError: an invalid value, or clips or latents that are missing, damaged, or do not suit the model.
    """

    def __init__(
        self,
        data: DataConfig,
        objective: str,
        model: RendererConfig,
        rows: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        _check(data, objective, model)
        self.data, self.objective, self.model, self.rows = data, objective, model, rows
        self.labels, optional = row_labels(data, objective, model), optional_labels(data, objective)
        required = tuple(label for label in self.labels if label not in optional)
        latent = [is_latent_cache(source.path) for source in data.sources]
        if any(latent) and not all(latent):
            clips, latents = (data.sources[latent.index(kind)].path for kind in (False, True))
            raise InputError(f"{clips} holds clips and {latents} cached latents; encode both")
        self.latent, self.fingerprint = all(latent), None
        if self.latent:
            self.sources = _open_latents(data, objective, model, required)
            self.fingerprint = self.sources[0].manifest.weights
        else:
            self.sources = _open_clips(data, model, required, optional)
        if optional:
            _check_passes(self.sources, optional, needs_one=objective == "inverse")
        if data.image_fraction < 1:
            for source in self.sources:
                source.require(data.frames)
        self.masked = objective in ("inverse", "forward") and any(x.masked(self.labels) for x in self.sources)
        # Every source goes through all its clips in a new order before any clip repeats.
        clips = [
            grain.MapDataset.range(len(source)).seed(seed + i).shuffle().map(lambda clip, i=i: (i, clip)).repeat()
            for i, source in enumerate(self.sources)
        ]
        mixed = grain.MapDataset.mix(clips, [source.weight for source in data.sources])
        stream = mixed.random_map(self._row, seed=seed)
        self._stream = grain.MapDataset.source(_Shard(stream, rows, process_index, process_count))

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of this process's part of a batch.

        This reads a row, so that unreadable data fails before anything is compiled.
        """
        row = self._stream[0]
        return {name: jax.ShapeDtypeStruct((self.rows, *value.shape), value.dtype) for name, value in row.items()}

    def batches(self, step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Return an endless grain iterator over this process's part of the batches from `step` on.

        Its state depends on the step alone, not on where the iterator began.
        """
        # Besides the rows that are being read, at most one batch waits in memory.
        num_workers = self.data.num_workers
        options = grain.ReadOptions(num_threads=num_workers, prefetch_buffer_size=max(self.rows, num_workers))
        iterator = iter(self._stream.to_iter_dataset(options).batch(self.rows))
        iterator.set_state({"next_index": step * self.rows})
        return iterator

    def _row(self, drawn: tuple[int, int], rng: np.random.Generator) -> Row:
        """Return the row of the objective for a drawn (source, clip)."""
        index, clip = drawn
        source, labels = self.sources[index], self.labels
        image_only = rng.random() < self.data.image_fraction
        kinds = ("rgb", *self.data.passes) if self.objective == "vae" else self.data.passes
        if self.objective in ("inverse", "vae"):
            kinds = [kind for kind in kinds if source.has(clip, kind)]
        kind = kinds[rng.integers(len(kinds))]
        if self.objective in ("inverse", "vae"):
            labels = (kind,) if self.objective == "vae" else ("rgb", kind)
        images = self._images(source, clip, (*labels, *[VALID] * self.masked), image_only, rng)
        return make_row(self.objective, self.model, images, kind, image_only, self.data.sources[index].real)

    def _images(
        self,
        source: ClipDataset | LatentDataset,
        clip: int,
        labels: Sequence[str],
        image_only: bool,
        rng: np.random.Generator,
    ) -> dict[str, np.ndarray]:
        """Return consecutive frames of a clip; of an image-only row, one frame each of this and other clips."""
        stored = [label for label in labels if label not in (*ENVIRONMENT_LABELS, VALID)]
        if not image_only:
            return source.draw(clip, self.data.frames, labels, rng)
        others = [i for i in range(len(source)) if i != clip and all(map(functools.partial(source.has, i), stored))]
        others = rng.choice(others, min(self.data.frames - 1, len(others)), replace=False)
        # A source with fewer clips than frames gives several frames of a clip.
        clips = np.resize([clip, *others], self.data.frames)
        frames = [source.draw(int(clip), 1, labels, rng) for clip in clips]
        return {label: np.concatenate([images[label] for images in frames]) for label in labels}


def make_row(
    objective: str,
    model: RendererConfig,
    images: Mapping[str, np.ndarray],
    kind: str | None,
    image_only: bool = False,
    real: bool = False,
) -> Row:
    """Return the row of an objective, as `TrainingData` describes it.

    Args:
      images: of a clip by label, with `valid` where pixels may be invalid.
      kind: the G-buffer of an inverse row, or the image kind of a VAE's.
    """
    stack = lambda labels: np.stack([images[label] for label in labels])
    if objective == "vae":
        return {"images": images[kind]}
    if objective == "environment":
        return {"environment": stack(environment_labels(model))}
    valid = {"valid": images[VALID] > 0.5} if VALID in images else {}
    row = {"rgb": images["rgb"], "image_only": np.bool_(image_only), "real": np.bool_(real), **valid}
    if objective == "inverse":
        return row | {"buffer": images[kind], "domain": np.int32(model.domains[kind])}
    return row | {"conditions": stack(model.conditions), "environment": stack(environment_labels(model))}


@dataclass(frozen=True)
class _Shard:
    """The rows of one of `count` processes: a block of `rows` rows of every batch, in the order of the processes."""

    stream: grain.MapDataset
    rows: int
    index: int
    count: int

    def __len__(self) -> int:
        return len(self.stream) // self.count

    def __getitem__(self, i: int) -> Row:
        step, row = divmod(i, self.rows)
        return self.stream[(step * self.count + self.index) * self.rows + row]


# --- labels ----------------------------------------------------------------------------------------------------------


def environment_labels(model: RendererConfig) -> tuple[str, ...]:
    """Return the environment images that the model takes, in its order."""
    return model.env_encoder.in_labels if model.env_encoder else ()


def optional_labels(data: DataConfig, objective: str) -> tuple[str, ...]:
    """Return the labels of `row_labels` that a clip may lack: its rows are of the others."""
    return tuple(dict.fromkeys(data.passes)) if objective in ("inverse", "vae") else ()


def row_labels(data: DataConfig, objective: str, model: RendererConfig) -> tuple[str, ...]:
    """Return all labels that rows of the objective may need."""
    light = environment_labels(model)
    return {
        "inverse": ("rgb", *data.passes),
        "vae": ("rgb", *data.passes),
        "forward": ("rgb", *model.conditions, *light),
        "environment": light,
    }[objective]


# --- opening ---------------------------------------------------------------------------------------------------------


def _check(data: DataConfig, objective: str, model: RendererConfig) -> None:
    """Raise InputError for values that do not suit the objective or the model."""
    fraction = data.image_fraction
    if fraction and objective == "environment":
        raise InputError(f"data.image_fraction: the environment objective has no image rows, got {fraction}; remove it")
    if objective == "vae" and fraction not in (0, 1):
        raise InputError(f"data.image_fraction: expected 0 or 1 for the vae objective, got {fraction}")
    for name in data.passes:
        if name not in model.domains:
            raise unknown_name_error("pass in data.passes", name, model.domains)
    if objective in ("forward", "environment") and not model.env_encoder:
        raise InputError(f"the {objective} objective needs a model with an environment encoder")
    if data.rotation and not any(source.real for source in data.sources):
        problem = f"expected 0 without real sources, got {data.rotation}"
        raise InputError(f"data.rotation: {problem}; synthetic light is exact")


def _check_passes(sources: Sequence[ClipDataset | LatentDataset], passes: Sequence[str], needs_one: bool) -> None:
    """Warn of passes that clips lack, and raise InputError for a clip that lacks all, if it needs one."""
    for source in sources:
        lacking = {}  # passes by the name of the clip
        for i, name in enumerate(source.names):
            lacking[name] = [label for label in passes if not source.has(i, label)]
            if needs_one and len(lacking[name]) == len(passes):
                raise InputError(f"{source.path}: {name!r} has none of data.passes; remove it, or add files")
        incomplete = [f"{name!r} has no {', '.join(labels)}" for name, labels in lacking.items() if labels]
        if incomplete:
            problem = f"{len(incomplete)} of {len(source)} clips lack G-buffers ({incomplete[0]})"
            warnings.warn(f"{source.path}: {problem}; their rows are of the others", stacklevel=2)


def _open_clips(
    data: DataConfig, model: RendererConfig, labels: Sequence[str], optional: Sequence[str]
) -> list[ClipDataset]:
    size = data.size or model.size
    check_size("data.size", size, model.vae.downscale)
    check_size("model.environment_size", model.environment_size, model.vae.downscale)
    sources = []
    for source in data.sources:
        rotation = data.rotation if source.real else 0.0  # only an estimated light may be off
        augmentation = AugmentationConfig(data.flip, data.exposure_range, rotation, data.crop)
        clips = open_clips(source.path, labels, optional)
        sources.append(ClipDataset(source.path, clips, size, model.environment_size, augmentation))
    return sources


def _open_latents(
    data: DataConfig, objective: str, model: RendererConfig, labels: Sequence[str]
) -> list[LatentDataset]:
    path = data.sources[0].path
    if objective == "vae":
        raise InputError(f"the vae objective needs pixels, but {path} holds cached latents")
    if model.env_encoder and not model.env_encoder.latent_encoder and objective != "inverse":
        raise InputError(f"this environment encoder takes pixels, but {path} holds cached latents")
    if data.exposure_range != (1.0, 1.0) or data.rotation or data.crop < 1:
        names = "data.exposure_range, data.rotation and data.crop"
        raise InputError(f"{names} need clips; give them to `encode` for cached latents")
    sources = [LatentDataset(source.path, labels) for source in data.sources]
    first = sources[0].manifest
    for source in sources:
        manifest = source.manifest
        for name, key in (("latent channels", "latent_channels"), ("pixels per latent", "downscale")):
            found, expected = getattr(manifest.vae, key), getattr(model.vae, key)
            if found != expected:
                problem = f"has {found} {name}, but the model's VAE {expected}"
                raise InputError(f"{source.path} {problem}; encode the clips with that VAE")
        found, expected = manifest.environment_size, model.environment_size
        if found != expected and objective != "inverse":
            problem = f"images of {found}, but model.environment_size, which sampling uses, is {expected}"
            remedy = "set that, or encode the clips with that --environment-size"
            raise InputError(f"{source.path} has environment {problem}; {remedy}")
        for name in ("weights", "size"):
            found, expected = getattr(manifest, name), getattr(first, name)
            if found != expected:
                other = "another VAE" if name == "weights" else f"another {name} ({found} and {expected})"
                raise InputError(f"{source.path} was encoded with {other} than {path}; encode both the same way")
    return sources
