"""Periodic evaluation: sample held-out clips with the EMA weights, through the real renderer.

Metrics go to metrics.jsonl. A picture per evaluation has a row per clip and image kind: input, prediction and ground
truth of the middle frame.
"""

from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.experimental import multihost_utils
from jaxtyping import Array

from drender.data.clips import LabeledClip, open_clips
from drender.data.latent_cache import is_latent_cache, read_manifest
from drender.data.loader import row_labels
from drender.errors import InputError
from drender.metrics import image
from drender.models import lora
from drender.models.params import unflatten
from drender.models.registry import NETWORKS
from drender.renderers.base import Renderer
from drender.renderers.forward import ForwardRenderer
from drender.renderers.inverse import InverseRenderer
from drender.training.config import TrainConfig
from drender.training.losses import LossContext, decode_light
from drender.training.run_dir import RunFolder

# (image kind, input, prediction, ground truth), each [f, h, w, 3]
Comparison = tuple[str, np.ndarray, np.ndarray, np.ndarray]


class Evaluation:
    """The evaluation of a run; it does nothing without `evaluation.path`.

    Raises:
      InputError: there are no clips, or a clip lacks an image kind or is too short, or images are too small.
    """

    def __init__(self, config: TrainConfig, context: LossContext, run: RunFolder):
        self.config, self.context, self.folder = config, context, run
        self.clips: list[LabeledClip] = []
        self._renderer: Renderer | None = None
        self.labels = row_labels(config.data, config.objective, context.config)
        # A model that trains on cached latents is evaluated at their size.
        first = config.data.sources[0].path
        self.size = read_manifest(first).size if is_latent_cache(first) else config.data.size or context.config.size
        if config.evaluation.path is not None:
            self.clips = open_clips(config.evaluation.path, self.labels)[: config.evaluation.clips]
            self._check_clips()

    def _check_clips(self) -> None:
        compared = self.context.config.environment_size if self.config.objective == "environment" else self.size
        if min(compared) < image.WINDOW:
            raise InputError(
                f"evaluation.path: metrics need sides of {image.WINDOW} pixels or more, got {compared[0]} "
                f"{compared[1]}; use larger images, or set evaluation.path to null"
            )
        for clip in self.clips:
            if not clip.windows(self.config.data.frames):
                raise InputError(
                    f"evaluation.path {self.config.evaluation.path}: clip {clip.name!r} is shorter than "
                    f"data.frames {self.config.data.frames}; give longer clips"
                )

    def due(self, step: int) -> bool:
        """Whether to evaluate after this step."""
        return bool(self.clips) and (step % self.config.evaluation.every == 0 or step == self.config.optimizer.steps)

    def run(self, step: int, weights: Mapping[str, Array]) -> dict[str, float]:
        """Evaluate the parameters of all components, given by dotted name, and log and return the mean metrics.

        This uses one device of the first process. The other processes only contribute their shards of the weights.
        """
        if jax.process_count() > 1:
            weights = multihost_utils.process_allgather(dict(weights), tiled=True)
        if jax.process_index():
            return {}
        params = self._on_one_device(weights)
        comparisons = [comparison for clip in self.clips for comparison in self._compare(params, clip)]
        values: dict[str, list[float]] = {}
        for label, _, predicted, truth in comparisons:
            for name, value in image.evaluate(label, predicted, truth).items():
                values.setdefault(f"evaluation/{label}/{name}", []).append(value)
        means = {name: float(np.mean(scores)) for name, scores in values.items()}
        _print_table(step, means)
        self.folder.log(step, means)
        self.folder.draw(step, draw_comparisons(comparisons))
        return means

    def _on_one_device(self, weights: Mapping[str, Array]) -> dict:
        """Return the parameters per component in the compute dtype, with LoRA merged into the UNet."""
        device, dtype = jax.local_devices()[0], self.config.dtype
        params = unflatten({name: jax.device_put(np.asarray(x), device).astype(dtype) for name, x in weights.items()})
        if "lora" in params:
            params["unet"] = lora.merge(params["unet"], params["lora"], self.config.evaluation.lora_scale)
        return params

    def _compare(self, params: dict, clip: LabeledClip) -> Iterator[Comparison]:
        """Predict the first frames of a clip and yield them beside the ground truth."""
        config, model = self.config, self.context.config
        (window, *_) = clip.windows(config.data.frames)
        frames = slice(window.start, window.start + config.data.frames)
        images = clip.images(self.labels, frames, self.size, model.environment_size)
        batch = {label: np.ascontiguousarray(frames)[None] for label, frames in images.items()}
        options = {"num_steps": config.evaluation.num_steps, "progress": False}
        if config.objective == "inverse":
            buffers = self._with_params(InverseRenderer, params)(batch["rgb"], config.data.passes, **options)
            for label, predicted in buffers.items():
                yield label, images["rgb"], predicted[0], images[label]
        elif config.objective == "forward":
            predicted = self._with_params(ForwardRenderer, params)(batch, batch, **options)
            yield "rgb", images[model.conditions[0]], predicted[0], images["rgb"]
        elif config.objective == "vae":
            renderer = self._with_params(Renderer, params)
            for label, frames in images.items():
                latents = renderer.encode_images(frames)[None] * model.vae.scaling_factor
                yield label, frames, next(renderer.decode_latents(latents, config.data.frames))[0], frames
        else:
            renderer = self._with_params(Renderer, {"vae": params["vae"]})
            light = np.concatenate(list(images.values()))
            latents = rearrange(renderer.encode_images(light), "(e f) h w c -> 1 e f h w c", e=len(images))
            decoded = decode_light(self.context, params, latents * model.vae.scaling_factor)
            for label, part in zip(("env_ldr", "env_log"), jnp.split(decoded, 2, axis=-1), strict=True):
                predicted = next(renderer.decode_latents(part, config.data.frames))[0]
                yield label, images["env_nrm"], predicted, images[label]

    def _with_params(self, kind: type[Renderer], params: dict) -> Renderer:
        """Return the renderer with these parameters. All evaluations share one, so that it compiles once."""
        if self._renderer is None:
            self._renderer = kind(self.context.config, {name: params[name] for name in NETWORKS if name in params})
        self._renderer.params = params
        return self._renderer


def _print_table(step: int, means: Mapping[str, float]) -> None:
    """Print a line per image kind."""
    rows: dict[str, list[str]] = {}
    for name, value in means.items():
        _, label, metric = name.split("/")
        rows.setdefault(label, []).append(f"{metric} {value:.4g}")
    print(f"evaluation after step {step}")
    for label, cells in rows.items():
        print("  ".join([f"  {label:10}", *cells]), flush=True)


def draw_comparisons(comparisons: list[Comparison]) -> np.ndarray:
    """Return the middle frames of input, prediction and ground truth side by side, a row per comparison."""

    def middle(frames: np.ndarray) -> np.ndarray:
        return frames[len(frames) // 2]

    return np.concatenate([np.concatenate([middle(frames) for frames in row[1:]], axis=1) for row in comparisons])
