"""The two renderers: `InverseRenderer` maps an RGB clip to one G-buffer per pass, `ForwardRenderer` G-buffers and an
environment to an RGB clip (Liang et al. 2025, sections 4.1 and 4.2).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float
from tqdm import tqdm

from .config import DEFAULT_PASSES, RendererConfig, Sampling
from .errors import InputError, unknown
from .stages import Renderer, in_runs


class InverseRenderer(Renderer):
    """RGB clip to G-buffers."""

    kind = "inverse"

    def __call__(
        self,
        rgb: Float[np.ndarray, "b f h w 3"],
        passes: Sequence[str] = DEFAULT_PASSES,
        *,
        noise: Float[np.ndarray, "b f h8 w8 c"] | None = None,
        progress: bool = True,
        **sampling,
    ) -> dict[str, Float[np.ndarray, "b f h w 3"]]:
        """Estimates one G-buffer per pass; the RGB clip is encoded once for all.

        Args:
          rgb: sRGB in [0, 1]; sides a multiple of 8 (the released pipeline: of 64). A single image has f = 1.
          passes: names of `config.domains`.
          noise: unit Gaussian to begin from, instead of the seed's.
          progress: shows a bar on a terminal.
          **sampling: fields of `config.Sampling`: num_steps, guidance, seed and so on.
        Returns:
          per pass, float32 images in [0, 1]; the README states the conventions of normals and depth.
        Raises:
          InputError: an unknown pass or option, or arrays of the wrong shape or type.
        """
        sampling = self.sampling(sampling)
        rgb = self.check_images("rgb", rgb)
        passes = chosen_passes(self.config, passes)
        noise = self.initial_noise(noise, sampling.seed, rgb.shape)
        b, f = rgb.shape[:2]
        pixels = rearrange(_augment(rgb, sampling), "b f h w c -> (b f) h w c")
        latents = rearrange(self.encode_images(pixels), "(b f) h w c -> b f h w c", f=f)
        if self.config.scale_cond_latents:
            latents = latents * self.config.vae.scaling_factor
        context = jnp.zeros((b, 1, 1, self.config.unet.cross_attention_dim[-1]))

        buffers = {}
        with _bar(len(passes) * sampling.num_steps, progress) as bar:
            for name in passes:
                bar.set_description(name)
                domain = jnp.full((b,), self.config.domains[name])
                result = self.denoise(noise, latents, context, domain, sampling, bar)
                buffers[name] = self.decode_latents(result, sampling.decode_chunk_size)
        return buffers


class ForwardRenderer(Renderer):
    """G-buffers and an environment to an RGB clip."""

    kind = "forward"

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        dtype: str | None = None,
        device: jax.Device | None = None,
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
        sampling = self.sampling(sampling, guidance=(1.2, 1.2))
        drop = set(drop)
        images, shape = self._check_buffers(buffers, drop)
        noise = self.initial_noise(noise, sampling.seed, shape)
        conditions = self._encode_conditions(images, noise.shape, sampling)
        context = self._encode_environment({} if "environment" in drop else environment, shape)
        with _bar(sampling.num_steps, progress) as bar:
            latents = self.denoise(noise, conditions, context, None, sampling, bar)
        return self.decode_latents(latents, sampling.decode_chunk_size)

    def _check_buffers(self, buffers: Mapping, drop: set[str]) -> tuple[dict[str, np.ndarray], tuple[int, ...]]:
        """The conditions that are used, and the shape that all have."""
        used = used_conditions(self.config, drop)
        if missing := [name for name in used if name not in buffers]:
            raise InputError(f"the G-buffers lack {', '.join(missing)}; give them, or leave them out with drop")
        if not buffers:
            raise InputError("no G-buffer is given: the clip's length and size are unknown")
        shape = np.shape(next(iter(buffers.values())))
        return {name: self.check_images(name, buffers[name], shape) for name in used}, shape

    def _encode_conditions(self, images: dict, shape: tuple[int, ...], sampling: Sampling) -> Float[Array, "b f h w d"]:
        """The conditions' latents of `shape`, concatenated in channels; zeros for those left out."""
        b, f = shape[:2]
        latents = {}
        if images:
            pixels = _augment(np.stack(list(images.values())), sampling)
            encoded = self.encode_images(rearrange(pixels, "i b f h w c -> (i b f) h w c"))
            if self.config.scale_cond_latents:
                encoded = encoded * self.config.vae.scaling_factor
            latents = dict(zip(images, rearrange(encoded, "(i b f) h w c -> i b f h w c", b=b, f=f), strict=True))
        return jnp.concatenate([latents.get(name, jnp.zeros(shape)) for name in self.config.conditions], axis=-1)

    def _encode_environment(self, environment: Mapping, shape: tuple[int, ...]) -> list[Float[Array, "b f n e"]]:
        """Tokens per level; of one frame where all frames are lit alike, and a single zero where there is no light."""
        b, f = shape[:2]
        encoder = self.config.env_encoder
        if not environment:
            # Attention over any number of zeros is attention over one.
            return [jnp.zeros((b, 1, 1, e)) for e in encoder.channels]
        maps = []
        for label in encoder.in_labels:
            if label not in environment:
                raise InputError(f"the environment lacks {label!r}; it has {', '.join(sorted(environment))}")
            images = np.asarray(environment[label])
            images = self.check_images(label, images if images.ndim == 5 else images[None])
            if images.shape[0] not in (1, b) or images.shape[1] not in (1, f):
                raise InputError(f"{label} has shape {images.shape}, but the G-buffers are {b} clips of {f} frames")
            if (images == images[:, :1]).all():
                images = images[:, :1]
            maps.append(images)
        frames = max(images.shape[1] for images in maps)
        maps = [np.broadcast_to(images, (b, frames, *images.shape[2:])) for images in maps]
        tokens = in_runs(self._encode_lights, rearrange(np.stack(maps), "i b f h w c -> (b f) i h w c"))
        return [rearrange(level, "(b f) n e -> b f n e", f=frames) for level in tokens]

    def _encode_lights(self, pixels: Float[np.ndarray | Array, "n i h w 3"]) -> list[Float[Array, "n t e"]]:
        """Tokens per level of n lights, each of i images in [0, 1]."""
        n = len(pixels)
        flat = rearrange(pixels, "n i h w c -> (n i) h w c")
        if self.config.env_encoder.latent_encoder:
            flat = self.encode_images(flat) * self.config.vae.scaling_factor
        else:
            flat = jnp.asarray(flat) * 2 - 1
        inputs = rearrange(flat, "(n i) h w c -> n 1 h w (i c)", n=n)
        return [level[:, 0] for level in self._encode_light(self.params["env_encoder"], inputs)]


def chosen_passes(config: RendererConfig, passes: Iterable[str]) -> list[str]:
    """The passes, each once; InputError for one that the model does not know."""
    for name in passes:
        if name not in config.domains:
            raise unknown("pass", name, config.domains)
    return list(dict.fromkeys(passes))


def used_conditions(config: RendererConfig, drop: Iterable[str]) -> list[str]:
    """The model's conditions without those to `drop`, which may name the environment too; InputError for others."""
    for name in drop:
        if name not in (*config.conditions, "environment"):
            raise unknown("condition to drop", name, [*config.conditions, "environment"])
    return [name for name in config.conditions if name not in drop]


def _augment(pixels: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Adds the noise that `noise_aug_strength` tells the network of; pixels in [0, 1] have half the VAE's range."""
    if not sampling.noise_aug_strength:
        return pixels
    noise = np.random.default_rng(sampling.seed).standard_normal(pixels.shape, np.float32)
    return pixels + noise * np.float32(sampling.noise_aug_strength / 2)


def _bar(total: int, progress: bool) -> tqdm:
    # None: a bar only where there is a terminal.
    return tqdm(total=total, disable=None if progress else True, leave=False, unit="step")
