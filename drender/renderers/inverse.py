"""The two renderers: `InverseRenderer` maps an RGB clip to one G-buffer per pass, `ForwardRenderer` G-buffers and an
environment to an RGB clip (Liang et al. 2025, sections 4.1 and 4.2).

Called, they take and give whole clips. Their stages take and give some frames at a time, for clips that are long.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from drender.config import DEFAULT_PASSES, RendererConfig, Sampling
from drender.errors import unknown_name_error
from drender.renderers.base import Renderer, batched
from drender.renderers.windows import WindowedLatents, whole

# Passes are denoised together as long as they have no more latents than this, all frames counted: half of a clip of 24
# frames of 512×512, which by itself keeps any GPU busy.
BATCH_LATENTS = 12 * 64 * 64


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
        latents = self.encode(rgb, sampling)
        noise = self.initial_noise(noise, sampling.seed, latents.shape)
        estimated = self.estimate(latents, chosen_passes(self.config, passes), sampling, noise, progress)
        return {name: whole(self.decode_buffer(name, buffer, sampling)) for name, buffer in estimated}

    def estimate(
        self,
        latents: Float[np.ndarray, "b f h8 w8 c"],
        passes: Sequence[str],
        sampling: Sampling,
        noise: Float[np.ndarray, "b f h8 w8 c"],
        progress: bool = True,
        known: Collection[str] = (),
    ) -> Iterator[tuple[str, WindowedLatents]]:
        """The scaled latents of each pass; small clips' passes are denoised together.

        known: passes that are not needed. Which are denoised together does not depend on it: that would change
          roundings.
        """
        b, f, h, w = latents.shape[:4]
        devices = len(self.team)
        most = max(1, BATCH_LATENTS // (b * min(f, sampling.frames) * h * w)) * devices
        # Rows that divide among the devices, as far as there are any.
        groups = batched(passes, min(most, max(devices, len(passes) // devices * devices)))
        groups = [names for names in groups if not set(names) <= set(known)]
        with _bar(len(groups) * self.network_calls(f, sampling), progress) as bar:
            for names in groups:
                bar.set_description(", ".join(names))
                rows = lambda x, names=names: np.concatenate([x for _ in names])
                context = jnp.zeros((len(names) * b, 1, 1, self.config.unet.cross_attention_dim[-1]))
                domain = np.repeat([self.config.domains[name] for name in names], b)
                done = self.denoise(rows(noise), rows(latents), lambda _, c=context: c, domain, sampling, bar)
                for i, name in enumerate(names):
                    yield name, WindowedLatents(done.windows, [piece[i * b : (i + 1) * b] for piece in done.pieces])

    def decode_buffer(
        self, name: str, latents: WindowedLatents, sampling: Sampling
    ) -> Iterator[Float[np.ndarray, "b n h w 3"]]:
        """Images in [0, 1], some frames at a time. Depth, which is relative, is given one range over all windows."""
        return self.decode(latents, sampling, match=name == "depth")


def chosen_passes(config: RendererConfig, passes: Iterable[str]) -> list[str]:
    """The passes, each once; InputError for one that the model does not know."""
    for name in passes:
        if name not in config.domains:
            raise unknown_name_error("pass", name, config.domains)
    return list(dict.fromkeys(passes))


def _bar(total: int, progress: bool) -> tqdm:
    # None: a bar only where there is a terminal.
    return tqdm(total=total, disable=None if progress else True, leave=False, unit="step")
