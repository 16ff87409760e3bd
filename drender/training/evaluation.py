"""Now and then during training: the averaged weights meet clips that are not trained on, through the real renderer.

The numbers go to the run's metrics. A picture per evaluation has a row for every clip and image kind: input, prediction
and truth of the middle frame.
"""

from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.experimental import multihost_utils
from jaxtyping import Array

from drender.data.clips import LabeledClip, open_clips
from drender.data.latent_cache import is_set, read_recipe
from drender.errors import InputError
from drender.metrics import image
from drender.models import lora
from drender.models.params import unflatten
from drender.models.registry import NETWORKS
from drender.renderers.base import Renderer
from drender.renderers.forward import ForwardRenderer
from drender.renderers.inverse import InverseRenderer
from drender.training.config import TrainConfig
from drender.training.losses import LossContext, decoded_light
from drender.training.run_dir import RunFolder

# (image kind, input, prediction, truth), each [f, h, w, 3]
Comparison = tuple[str, np.ndarray, np.ndarray, np.ndarray]


class Evaluation:
    """What is evaluated, and when; nothing where the configuration names no clips.

    Raises:
      InputError: no clips there, one without an image that is needed, or one that is too short.
    """

    def __init__(self, config: TrainConfig, model: LossContext, run: RunFolder):
        self.config, self.model, self.folder = config, model, run
        self.clips: list[LabeledClip] = []
        self._renderer: Renderer | None = None
        light = model.config.env_encoder.in_labels if model.config.env_encoder else ()
        self.labels = {
            "inverse": ("rgb", *config.data.passes),
            "forward": ("rgb", *model.config.conditions, *light),
            "environment": light,
            "vae": ("rgb", *config.data.passes),
        }[config.objective]
        # What is learnt from cached latents has their size.
        of_latents = [read_recipe(source.path).size for source in config.data.sources[:1] if is_set(source.path)]
        self.size = of_latents[0] if of_latents else config.data.size
        if config.evaluation.path is not None:
            self.clips = open_clips(config.evaluation.path, self.labels)[: config.evaluation.clips]
            compared = model.config.environment_size if config.objective == "environment" else self.size
            if min(compared) < image.WINDOW:
                raise InputError(
                    f"evaluation.path: images of {compared[0]} {compared[1]} pixels are too small to compare; "
                    f"sides of {image.WINDOW} or more are needed, or evaluation.path null"
                )
        for clip in self.clips:
            if not clip.windows(config.data.frames):
                raise InputError(
                    f"evaluation.path {config.evaluation.path}: clip {clip.name!r} is shorter than "
                    f"data.frames {config.data.frames}; give longer clips"
                )

    def due(self, step: int) -> bool:
        return bool(self.clips) and (step % self.config.evaluation.every == 0 or step == self.config.optimizer.steps)

    def run(self, step: int, weights: Mapping[str, Array]) -> dict[str, float]:
        """Compares what these weights (of all components, by dotted name) make of the clips with what is true.

        On one device of the first process; the others only hand over their part of the weights.
        """
        if jax.process_count() > 1:
            weights = multihost_utils.process_allgather(dict(weights), tiled=True)
        if jax.process_index():
            return {}
        device = jax.local_devices()[0]
        place = lambda x: jax.device_put(np.asarray(x), device).astype(self.config.dtype)
        params = unflatten({name: place(x) for name, x in weights.items()})
        if "lora" in params:
            params["unet"] = lora.merge(params["unet"], params["lora"], self.config.evaluation.lora_scale)
        comparisons = [comparison for clip in self.clips for comparison in self._compare(params, clip)]
        scores: dict[str, list[float]] = {}
        for label, _, predicted, truth in comparisons:
            for name, value in image.evaluate(label, predicted, truth).items():
                scores.setdefault(f"evaluation/{label}/{name}", []).append(value)
        means = {name: float(np.mean(values)) for name, values in scores.items()}
        print(f"evaluation after step {step}")
        for label in dict.fromkeys(comparison[0] for comparison in comparisons):
            of_label = {name.rpartition("/")[2]: value for name, value in means.items() if f"/{label}/" in name}
            print(
                "  ".join([f"  {label:10}", *(f"{name} {value:.4g}" for name, value in of_label.items())]), flush=True
            )
        self.folder.log(step, means)
        self.folder.draw(step, picture(comparisons))
        return means

    def _compare(self, params: dict, clip: LabeledClip) -> Iterator[Comparison]:
        """The clip's first frames as the model predicts them."""
        config, model = self.config, self.model.config
        (window, *_) = clip.windows(config.data.frames)
        frames = slice(window.start, window.start + config.data.frames)
        images = clip.images(self.labels, frames, self.size, model.environment_size)
        batch = {label: np.ascontiguousarray(frames)[None] for label, frames in images.items()}
        options = {"num_steps": config.evaluation.num_steps, "progress": False}
        if config.objective == "inverse":
            buffers = self._rendering(InverseRenderer, params)(batch["rgb"], config.data.passes, **options)
            for label, predicted in buffers.items():
                yield label, images["rgb"], predicted[0], images[label]
        elif config.objective == "forward":
            predicted = self._rendering(ForwardRenderer, params)(batch, batch, **options)
            yield "rgb", images[model.conditions[0]], predicted[0], images["rgb"]
        elif config.objective == "vae":
            renderer = self._rendering(Renderer, params)
            for label, frames in images.items():
                latents = renderer.encode_images(frames)[None] * model.vae.scaling_factor
                yield label, frames, next(renderer.decode_latents(latents, config.data.frames))[0], frames
        else:
            renderer = self._rendering(Renderer, {"vae": params["vae"]})
            light = np.concatenate(list(images.values()))
            latents = rearrange(renderer.encode_images(light), "(e f) h w c -> 1 e f h w c", e=len(images))
            decoded = decoded_light(self.model, params, latents * model.vae.scaling_factor)
            for label, part in zip(("env_ldr", "env_log"), jnp.split(decoded, 2, axis=-1), strict=True):
                yield (
                    label,
                    images["env_nrm"],
                    next(renderer.decode_latents(part, config.data.frames))[0],
                    images[label],
                )

    def _rendering(self, kind: type[Renderer], params: dict) -> Renderer:
        """The renderer with these parameters: one for all evaluations, so that it is compiled once."""
        if self._renderer is None:
            self._renderer = kind(self.model.config, {name: params[name] for name in NETWORKS if name in params})
        self._renderer.params = params
        return self._renderer


def picture(comparisons: list[Comparison]) -> np.ndarray:
    """The middle frames of input, prediction and truth side by side, a row for each comparison."""
    middle = lambda frames: frames[len(frames) // 2]
    return np.concatenate([np.concatenate([middle(frames) for frames in row[1:]], axis=1) for row in comparisons])
