"""TODO."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from drender.config import RendererConfig, Sampling
from drender.errors import InputError, unknown_name_error
from drender.renderers.base import Renderer
from drender.renderers.inverse import _bar
from drender.renderers.windows import WindowedLatents, whole

# The forward renderer's, unless it predicts in one step or is told another.
GUIDANCE = (1.2, 1.2)


class ForwardRenderer(Renderer):
    """G-buffers and an environment to an RGB clip."""

    kind = "forward"

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        dtype: str | None = None,
        device: jax.Device | Sequence[jax.Device] | None = None,
        lora_scale: float = 0.25,
    ) -> "ForwardRenderer":
        """As `Renderer.load`.

        lora_scale: how much to merge of the factors trained on real footage, where the checkpoint has them: 0.25 suits
          real footage, 0 synthetic objects.
        """
        return super().load(path, dtype, device, lora_scale)

    @property
    def environment_size(self) -> tuple[int, int]:
        """Height and width of the environment maps that suit the model."""
        return self.config.environment_size

    def __call__(
        self,
        buffers: Mapping[str, Float[np.ndarray, "b f h w 3"]],
        environment: Mapping[str, Float[np.ndarray | Array, "*b F H W 3"]],
        *,
        drop: Iterable[str] = (),
        noise: Float[np.ndarray, "b f h8 w8 c"] | None = None,
        progress: bool = True,
        **sampling,
    ) -> Float[np.ndarray, "b f h w 3"]:
        """Renders the G-buffers under the environment.

        Args:
          buffers: the model's conditions (basecolor, normal, depth, roughness, metallic) in [0, 1]; others are ignored.
          environment: "env_ldr", "env_log" and "env_nrm" of `environment_maps`, for all clips or one per clip, with as
            many frames as the G-buffers or one for all.
          drop: conditions to leave out, by name, or "environment"; what is dropped need not be given.
          noise, progress, **sampling: as for `InverseRenderer`; guidance is (1.2, 1.2) unless given, and none
            for a model that predicts in one step.
        Returns:
          float32 sRGB in [0, 1].
        Raises:
          InputError: a missing condition, an unknown name or option, or arrays of the wrong shape or type.
        """
        sampling = self.sampling(sampling, guidance=GUIDANCE)
        drop = set(drop)
        images, shape = self._check_buffers(buffers, drop)
        down = self.config.vae.downscale
        noise = self.initial_noise(noise, sampling.seed, (*shape[:2], shape[2] // down, shape[3] // down))
        latents = {}
        if images:
            encoded = self.encode(np.concatenate(list(images.values())), sampling)
            latents = dict(zip(images, np.split(encoded, len(images)), strict=True))
        light = None
        if "environment" not in drop:
            light = self.encode_environment(self._check_environment(environment, shape))
        return whole(self.decode(self.render(latents, light, sampling, noise, progress), sampling))

    def encode_environment(
        self, environment: Mapping[str, Float[np.ndarray | Array, "*b f H W 3"]]
    ) -> Float[np.ndarray, "b f h w c"]:
        """What the environment encoder takes, of checked maps: their scaled latents, or pixels in [-1, 1]."""
        encoder = self.config.env_encoder
        maps = np.stack([np.asarray(environment[label]) for label in encoder.in_labels])
        maps = maps if maps.ndim == 6 else maps[:, None]
        b = maps.shape[1]
        flat = rearrange(maps, "i b f h w c -> (b f i) h w c")
        if encoder.latent_encoder:
            flat = self.encode_images(flat) * np.float32(self.config.vae.scaling_factor)
        else:
            flat = flat * 2 - 1
        return rearrange(flat, "(b f i) h w c -> b f h w (i c)", b=b, i=len(encoder.in_labels))

    def render(
        self,
        latents: Mapping[str, Float[np.ndarray, "b f h8 w8 c"]],
        light: Float[np.ndarray, "b2 f2 H8 W8 d"] | None,
        sampling: Sampling,
        noise: Float[np.ndarray, "b f h8 w8 c"],
        progress: bool = True,
    ) -> WindowedLatents:
        """The scaled latents of the clip.

        Args:
          latents: of the conditions, from `encode`; zeros stand for those left out.
          light: from `encode_environment`, for all clips or one per clip, with as many frames as the clip or one for
            all; None: no light.
        """
        zeros = np.zeros_like(noise)
        conditions = np.concatenate([latents.get(name, zeros) for name in self.config.conditions], axis=-1)
        b, f = noise.shape[:2]
        with _bar(self.network_calls(f, sampling), progress) as bar:
            return self.denoise(noise, conditions, self._tokens(light, b), None, sampling, bar)

    def _tokens(self, light: np.ndarray | None, b: int) -> Callable[[slice], list[Float[Array, "b f n e"]]]:
        """The environment encoder's tokens per level, of the frames of a window; of one frame where all are lit alike.

        A single zero where there is no light: attention over any number of zeros is attention over one.
        """
        if light is None:
            dark = [jnp.zeros((b, 1, 1, e)) for e in self.config.env_encoder.channels]
            return lambda window: dark
        light = np.broadcast_to(light, (b, *light.shape[1:]))
        still = light.shape[1] == 1

        # One window's are kept: all there are of a short clip. Those of a long one would not fit.
        @functools.lru_cache(maxsize=1)
        def encoded(start: int, stop: int) -> list[Array]:
            return self._shared(self._encode_light, "env_encoder", light[:, start:stop])

        return lambda window: encoded(0, 1) if still else encoded(window.start, window.stop)

    def _check_buffers(self, buffers: Mapping, drop: set[str]) -> tuple[dict[str, np.ndarray], tuple[int, ...]]:
        """The conditions that are used, and the shape that all have."""
        used = used_conditions(self.config, drop)
        if missing := [name for name in used if name not in buffers]:
            raise InputError(f"the G-buffers lack {', '.join(missing)}; give them, or leave them out with drop")
        if not buffers:
            raise InputError("no G-buffer is given: the clip's length and size are unknown")
        shape = np.shape(next(iter(buffers.values())))
        return {name: self.check_images(name, buffers[name], shape) for name in used}, shape

    def _check_environment(self, environment: Mapping, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """The maps that the model takes, `b2 f2 H W 3`, of one frame each where all frames are lit alike."""
        b, f = shape[:2]
        maps = {}
        for label in self.config.env_encoder.in_labels:
            if label not in environment:
                raise InputError(f"the environment lacks {label!r}; it has {', '.join(sorted(environment))}")
            images = np.asarray(environment[label])
            images = self.check_images(label, images if images.ndim == 5 else images[None])
            if images.shape[0] not in (1, b) or images.shape[1] not in (1, f):
                raise InputError(f"{label} has shape {images.shape}, but the G-buffers are {b} clips of {f} frames")
            if (images == images[:, :1]).all():
                images = images[:, :1]
            maps[label] = images
        clips, frames = (max(images.shape[axis] for images in maps.values()) for axis in (0, 1))
        return {label: np.broadcast_to(images, (clips, frames, *images.shape[2:])) for label, images in maps.items()}


def used_conditions(config: RendererConfig, drop: Iterable[str]) -> list[str]:
    """The model's conditions without those to `drop`, which may name the environment too; InputError for others."""
    for name in drop:
        if name not in (*config.conditions, "environment"):
            raise unknown_name_error("condition to drop", name, [*config.conditions, "environment"])
    return [name for name in config.conditions if name not in drop]
