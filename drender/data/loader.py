"""What training is fed: rows drawn from clips or cached latents, and the commands that make both.

Row i of the stream is a function of the seed and i. Processes share the rows of a step, which are the same on any
number of them, and a run goes on at any step without a record of where it was.

    python -m drender.data label  CLIPS FOLDER --checkpoint INVERSE      real clips to clips with estimated G-buffers
    python -m drender.data encode FOLDER SET   --checkpoint CHECKPOINT   clips to cached latents
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grain
import jax
import numpy as np

from drender.config import RendererConfig
from drender.data.augment import AugmentationConfig
from drender.data.clips import ClipDataset, open_clips
from drender.data.config import OBJECTIVES, DataConfig
from drender.data.latent_cache import LatentDataset, is_set
from drender.errors import InputError, unknown_name_error

Row = dict[str, np.ndarray | np.generic]


@dataclass(frozen=True)
class _Share:
    """What one of `count` processes reads of a stream: of every batch a block of `rows` rows, so that the blocks in the
    order of the processes are the batch.
    """

    stream: grain.MapDataset
    rows: int
    index: int
    count: int

    def __len__(self) -> int:
        return len(self.stream) // self.count

    def __getitem__(self, i: int) -> Row:
        step, row = divmod(i, self.rows)
        return self.stream[(step * self.count + self.index) * self.rows + row]


class TrainingData:
    """The stream of rows; `open_data` makes it.

    Attributes:
      latent: rows hold cached latents, not pixels.
      fingerprint: of the VAE that made the latents, as `encode.fingerprint` gives it; None for pixels.
    """

    def __init__(
        self,
        data: DataConfig,
        objective: str,
        model: RendererConfig,
        sources: Sequence[ClipDataset | LatentDataset],
        rows: int,
        seed: int,
        process_index: int,
        process_count: int,
    ):
        self.data, self.objective, self.model, self.sources, self.rows = data, objective, model, sources, rows
        self.latent = isinstance(sources[0], LatentDataset)
        self.fingerprint = sources[0].recipe.weights if self.latent else None
        # Every source goes through all its clips before any comes again, each time in another order.
        clips = [
            grain.MapDataset.range(len(source)).seed(seed + i).shuffle().map(lambda clip, i=i: (i, clip)).repeat()
            for i, source in enumerate(sources)
        ]
        mixed = grain.MapDataset.mix(clips, [source.weight for source in data.sources])
        stream = mixed.random_map(self._row, seed=seed)
        self._stream = grain.MapDataset.source(_Share(stream, rows, process_index, process_count))

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of this process's part of a batch. (Reads a row: data that cannot be read shows early.)"""
        row = self._stream[0]
        return {name: jax.ShapeDtypeStruct((self.rows, *value.shape), value.dtype) for name, value in row.items()}

    def batches(self, step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """This process's part of every batch from `step` on: a grain iterator without end.

        `get_state` and `set_state` agree with `step`: neither depends on where the iterator began.
        """
        # Rows of one batch at most wait in memory, beside those that are being read.
        ahead = grain.ReadOptions(num_threads=self.data.threads, prefetch_buffer_size=max(self.rows, self.data.threads))
        iterator = iter(self._stream.to_iter_dataset(ahead).batch(self.rows))
        iterator.set_state({"next_index": step * self.rows})
        return iterator

    def _row(self, drawn: tuple[int, int], rng: np.random.Generator) -> Row:
        """A row of one clip, or whose frames are of as many clips."""
        source, clip = drawn
        image_only = rng.random() < self.data.images
        kinds = ("rgb", *self.data.passes) if self.objective == "vae" else self.data.passes
        kind = kinds[rng.integers(len(kinds))]
        conditions, light = self.model.conditions, environment_labels(self.model)
        read = lambda labels: self._images(self.sources[source], clip, labels, image_only, rng)
        stack = lambda images, labels: np.stack([images[label] for label in labels])
        marks = {"image_only": np.bool_(image_only), "real": np.bool_(self.data.sources[source].real)}
        if self.objective == "inverse":
            images = read(("rgb", kind))
            domain = np.int32(self.model.domains[kind])
            return {"rgb": images["rgb"], "buffer": images[kind], "domain": domain, **marks}
        if self.objective == "forward":
            images = read(("rgb", *conditions, *light))
            return {
                "rgb": images["rgb"], "conditions": stack(images, conditions), "environment": stack(images, light),
                **marks,
            }  # fmt: skip
        if self.objective == "environment":
            return {"environment": stack(read(light), light)}
        return {"images": read((kind,))[kind]}

    def _images(
        self,
        source: ClipDataset | LatentDataset,
        clip: int,
        labels: Sequence[str],
        image_only: bool,
        rng: np.random.Generator,
    ) -> dict[str, np.ndarray]:
        """Consecutive frames of a clip; or else one of each of as many clips, this one among them."""
        if not image_only:
            return source.draw(clip, self.data.frames, labels, rng)
        others = np.delete(np.arange(len(source)), clip)
        others = rng.choice(others, min(self.data.frames - 1, len(others)), replace=False)
        # A source of fewer clips than that has to give several frames of one.
        clips = np.resize([clip, *others], self.data.frames)
        frames = [source.draw(int(clip), 1, labels, rng) for clip in clips]
        return {label: np.concatenate([images[label] for images in frames]) for label in labels}


# ---- Opening ----


def open_data(
    data: DataConfig,
    objective: str,
    model: RendererConfig,
    rows: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainingData:
    """Opens what a run trains on.

    Args:
      objective: one of OBJECTIVES, which decides what is in a row:
        inverse: rgb, buffer [f, h, w, c]; domain [], a row of `model.domains`; image_only, real [].
        forward: rgb [f, h, w, c]; conditions [i, f, h, w, c]; environment [e, f, H, W, c]; image_only, real [].
        environment: environment [e, f, H, W, c].
        vae: images [f, h, w, 3], of one kind, `rgb` or a G-buffer.
        Pixels are float32 in [0, 1], cached latents float16.
      model: names and orders of domains, conditions and environment images, and sizes.
      rows: of a batch that are this process's.
      seed: of everything that is drawn.
      process_index, process_count: which share of the rows.
    Raises:
      InputError: a value that makes no sense; clips or latents that are missing, broken, or do not suit the model.
    """
    if not 0 <= seed < 2**31:
        raise InputError(f"seed is {seed}; it must be from 0 to 2**31 - 1")
    _check(data, objective, model)
    labels = _labels(data, objective, model)
    latent = [is_set(source.path) for source in data.sources]
    if any(latent) and not all(latent):
        clips = data.sources[latent.index(False)].path
        raise InputError(f"{clips} holds clips and {data.sources[latent.index(True)].path} cached latents; encode both")
    sources = _open_latents(data, objective, model, labels) if all(latent) else _open_clips(data, model, labels)
    if data.images < 1:
        for source in sources:
            source.require(data.frames)
    return TrainingData(data, objective, model, sources, rows, seed, process_index, process_count)


def environment_labels(model: RendererConfig) -> tuple[str, ...]:
    """The environment images that the model takes, in its order."""
    return model.env_encoder.in_labels if model.env_encoder else ()


def _labels(data: DataConfig, objective: str, model: RendererConfig) -> tuple[str, ...]:
    """All that a row of the objective may need."""
    light = environment_labels(model)
    return {
        "inverse": ("rgb", *data.passes),
        "vae": ("rgb", *data.passes),
        "forward": ("rgb", *model.conditions, *light),
        "environment": light,
    }[objective]


def _check(data: DataConfig, objective: str, model: RendererConfig) -> None:
    """InputError for values that make no sense."""
    if objective not in OBJECTIVES:
        raise unknown_name_error("objective", objective, OBJECTIVES)
    if not data.sources:
        raise InputError("data.sources is empty; name a folder of clips or a set of cached latents")
    for source in data.sources:
        if not 0 < source.weight < np.inf:
            raise InputError(f"data.sources: {source.path} has weight {source.weight}; it must be over 0")
    for name in ("frames", "threads"):
        if getattr(data, name) < 1:
            raise InputError(f"data.{name} is {getattr(data, name)}; it must be 1 or more")
    if not 0 <= data.images <= 1:
        raise InputError(f"data.images is {data.images}; it is a share, from 0 to 1")
    if data.images and objective == "environment":
        raise InputError(f"data.images is {data.images}, but the {objective} objective has no image rows; leave it out")
    if objective == "vae" and data.images not in (0, 1):
        raise InputError(f"data.images is {data.images}, but rows of the vae objective are all images or none: 0 or 1")
    for name in data.passes:
        if name not in model.domains:
            raise unknown_name_error("pass in data.passes", name, model.domains)
    if not data.passes:
        raise InputError("data.passes is empty; name at least one G-buffer")
    if objective in ("forward", "environment") and not model.env_encoder:
        raise InputError(f"the {objective} objective needs a model with an environment encoder")
    if data.rotation and not any(source.real for source in data.sources):
        raise InputError(f"data.rotation is {data.rotation}, but no source is real: the light of the others is exact")


def _open_clips(data: DataConfig, model: RendererConfig, labels: Sequence[str]) -> list[ClipDataset]:
    for name, size in (("data.size", data.size), ("model.environment_size", model.environment_size)):
        if min(size) < 1 or any(side % model.vae.downscale for side in size):
            raise InputError(f"{name} is {size[0]} {size[1]}: sides must be multiples of {model.vae.downscale}, over 0")
    sources = []
    for source in data.sources:
        rotation = data.rotation if source.real else 0.0  # only an estimated light may be off
        augmentation = AugmentationConfig(data.flip, data.intensity, rotation)
        clips = open_clips(source.path, labels)
        sources.append(ClipDataset(source.path, clips, data.size, model.environment_size, augmentation))
    return sources


def _open_latents(
    data: DataConfig, objective: str, model: RendererConfig, labels: Sequence[str]
) -> list[LatentDataset]:
    if objective == "vae":
        raise InputError(f"the vae objective needs pixels, but {data.sources[0].path} holds cached latents")
    if model.env_encoder and not model.env_encoder.latent_encoder and objective != "inverse":
        raise InputError(f"this environment encoder takes pixels, but {data.sources[0].path} holds cached latents")
    if data.intensity != (1.0, 1.0) or data.rotation:
        raise InputError("data.intensity and data.rotation need clips; of cached latents they are options of encode")
    sources = [LatentDataset(source.path, labels) for source in data.sources]
    wanted = {"latent channels": model.vae.latent_channels, "pixels per latent": model.vae.downscale}
    first = sources[0].recipe
    for source in sources:
        recipe = source.recipe
        found = {"latent channels": recipe.vae.latent_channels, "pixels per latent": recipe.vae.downscale}
        for name in wanted:
            if found[name] != wanted[name]:
                raise InputError(
                    f"{source.path} has {found[name]} {name}, but the model's VAE {wanted[name]}; "
                    "encode the clips with that VAE"
                )
        for name in ("weights", "size", "environment_size"):
            ours, theirs = getattr(recipe, name), getattr(first, name)
            if ours != theirs and not (name == "environment_size" and objective == "inverse"):
                what = "another VAE" if name == "weights" else f"another {name} ({ours} and {theirs})"
                raise InputError(f"{source.path} was encoded with {what} than {sources[0].path}; encode both alike")
    return sources


# ---- Commands ----
