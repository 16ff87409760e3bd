"""The validation loss: the training loss of held-out rows, without dropout and augmentation, at fixed noise levels.

Its noise is fixed too, so that its curve shows the weights alone and compares between runs of one objective.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from drender.config import ENVIRONMENT_LABELS
from drender.data.clips import VALID, latent_mask
from drender.data.loader import make_row
from drender.training.config import TrainConfig
from drender.training.losses import OBJECTIVES, Batch, LossSetup

Images = Mapping[str, Float32[np.ndarray, "f _h _w _c"]]


class ValidationLoss:
    """The validation loss of a run.

    Attributes:
      levels: the noise levels σ; one without meaning, 1, for objectives without noise.
    """

    def __init__(self, config: TrainConfig, setup: LossSetup):
        self.config, self.model = config, setup.config
        self.levels = config.evaluation.sigmas
        self.has_noise = config.objective in ("inverse", "forward")
        if self.levels and not self.has_noise:
            self.levels = (1.0,)
        elif self.levels and config.loss.one_step:
            self.levels = (self.model.scheduler.sigma_max,)
        plain = {"consistency": 0.0, "condition_dropout": 0.0, "all_dropout": 0.0, "condition_noise": None}
        loss = dataclasses.replace(setup.loss, **plain)
        # Rows come as latents, one at a time on one device.
        setup = dataclasses.replace(setup, loss=loss, latent=True, remat=False, mesh=None)
        objective = OBJECTIVES[config.objective].loss
        self._loss = jax.jit(lambda params, batch, key: objective(setup, params, batch, key)[1]["loss"])

    def names(self) -> list[str]:
        """Return the names of the values that `scores` may yield."""
        buffers = dict.fromkeys(self.config.data.passes if self.config.objective == "inverse" else ())
        levels = [f"loss/sigma_{level:g}" for level in self.levels if self.has_noise]
        return ["loss/mean", *(f"{buffer}/loss" for buffer in buffers), *levels] if self.levels else []

    def scores(self, params: dict, images: Images, encode: Callable, index: int) -> Iterator[tuple[str, float]]:
        """Yield (name, loss) of the rows of a clip.

        Args:
          params: per component, LoRA merged.
          images: of all labels, in [0, 1].
          encode: images `[f, h, w, 3]` to unscaled latents.
          index: of the clip, the seed of its noise.
        """
        for row, (label, batch) in enumerate(self._rows(images, encode) if self.levels else ()):
            for number, level in enumerate(self.levels):
                key = jax.random.fold_in(jax.random.fold_in(jax.random.key(index), row), number)
                loss = float(self._loss(params, batch | {"sigma": jnp.full((1,), level, jnp.float32)}, key))
                yield "loss/mean", loss
                if label:
                    yield f"{label}/loss", loss
                if self.has_noise:
                    yield f"loss/sigma_{level:g}", loss

    def _rows(self, images: Images, encode: Callable) -> Iterator[tuple[str | None, Batch]]:
        """Yield (label of the G-buffer if the row has one, batch of one row)."""
        objective, encoder = self.config.objective, self.model.env_encoder
        if objective != "vae":
            # An encoder of pixels takes the environment images as they are.
            keeps = (VALID,) if encoder and encoder.latent_encoder else (VALID, *ENVIRONMENT_LABELS)
            images = {label: x if label in keeps else encode(x) for label, x in images.items()}
            if VALID in images:
                images[VALID] = latent_mask(images[VALID], self.model.vae.downscale)
        passes = [label for label in dict.fromkeys(self.config.data.passes) if label in images]
        for kind in {"inverse": passes, "vae": images}.get(objective, [None]):
            row = make_row(objective, self.model, images, kind)
            yield kind if objective == "inverse" else None, {name: np.asarray(x)[None] for name, x in row.items()}
