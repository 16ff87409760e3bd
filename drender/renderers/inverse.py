"""`InverseRenderer` maps an RGB clip to one G-buffer per pass (Liang et al. 2025, section 4.2)."""

import threading
from collections.abc import Collection, Iterable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from drender.config import DEFAULT_PASSES, RendererConfig, Sampling
from drender.errors import InputError, unknown_name_error
from drender.renderers.base import Renderer, progress_bar
from drender.renderers.batches import batched
from drender.renderers.windows import WindowedLatents, concat_frames

# Denoise passes together up to this many latents over all frames: half a clip of 24 frames of 512×512, 15 TFLOP, is
# meant to be enough work for any GPU.
BATCH_LATENTS = 12 * 64 * 64


class InverseRenderer(Renderer):
    """RGB clip to G-buffers.

    A call takes and returns whole clips. For long clips, `encode`, `estimate` and `decode_buffer` take or yield some
    frames at a time.
    """

    kind = "inverse"

    def __call__(
        self,
        rgb: Float[np.ndarray, "b f h w 3"],
        passes: Iterable[str] = DEFAULT_PASSES,
        *,
        noise: Float[np.ndarray, "b f h8 w8 c"] | None = None,
        progress: bool = True,
        stop: threading.Event | None = None,
        **sampling,
    ) -> dict[str, Float[np.ndarray, "b f h w 3"]]:
        """Estimate one G-buffer per pass; the RGB clip is encoded once for all.

        Args:
          rgb: sRGB in [0, 1]; sides are multiples of the VAE's downscale (8; built-in: 4). A single image has f = 1.
          passes: names of `config.domains`.
          noise: unit Gaussian initial noise; None: drawn from the seed.
          progress: show a bar on a terminal.
          stop: as for `Renderer.sample`.
          **sampling: fields of `config.Sampling`: num_steps, guidance, seed and so on.
        Returns:
          Per pass, float32 images in [0, 1]; docs/conventions.md states those of normals and depth.
        Raises:
          InputError: no pass, an unknown pass or option, or arrays of the wrong shape, dtype or range.
        """
        sampling = self.sampling(sampling)
        latents = self.encode(self.check_images("rgb", rgb), sampling)
        noise = self.initial_noise(noise, sampling, latents.shape)
        estimated = self.estimate(latents, chosen_passes(self.config, passes), sampling, noise, progress, stop=stop)
        return {name: concat_frames(self.decode_buffer(name, buffer, sampling)) for name, buffer in estimated}

    def estimate(
        self,
        latents: Float[np.ndarray, "b f h8 w8 c"],
        passes: Sequence[str],
        sampling: Sampling,
        noise: Float[np.ndarray, "b f h8 w8 c"],
        progress: bool = True,
        known: Collection[str] = (),
        stop: threading.Event | None = None,
    ) -> Iterator[tuple[str, WindowedLatents]]:
        """Yield the name and the scaled latents of each pass; passes of small clips are denoised together.

        Args:
          latents: of the RGB clip, from `encode`.
          known: passes that an interrupted run has estimated. A batch is left out only if all of its passes are known;
            else it is estimated whole, because another batch would be rounded differently.
          stop: as for `Renderer.sample`.
        """
        b, f, h, w = latents.shape[:4]
        batches = batched(passes, self._passes_per_batch(len(passes), b * min(f, sampling.frames) * h * w))
        batches = [names for names in batches if not set(names) <= set(known)]
        with progress_bar(len(batches) * self.network_calls(f, sampling), progress) as bar:
            for names in batches:
                bar.set_description(", ".join(names))
                n = len(names)
                context = jnp.zeros((n * b, 1, 1, self.config.unet.cross_attention_dim[-1]))
                domain = np.repeat([self.config.domains[name] for name in names], b)
                done = self.sample(
                    np.tile(noise, (n, 1, 1, 1, 1)),
                    np.tile(latents, (n, 1, 1, 1, 1)),
                    lambda window, context=context: context,
                    domain,
                    sampling,
                    bar,
                    stop,
                )
                for i, name in enumerate(names):
                    rows = slice(i * b, (i + 1) * b)
                    yield name, WindowedLatents(done.windows, [window[rows] for window in done.latents])

    def _passes_per_batch(self, num_passes: int, num_latents: int) -> int:
        """Return how many passes of `num_latents` each are denoised together, if possible a multiple of the devices."""
        devices = len(self.group)
        limit = max(1, BATCH_LATENTS // num_latents) * devices
        return min(limit, max(devices, num_passes // devices * devices))

    def decode_buffer(
        self, name: str, latents: WindowedLatents, sampling: Sampling
    ) -> Iterator[Float[np.ndarray, "b n h w 3"]]:
        """Yield images in [0, 1], some frames at a time; depth, which is relative, gets one range over all windows."""
        return self.decode(latents, sampling, match=name == "depth")


def chosen_passes(config: RendererConfig, passes: Iterable[str]) -> list[str]:
    """Return the passes without repetitions; raise InputError for one that the model does not know, or for none."""
    chosen = list(dict.fromkeys(passes))
    for name in chosen:
        if name not in config.domains:
            raise unknown_name_error("pass", name, config.domains)
    if not chosen:
        raise InputError(f"passes: expected at least one of {', '.join(config.domains)}, got none")
    return chosen
