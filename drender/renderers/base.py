"""What both renderers share: loading, sampling options, and the stages encode, denoise and decode.

Everything between the networks is float32. A device holds the pixels of a batch of frames, and the latents of a window.
"""

import copy
import functools
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, ArrayLike, Float, Int
from tqdm import tqdm

from drender import assets, diffusion
from drender.checkpoints import orbax
from drender.checkpoints.cache import resolve
from drender.config import DTYPES, RendererConfig, Sampling
from drender.errors import InputError, unknown_name_error
from drender.fields import from_dict
from drender.media.encodings import check_values
from drender.models import lora
from drender.models.registry import abstract_params
from drender.renderers.batches import ENCODE_BATCH, batched, halve_to_fit, map_in_batches, map_in_windows
from drender.renderers.denoiser import denoise_clip
from drender.renderers.stages import compile_stage, make_stages, run_stage
from drender.renderers.windows import (
    WindowedLatents,
    concat_frames,
    cross_fade,
    match_range,
    plan_windows,
    stack_windows,
    unstack_windows,
)
from drender.sharding import SINGLE_DEVICE, DeviceGroup, cache_compilations


class Renderer:
    """Networks with their parameters, and the stages that `InverseRenderer` and `ForwardRenderer` combine."""

    kind: str
    # Defaults of the sampling options and of `load`.
    guidance = (1.0, 1.0)
    lora_scale = 1.0

    def __init__(self, config: RendererConfig, params: Mapping[str, dict], group: DeviceGroup = SINGLE_DEVICE):
        """Hold networks and their stages.

        Args:
          params: nested dicts of arrays per component, on every device; their dtype is the computation dtype.
          group: devices that share a clip.

        The attribute `run_stage` calls the stages; another function in its place can record the calls instead.
        """
        self.config, self.params, self.group = config, dict(params), group
        self.stages = make_stages(config, params, group)
        self.run_stage: Callable = run_stage
        # Frames that the VAE has been found to take at once, by stage and size.
        self._fitting: dict[tuple, int] = {}

    # --- loading -----------------------------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        dtype: str | None = None,
        device: jax.Device | Sequence[jax.Device] | None = None,
        lora_scale: float | None = None,
    ) -> "Renderer":
        """Load a checkpoint.

        Args:
          path: folder that `drender convert` wrote; or released weights, which are converted into a cache the first
            time: a folder, or a Hugging Face name such as "owner/name" or "owner/name@revision". None: the small
            built-in model.
          dtype: computation dtype: "float32", "bfloat16" or "float16"; None: float32 on a CPU, else bfloat16.
          device: one device, or several that share every clip and each hold all parameters; None: the default device.
          lora_scale: weight of the LoRA trained on real footage, if the checkpoint has one. None: 1 for the inverse
            renderer and 0.25 for the forward renderer, which suits real footage; 0 suits synthetic objects.
        Raises:
          InputError: the checkpoint is missing or of another kind, the dtype is unknown, or `lora_scale` is not finite.
        """
        cache_compilations()
        devices = (device,) if isinstance(device, jax.Device) else tuple(device or jax.devices()[:1])
        dtype = dtype or ("float32" if devices[0].platform == "cpu" else "bfloat16")
        if dtype not in DTYPES:
            raise unknown_name_error("dtype", dtype, DTYPES)
        if lora_scale is not None and not (isinstance(lora_scale, Real) and math.isfinite(lora_scale)):
            raise InputError(f"lora_scale: expected a finite number, got {lora_scale!r}")
        path = resolve(assets.checkpoint(cls.kind) if path is None else path)
        config = cls.load_config(path)
        with jax.default_device(devices[0]):
            params = cls._load_params(path, config, dtype)
            scale = cls.lora_scale if lora_scale is None else lora_scale
            if scale and "unet" in params and "lora" in orbax.components(path):
                params["unet"] = lora.merge(params["unet"], orbax.load(path, "lora"), scale)
            group = DeviceGroup(devices)
            return cls(config, jax.device_put(params, group.replicated), group)

    @classmethod
    def load_config(cls, path: str | Path) -> RendererConfig:
        """Load the configuration of a checkpoint, named as for `load`; raise InputError if it is of another kind."""
        config = orbax.load_config(resolve(path))
        if config.kind != cls.kind:
            raise InputError(f"{path} holds a {config.kind!r} model, but the {cls.kind} renderer needs {cls.kind!r}")
        return config

    @classmethod
    def _load_params(cls, path: str | Path, config: RendererConfig, dtype: str) -> dict[str, dict]:
        stored = orbax.check_config(path, config)
        networks = abstract_params(config).items()
        return {name: orbax.load(path, name, shapes, dtype, stored[name]) for name, shapes in networks}

    def compiling(self) -> "Renderer":
        """Return a copy that compiles the stages it is asked to run, for this renderer to use; results are zeros."""
        renderer = copy.copy(self)
        renderer.run_stage = compile_stage
        return renderer

    # --- sampling options --------------------------------------------------------------------------------------------

    def sampling(self, options: Mapping) -> Sampling:
        """Complete `options`, fields of `Sampling`, with the model's defaults: for one-step models no guidance.

        None stands for a default. Warns of `num_steps` for a one-step model.
        """
        options = {name: value for name, value in options.items() if value is not None}
        options = {"deterministic": self.config.deterministic, "frames": self.config.frames} | options
        if options["deterministic"] and options.get("num_steps", 1) != 1:
            problem = f"num_steps {options['num_steps']} has no effect on this one-step model"
            warnings.warn(f"{problem}; deterministic=False samples it in several", stacklevel=3)
        options = {"overlap": min(6, options["frames"] // 2)} | options
        if not options["deterministic"]:
            options = {"guidance": self.guidance} | options
        return from_dict(Sampling, options, "sampling")

    def sigmas(self, sampling: Sampling) -> Float[np.ndarray, " n"]:
        """Return the noise levels, from the highest to 0; raise InputError if the range is empty."""
        scheduler = self.config.scheduler
        low, high = sampling.sigma_min or scheduler.sigma_min, sampling.sigma_max or scheduler.sigma_max
        if not low < high:
            raise InputError(f"sigma_min: expected less than sigma_max ({high}), got {low}")
        steps = 1 if sampling.deterministic else sampling.num_steps
        return diffusion.karras_sigmas(steps, low, high, sampling.rho or diffusion.RHO)

    def network_calls(self, num_frames: int, sampling: Sampling) -> int:
        """Return how many UNet calls sampling a clip of `num_frames` takes."""
        windows = len(plan_windows(num_frames, sampling.frames, sampling.overlap))
        return windows * diffusion.network_calls(sampling.sampler, len(self.sigmas(sampling)) - 1)

    # --- encode ------------------------------------------------------------------------------------------------------

    def encode_images(self, images: Float[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n h8 w8 c"]:
        """Return the VAE's latents of images in [0, 1]: means, not yet times `scaling_factor`."""
        encode = lambda batch: self._run_rows("encode", batch[:, None] * 2 - 1)[:, 0]
        in_batches = lambda size: [map_in_batches(encode, images, len(self.group), size)]
        # Frames are independent, so smaller batches give the same latents.
        fitting = "encode", *images.shape[1:3]
        self._fitting[fitting], (latents,) = halve_to_fit(in_batches, self._fitting.get(fitting, ENCODE_BATCH))
        return latents

    def encode(
        self, images: Float[np.ndarray, "b f h w 3"], sampling: Sampling, rng: np.random.Generator | None = None
    ) -> Float[np.ndarray, "b f h8 w8 c"]:
        """Return the conditioning latents of images in [0, 1], with noise if `noise_aug_strength` asks for it.

        Args:
          rng: of that noise, to continue a clip; None: seeded by `sampling.seed`.
        """
        if sampling.noise_aug_strength:
            rng = rng or np.random.default_rng(sampling.seed)
            strength = np.float32(sampling.noise_aug_strength / 2)  # [0, 1] is half as wide as the VAE's range
            images = images + rng.standard_normal(images.shape, np.float32) * strength
        latents = self.encode_images(rearrange(images, "b f h w c -> (b f) h w c"))
        scale = self.config.vae.scaling_factor if self.config.scale_cond_latents else 1
        return rearrange(latents, "(b f) h w c -> b f h w c", b=len(images)) * np.float32(scale)

    # --- sample ------------------------------------------------------------------------------------------------------

    def sample(
        self,
        noise: Float[ArrayLike, "b f h w c"],
        conditions: Float[ArrayLike, "b f h w d"],
        context: Callable[[slice], Array | list[Array]],
        domain: Int[ArrayLike, " b"] | None,
        sampling: Sampling,
        bar: tqdm,
        stop: threading.Event | None = None,
    ) -> WindowedLatents:
        """Sample scaled latents from unit noise and conditioning latents.

        A long clip is denoised in windows that overlap (see `denoise_clip`). It stays on the host; a device holds a
        window.

        Args:
          context: function from the frames of a window to its context, as `UNet` takes it.
          domain: row of the UNet's context embedding for each clip, or None.
          bar: advances by one per window and network call.
          stop: setting this event from another thread aborts sampling with KeyboardInterrupt.
        """
        b, f = noise.shape[:2]
        windows = plan_windows(f, sampling.frames, sampling.overlap)
        sigmas = self.sigmas(sampling)
        guidance = diffusion.guidance_schedule(sampling.guidance, len(sigmas) - 1, f, sampling.dynamic_guidance)
        # SVD was trained with the frame rate minus one.
        micro = np.array([[sampling.fps - 1, sampling.motion_bucket_id, sampling.noise_aug_strength]], np.float32)
        rows = b if guidance is None else 2 * b
        # Denoise just enough windows together to give every device a row.
        batches = batched(windows, len(self.group) // math.gcd(len(self.group), rows))
        scale = diffusion.initial_scale(float(sigmas[0]), self.config.scheduler.timestep_spacing)
        x, conditions = np.asarray(noise) * np.float32(scale), np.asarray(conditions)
        if len(windows) == 1:
            # Commit inputs to the parameters' sharding; otherwise the second step recompiles.
            x, conditions = jax.device_put((x, conditions), jax.tree.leaves(self.params)[0].sharding)

        def denoise_batch(x: ArrayLike, i: int, windows: list[slice]) -> Array:
            n = len(windows)
            return self._run(
                "denoise",
                stack_windows(conditions, windows),
                jax.tree.map(lambda *levels: jnp.concatenate(levels), *map(context, windows)),
                None if domain is None else np.tile(domain, n),
                np.tile(micro, (b * n, 1)),
                None if guidance is None else stack_windows(np.tile(guidance[i], (b, 1)), windows),
                stack_windows(x, windows),
                sigmas[i],
                split=self.group.split(rows * n, windows[0].stop - windows[0].start),
            )

        def denoise_windows(x: ArrayLike, i: int) -> WindowedLatents:
            results, previous = [], x
            for batch in batches:
                if stop is not None and stop.is_set():
                    raise KeyboardInterrupt
                results.append(denoise_batch(x, i, batch))
                # Queue at most two calls: they keep the device busy, and the progress bar does not run ahead.
                jax.block_until_ready(previous)
                previous = results[-1]
                bar.update(len(batch))
            pieces = map(unstack_windows, results, map(len, batches))
            return WindowedLatents(windows, [piece for stacked in pieces for piece in stacked])

        return denoise_clip(denoise_windows, x, sigmas, sampling.sampler)

    def initial_noise(
        self, noise: np.ndarray | None, sampling: Sampling, grid: tuple[int, ...]
    ) -> Float[np.ndarray, "b f h w c"]:
        """Return the given unit noise, or the seed's, which is the same on every device; zeros for one-step models.

        Args:
          grid: shape of the latents, of which the first four axes count: b, f, h, w.
        """
        expected = (*grid[:4], self.config.vae.latent_channels)
        if noise is not None and np.shape(noise) != expected:
            raise InputError(f"noise: expected shape {expected} for these images, got {np.shape(noise)}")
        if sampling.deterministic:
            return np.zeros(expected, np.float32)
        if noise is None:
            noise = jax.random.normal(jax.random.key(sampling.seed), expected)
        return np.asarray(noise, np.float32)

    # --- decode ------------------------------------------------------------------------------------------------------

    def decode(
        self, latents: WindowedLatents, sampling: Sampling, match: bool = False
    ) -> Iterator[Float[np.ndarray, "b n H W 3"]]:
        """Yield the images in [0, 1] of sampled latents, in order, some frames at a time.

        Args:
          match: decode each window on its own, and scale and shift it to fit the one before.
        """
        long, chunk, overlap = len(latents.windows) > 1, sampling.decode_chunk_size, sampling.decode_overlap
        if overlap is None:
            overlap = min(2, chunk // 2) if long else 0
        if not (match and long):
            yield from self.decode_latents(latents.blended(), chunk, overlap)
            return
        decoded = (concat_frames(self.decode_latents(piece, chunk, overlap)) for piece in latents.latents)
        for frames in cross_fade(latents.windows, decoded, match_range):
            yield np.clip(frames, 0, 1)

    def decode_latents(
        self, z: Float[ArrayLike, "b f h w c"], chunk: int, overlap: int = 0
    ) -> Iterator[Float[np.ndarray, "b n H W 3"]]:
        """Yield images in [0, 1], decoded in windows of `chunk` frames of one clip.

        Without `overlap` the last window may be shorter. With it all have the same length, and are cross-faded over
        the frames that they share. Where the device cannot hold `chunk` frames, warn, and halve it until they fit.
        """
        # Divide on the host, as devices round differently: latents may come from a device or from a file.
        z = np.asarray(z) / np.float32(self.config.vae.scaling_factor)
        run = functools.partial(self._run_rows, "decode")
        decode = lambda size: map_in_windows(run, z, size, min(overlap, size - 1), len(self.group))
        chunk, fitting = min(chunk, z.shape[1]), ("decode", *z.shape[2:4])
        size, pieces = halve_to_fit(decode, min(chunk, self._fitting.get(fitting, chunk)))
        if size < chunk:
            self._fitting[fitting] = size
            problem = f"the device has too little memory to decode {chunk} frames together"
            remedy = "a smaller size or bfloat16 needs less memory"
            warnings.warn(f"{problem}; decoding {size}, which may flicker more ({remedy})", stacklevel=2)
        for frames in pieces:
            yield np.clip(frames / 2 + 0.5, 0, 1)

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _run(self, name: str, *arrays: Any, split: jax.sharding.NamedSharding | None) -> Any:
        stage = self.stages[name]
        return self.run_stage(stage, self.params[stage.network], *arrays, split=split)

    def _run_rows(self, name: str, rows: Float[ArrayLike, "b f ..."]) -> Any:
        """Run a stage on rows of frames, sharded over the device group."""
        return self._run(name, rows, split=self.group.split(*rows.shape[:2]))

    def check_images(self, name: str, images, shape: tuple[int, ...] | None = None) -> Float[np.ndarray, "b f h w 3"]:
        """Return the images as float32, or raise InputError if the networks cannot take their shape, dtype or range."""
        images = np.asarray(images)
        if images.ndim != 5 or images.shape[-1] != 3 or 0 in images.shape:
            raise InputError(f"{name}: expected shape [batch, frames, height, width, 3], got {images.shape}")
        if shape is not None and images.shape != shape:
            raise InputError(f"{name}: expected shape {shape} as of the other images, got {images.shape}")
        h, w = images.shape[2:4]
        if h % self.config.vae.downscale or w % self.config.vae.downscale:
            raise InputError(f"{name}: expected sides that are multiples of {self.config.vae.downscale}, got {h}×{w}")
        return check_values(name, images)


def progress_bar(total: int, progress: bool) -> tqdm:
    """Return a bar of network calls, shown on terminals only, or never if not `progress`."""
    return tqdm(total=total, disable=None if progress else True, leave=False, unit="step")
