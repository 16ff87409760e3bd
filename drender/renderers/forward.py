"""`ForwardRenderer` maps G-buffers and an environment to an RGB clip (Liang et al. 2025, section 4.1)."""

import functools
import threading
from collections.abc import Callable, Iterable, Mapping

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from drender.config import RendererConfig, Sampling
from drender.errors import InputError, unknown_name_error
from drender.renderers.base import Renderer, progress_bar
from drender.renderers.windows import WindowedLatents, concat_frames


class ForwardRenderer(Renderer):
    """G-buffers and an environment to an RGB clip.

    A call takes and returns whole clips. For long clips, `encode`, `encode_environment` and `decode` take or yield some
    frames at a time.
    """

    kind = "forward"
    guidance = (1.2, 1.2)
    lora_scale = 0.25

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
        stop: threading.Event | None = None,
        **sampling,
    ) -> Float[np.ndarray, "b f h w 3"]:
        """Render the G-buffers under the environment.

        Args:
          buffers: the model's conditions (basecolor, normal, depth, roughness, metallic) in [0, 1]; others are ignored.
          environment: "env_ldr", "env_log" and "env_nrm" of `environment_maps`, for all clips or one per clip, with as
            many frames as the G-buffers or one for all.
          drop: names of conditions to leave out, or "environment"; these need not be given.
          noise, progress, stop, **sampling: as for `InverseRenderer`. The default guidance is (1.2, 1.2), or none for
            one-step models.
        Returns:
          float32 sRGB in [0, 1].
        Raises:
          InputError: missing condition, unknown name or option, or arrays of the wrong shape, dtype or range.
        """
        sampling, drop = self.sampling(sampling), set(drop)
        images, shape = self._check_buffers(buffers, drop)
        downscale = self.config.vae.downscale
        noise = self.initial_noise(noise, sampling, (*shape[:2], shape[2] // downscale, shape[3] // downscale))
        latents = self._encode_buffers(images, sampling)
        light = None if "environment" in drop else self.encode_environment(self._check_environment(environment, shape))
        return concat_frames(self.decode(self.render(latents, light, sampling, noise, progress, stop), sampling))

    # --- stages ------------------------------------------------------------------------------------------------------

    def _encode_buffers(self, images: dict[str, np.ndarray], sampling: Sampling) -> dict[str, np.ndarray]:
        """Return the conditioning latents of each G-buffer, encoded in common batches."""
        if not images:
            return {}
        latents = self.encode(np.concatenate(list(images.values())), sampling)
        return dict(zip(images, np.split(latents, len(images)), strict=True))

    def encode_environment(
        self, environment: Mapping[str, Float[np.ndarray | Array, "*b f H W 3"]]
    ) -> Float[np.ndarray, "b f h w c"]:
        """Return the environment encoder's input for checked maps: their scaled latents, or pixels in [-1, 1]."""
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

    def environment_tokens(self, light: Float[np.ndarray, "b f H8 W8 d"]) -> list[Float[Array, "b f n e"]]:
        """Return the environment encoder's tokens per UNet level, for the input from `encode_environment`."""
        return self._run_rows("environment", light)

    def render(
        self,
        latents: Mapping[str, Float[np.ndarray, "b f h8 w8 c"]],
        light: Float[np.ndarray, "b2 f2 H8 W8 d"] | None,
        sampling: Sampling,
        noise: Float[np.ndarray, "b f h8 w8 c"],
        progress: bool = True,
        stop: threading.Event | None = None,
    ) -> WindowedLatents:
        """Return the scaled latents of the RGB clip.

        Args:
          latents: of the conditions, from `encode`; missing ones are zeros.
          light: from `encode_environment`, for all clips or one per clip, with as many frames as the clip or one for
            all; None: no environment.
          stop: as for `Renderer.sample`.
        """
        zeros = np.zeros_like(noise)
        conditions = np.concatenate([latents.get(name, zeros) for name in self.config.conditions], axis=-1)
        b, f = noise.shape[:2]
        with progress_bar(self.network_calls(f, sampling), progress) as bar:
            return self.sample(noise, conditions, self._context(light, b), None, sampling, bar, stop)

    def _context(self, light: np.ndarray | None, b: int) -> Callable[[slice], list[Float[Array, "b f n e"]]]:
        """Return a function from the frames of a window to the environment tokens per level, [b, f or 1, n, e].

        Without an environment these are a single zero, as attention over any number of zeros equals attention over one.
        """
        if light is None:
            zeros = [jnp.zeros((b, 1, 1, e)) for e in self.config.env_encoder.channels]
            return lambda window: zeros
        light = np.broadcast_to(light, (b, *light.shape[1:]))
        static = light.shape[1] == 1

        # Keep the tokens of one window: all of a short clip's. Those of a long clip would not fit into memory.
        @functools.lru_cache(maxsize=1)
        def tokens(start: int, stop: int) -> list[Array]:
            return self.environment_tokens(light[:, start:stop])

        return lambda window: tokens(0, 1) if static else tokens(window.start, window.stop)

    # --- checks ------------------------------------------------------------------------------------------------------

    def _check_buffers(self, buffers: Mapping, drop: set[str]) -> tuple[dict[str, np.ndarray], tuple[int, ...]]:
        """Return the conditions to use, and the shape that all G-buffers have."""
        used = used_conditions(self.config, drop)
        if missing := [name for name in used if name not in buffers]:
            raise InputError(f"G-buffers not found: {', '.join(missing)}; give them, or leave them out with drop")
        if not buffers:
            raise InputError("buffers: expected at least one G-buffer, for the clip's length and size, got none")
        shape = np.shape(next(iter(buffers.values())))
        return {name: self.check_images(name, buffers[name], shape) for name in used}, shape

    def _check_environment(self, environment: Mapping, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Return the model's environment maps, `b2 f2 H W 3`, with a single frame if all frames are equal."""
        if not isinstance(environment, Mapping):
            expected = "the maps of `environment_maps`, or drop=['environment']"
            raise InputError(f"environment: expected {expected}, got {type(environment).__name__}")
        b, f = shape[:2]
        maps = {}
        for label in self.config.env_encoder.in_labels:
            if label not in environment:
                raise InputError(f"environment: expected a map {label!r}, got {', '.join(sorted(environment))}")
            images = np.asarray(environment[label])
            images = self.check_images(label, images if images.ndim == 5 else images[None])
            if images.shape[0] not in (1, b) or images.shape[1] not in (1, f):
                expected = f"maps for {b} clips of {f} frames, or 1 of each"
                raise InputError(f"{label}: expected {expected}, got {images.shape}")
            if (images == images[:, :1]).all():
                images = images[:, :1]
            maps[label] = images
        clips, frames = (max(images.shape[axis] for images in maps.values()) for axis in (0, 1))
        return {label: np.broadcast_to(images, (clips, frames, *images.shape[2:])) for label, images in maps.items()}


def used_conditions(config: RendererConfig, drop: Iterable[str]) -> list[str]:
    """Return the model's conditions except those to `drop`; raise InputError if one of these is unknown.

    `drop` may name "environment" too.
    """
    for name in drop:
        if name not in (*config.conditions, "environment"):
            raise unknown_name_error("condition to drop", name, [*config.conditions, "environment"])
    return [name for name in config.conditions if name not in drop]
