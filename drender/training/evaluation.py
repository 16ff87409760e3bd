"""Periodic evaluation with the EMA weights: the validation loss, and samples of held-out clips by the real renderer.

Metrics go to metrics.jsonl. A picture per evaluation has a row per clip and image kind: input, prediction and ground
truth of the middle frame, under their names.
"""

from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.experimental import multihost_utils
from jaxtyping import Array, Float32
from PIL import Image, ImageDraw

from drender.config import ENVIRONMENT_LABELS
from drender.data.clips import VALID, LabeledClip, open_clips
from drender.data.latent_cache import is_latent_cache, read_manifest
from drender.data.loader import optional_labels, row_labels
from drender.errors import InputError, unknown_name_error
from drender.metrics import image
from drender.metrics.compare import table
from drender.models import lora
from drender.models.params import unflatten
from drender.models.registry import NETWORKS
from drender.renderers.base import Renderer
from drender.renderers.forward import ForwardRenderer
from drender.renderers.inverse import InverseRenderer
from drender.renderers.windows import concat_frames
from drender.training.config import TrainConfig
from drender.training.losses import LossSetup, decode_light
from drender.training.run_dir import RunFolder, failure_as_warning
from drender.training.validation import ValidationLoss

# (image kind, input, prediction, ground truth), each [f, h, w, 3]
Comparison = tuple[str, np.ndarray, np.ndarray, np.ndarray]
# Images on the picture are enlarged to at least this height in pixels, so that their captions fit.
MIN_HEIGHT, CAPTION_HEIGHT = 64, 14


class Evaluation:
    """The evaluation of a run; it does nothing without `evaluation.path`.

    Raises:
      InputError: there are no clips, or a clip lacks an image kind or is too short, or images are too small.
    """

    def __init__(self, config: TrainConfig, setup: LossSetup, run: RunFolder):
        self.config, self.setup, self.folder = config, setup, run
        self.clips: list[LabeledClip] = []
        self._renderer: Renderer | None = None
        self.validation = ValidationLoss(config, setup)
        self.labels = row_labels(config.data, config.objective, setup.config)
        # A model that trains on cached latents is evaluated at their size.
        first = config.data.sources[0].path
        self.size = read_manifest(first).size if is_latent_cache(first) else config.data.size or setup.config.size
        if config.evaluation.path is not None:
            self._open(config.evaluation.path)
            if config.keep_best is not None:
                self._check_best()

    def _open(self, path: str) -> None:
        if is_latent_cache(path):
            raise InputError(f"evaluation.path {path}: holds cached latents; give their clips")
        config = self.config
        optional = optional_labels(config.data, config.objective)
        required = [label for label in self.labels if label not in optional]
        self.clips = open_clips(path, required, optional)[: config.evaluation.clips]
        compared = self.setup.config.environment_size if config.objective == "environment" else self.size
        if min(compared) < image.WINDOW:
            problem = f"metrics need sides of {image.WINDOW} pixels or more, got {compared[0]} {compared[1]}"
            raise InputError(f"evaluation.path: {problem}; use larger images, or set evaluation.path to null")
        for clip in self.clips:
            problem = None
            if config.objective == "inverse" and not set(config.data.passes) & set(clip.labels):
                problem = "has none of data.passes; add its files, or give other clips"
            elif clip.longest < config.data.frames:
                problem = f"is shorter than data.frames {config.data.frames}; give longer clips"
            if problem:
                raise InputError(f"evaluation.path {path}: clip {clip.name!r} {problem}")

    def _check_best(self) -> None:
        """Raise InputError if `keep_best` is no metric of these clips."""
        frames = np.zeros((1, image.WINDOW, image.WINDOW, 3), np.float32)
        kinds = {"environment": ("env_ldr", "env_log"), "forward": ("rgb",)}.get(self.config.objective, self.labels)
        names = [f"{kind}/{metric}" for kind in kinds for metric in image.evaluate(kind, frames, frames)]
        known = {f"evaluation/{name}" for name in [*names, *self.validation.names()]}
        if self.config.keep_best not in known:
            raise unknown_name_error("metric in keep_best", self.config.keep_best, known)

    def due(self, step: int) -> bool:
        """Whether to evaluate after this step."""
        return bool(self.clips) and (step % self.config.evaluation.every == 0 or step == self.config.optimizer.steps)

    def run(self, step: int, weights: Mapping[str, Array]) -> None:
        """Evaluate the parameters of all components, given by dotted name, and log the mean metrics.

        This uses one device of the first process. The other processes only contribute their shards of the weights.
        """
        if jax.process_count() > 1:
            weights = multihost_utils.process_allgather(dict(weights), tiled=True)
        if jax.process_index():
            return
        params = self._on_one_device(weights)
        comparisons: list[Comparison] = []
        values: dict[str, list[float]] = {}
        for index, clip in enumerate(self.clips):
            images = self._read(clip)
            mask = images[VALID][..., 0] > 0.5 if VALID in images else None
            scores: list[tuple[str, float]] = []
            for label, shown, predicted, truth in self._compare(params, images):
                metrics = image.evaluate(label, predicted, truth, mask)
                scores += [(f"{label}/{name}", value) for name, value in metrics.items()]
                comparisons.append((f"{clip.name}: {label}", shown, predicted, truth))
            scores += self.validation.scores(params, images, self._renderer.encode_images, index)
            for name, value in scores:
                values.setdefault(f"evaluation/{name}", []).append(value)
        means = {name: float(np.mean(scores)) for name, scores in values.items()}
        _print_table(step, means)
        self.folder.log(step, means)
        with failure_as_warning("the picture of the evaluation"):
            self.folder.draw(step, draw_comparisons(comparisons))

    def _on_one_device(self, weights: Mapping[str, Array]) -> dict:
        """Return the parameters per component in the compute dtype, with LoRA merged into the UNet."""
        device, dtype = jax.local_devices()[0], self.config.dtype
        params = unflatten({name: jax.device_put(np.asarray(x), device).astype(dtype) for name, x in weights.items()})
        if "lora" in params:
            params["unet"] = lora.merge(params["unet"], params["lora"], self.config.evaluation.lora_scale)
        return params

    def _read(self, clip: LabeledClip) -> dict[str, np.ndarray]:
        """Return the first frames of a clip, by label, with its mask if it has one."""
        (window, *_) = clip.windows(self.config.data.frames)
        frames = slice(window.start, window.start + self.config.data.frames)
        labels = [label for label in self.labels if label in (*clip.labels, *ENVIRONMENT_LABELS)]
        if self.config.objective in ("inverse", "forward") and clip.masked(labels):
            labels.append(VALID)
        return clip.images(labels, frames, self.size, self.setup.config.environment_size)

    def _compare(self, params: dict, images: Mapping[str, np.ndarray]) -> Iterator[Comparison]:
        """Predict the frames of a clip and yield them beside the ground truth."""
        config, model = self.config, self.setup.config
        batch = {label: np.ascontiguousarray(frames)[None] for label, frames in images.items()}
        options = {"num_steps": None if model.deterministic else config.evaluation.num_steps, "progress": False}
        if config.objective == "inverse":
            passes = [label for label in dict.fromkeys(config.data.passes) if label in images]
            buffers = self._with_params(InverseRenderer, params)(batch["rgb"], passes, **options)
            for label, predicted in buffers.items():
                yield label, images["rgb"], predicted[0], images[label]
        elif config.objective == "forward":
            predicted = self._with_params(ForwardRenderer, params)(batch, batch, **options)
            yield "rgb", images[model.conditions[0]], predicted[0], images["rgb"]
        elif config.objective == "vae":
            renderer = self._with_params(Renderer, params)
            for label, frames in images.items():
                latents = renderer.encode_images(frames)[None] * model.vae.scaling_factor
                yield label, frames, concat_frames(renderer.decode_latents(latents, config.data.frames))[0], frames
        else:
            renderer = self._with_params(Renderer, {"vae": params["vae"]})
            light = np.concatenate(list(images.values()))
            latents = rearrange(renderer.encode_images(light), "(e f) h w c -> 1 e f h w c", e=len(images))
            decoded = decode_light(self.setup, params, jnp.asarray(latents) * model.vae.scaling_factor)
            for label, part in zip(("env_ldr", "env_log"), jnp.split(decoded, 2, axis=-1), strict=True):
                predicted = concat_frames(renderer.decode_latents(part, config.data.frames))[0]
                yield label, images["env_nrm"], predicted, images[label]

    def _with_params(self, kind: type[Renderer], params: dict) -> Renderer:
        """Return the renderer with these parameters. All evaluations share one, so that it compiles once."""
        if self._renderer is None:
            self._renderer = kind(self.setup.config, {name: params[name] for name in NETWORKS if name in params})
        self._renderer.params = params
        return self._renderer


def _print_table(step: int, means: Mapping[str, float]) -> None:
    """Print a line per image kind."""
    rows: dict[str, dict[str, float]] = {}
    for name, value in means.items():
        _, label, metric = name.split("/")
        rows.setdefault(label, {})[metric] = value
    print(f"evaluation after step {step}\n{table(rows)}", flush=True)


def draw_comparisons(comparisons: list[Comparison]) -> np.ndarray:
    """Return the middle frames of input, prediction and ground truth side by side, a row per comparison.

    Above each row is its caption; the columns are named above all.
    """
    rows = []
    for caption, *clips in comparisons:
        frames = [clip[len(clip) // 2] for clip in clips]
        factor = max(1, -(-MIN_HEIGHT // len(frames[0])))
        row = np.concatenate([x.repeat(factor, axis=0).repeat(factor, axis=1) for x in frames], axis=1)
        if not rows:
            names = ("input", "prediction", "truth")
            rows.append(np.concatenate([_caption(name, row.shape[1] // 3) for name in names], axis=1))
        rows += [_caption(caption, row.shape[1]), row]
    return np.concatenate(rows)


def _caption(text: str, width: int) -> Float32[np.ndarray, "h w 3"]:
    """Return a strip of white text on black."""
    strip = Image.new("RGB", (width, CAPTION_HEIGHT))
    ImageDraw.Draw(strip).text((2, 1), text, fill="white")
    return np.asarray(strip, np.float32) / 255
