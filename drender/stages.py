"""Encode, denoise, decode: the stages that both renderers run, each compiled once per shape.

Outside the networks everything is float32. Pixels are on the device a run of frames at a time, latents a window.
"""

import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, ArrayLike, Float
from tqdm import tqdm

from . import builtin, checkpoint, diffusion, lora
from .config import RendererConfig, Sampling, from_dict
from .env_encoder import EnvEncoder
from .errors import InputError, unknown
from .layers import structure
from .unet import UNet
from .vae import VAE
from .windows import Windowed, cross_fade, match_range, plan_windows, whole

NETWORKS = {"unet": UNet, "vae": VAE, "env_encoder": EnvEncoder}
DTYPES = ("float32", "bfloat16", "float16")
# Frames that go through an encoder at a time: enough to fill a GPU, few enough for its memory.
ENCODE_RUN = 8


class Renderer:
    """Networks, parameters and the stages; `renderers.py` has the two kinds."""

    kind: str
    # Set by another thread, it ends what is being sampled in this one, with a KeyboardInterrupt.
    stopped = threading.Event()

    def __init__(self, config: RendererConfig, params: Mapping[str, dict]):
        """params: nested dicts of arrays per component; their dtype is the one that is computed in."""
        self.config = config
        self.params = dict(params)
        graphs = {name: structure(NETWORKS[name], getattr(config, name))[0] for name in params}
        self._encode = _method(graphs["vae"], "encode")
        self._decode = _method(graphs["vae"], "decode")
        if "unet" in graphs:
            self._clean = jax.jit(functools.partial(clean, graphs["unet"]))
        if "env_encoder" in graphs:
            self._encode_light = _method(graphs["env_encoder"], "__call__")

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        dtype: str | None = None,
        device: jax.Device | None = None,
        lora_scale: float = 1.0,
    ) -> "Renderer":
        """Loads a converted checkpoint.

        Args:
          path: folder written by `convert_weights.py`; None: the small model that comes with the package.
          dtype: what to compute in, "float32", "bfloat16" or "float16"; None: float32 on a CPU, else bfloat16.
          device: where; None: the default device.
          lora_scale: how much to merge of the factors trained on real footage, where the checkpoint has them.
        Raises:
          InputError: no such checkpoint, one of another kind, or an unknown dtype.
        """
        cache_compilations()
        device = device or jax.devices()[0]
        dtype = dtype or ("float32" if device.platform == "cpu" else "bfloat16")
        if dtype not in DTYPES:
            raise unknown("dtype", dtype, DTYPES)
        path = path or builtin.checkpoint(cls.kind)
        config = cls.load_config(path)
        with jax.default_device(device):
            params = cls._load_params(path, config, dtype)
            if lora_scale and "unet" in params and "lora" in checkpoint.components(path):
                params["unet"] = lora.merge(params["unet"], checkpoint.load(path, "lora"), lora_scale)
            return cls(config, params)

    @classmethod
    def load_config(cls, path: str | Path) -> RendererConfig:
        """The configuration of a converted checkpoint, without its weights; InputError if it is of another kind."""
        config = checkpoint.load_config(path)
        if config.kind != cls.kind:
            raise InputError(f"{path} holds a {config.kind!r} model, but the {cls.kind} renderer needs {cls.kind!r}")
        return config

    @classmethod
    def _load_params(cls, path: str | Path, config: RendererConfig, dtype: str) -> dict[str, dict]:
        names = [name for name in NETWORKS if getattr(config, name) is not None]
        abstract = {name: structure(NETWORKS[name], getattr(config, name))[1] for name in names}
        return {name: checkpoint.load(path, name, abstract[name], dtype) for name in names}

    def sampling(self, options: Mapping, guidance: tuple[float, float] = (1.0, 1.0)) -> Sampling:
        """How to sample: what the model was trained for, changed by `options`.

        guidance: unless an option says otherwise; what is predicted in one step has none.
        """
        options = {"deterministic": self.config.deterministic, "frames": self.config.frames} | dict(options)
        options = {"overlap": min(6, options["frames"] // 2)} | options
        if not options["deterministic"]:
            options = {"guidance": guidance} | options
        return from_dict(Sampling, options, "sampling")

    def sigmas(self, sampling: Sampling) -> Float[np.ndarray, " n"]:
        """The noise levels, from the highest to 0; InputError if they do not fall."""
        chosen = lambda name: getattr(sampling, name) or getattr(self.config.scheduler, name)
        low, high = chosen("sigma_min"), chosen("sigma_max")
        if not low < high:
            raise InputError(f"sigma_min is {low} and sigma_max {high}; the former must be less")
        steps = 1 if sampling.deterministic else sampling.num_steps
        return diffusion.karras_sigmas(steps, low, high, sampling.rho or diffusion.RHO)

    def encode_images(self, images: Float[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n h8 w8 c"]:
        """VAE means of images in [0, 1], unscaled."""
        return in_runs(lambda run: self._encode(self.params["vae"], run[:, None] * 2 - 1)[:, 0], images)

    def encode(
        self, images: Float[np.ndarray, "b f h w 3"], sampling: Sampling, rng: np.random.Generator | None = None
    ) -> Float[np.ndarray, "b f h8 w8 c"]:
        """The latents of images in [0, 1] that condition, with the noise that `noise_aug_strength` tells of.

        rng: of that noise, for frames that follow others; None: the seed's.
        """
        if sampling.noise_aug_strength:
            rng = rng or np.random.default_rng(sampling.seed)
            # Pixels in [0, 1] have half the VAE's range.
            images = images + rng.standard_normal(images.shape, np.float32) * np.float32(
                sampling.noise_aug_strength / 2
            )
        latents = self.encode_images(rearrange(images, "b f h w c -> (b f) h w c"))
        scale = self.config.vae.scaling_factor if self.config.scale_cond_latents else 1
        return rearrange(latents, "(b f) h w c -> b f h w c", b=len(images)) * np.float32(scale)

    def decode_latents(
        self, z: Float[ArrayLike, "b f h w c"], chunk: int, overlap: int = 0
    ) -> Iterator[Float[np.ndarray, "b n h8 w8 3"]]:
        """Images in [0, 1], a run of `chunk` frames at a time, which the decoder sees together.

        The last may be shorter. A run never spans two clips. With `overlap` all runs are of one length, and fade over
        the frames that they share.
        """
        total = z.shape[1]
        runs = [slice(i, min(i + chunk, total)) for i in range(0, total, chunk)]
        runs = plan_windows(total, chunk, overlap) if overlap else runs
        # On the host, whether it came from a device or from a file: they round divisions otherwise.
        z = np.asarray(z) / np.float32(self.config.vae.scaling_factor)
        decode = lambda run: [self._decode(self.params["vae"], clip[None, run]) for clip in z]
        for frames in cross_fade(runs, (np.concatenate(clips) for clips in one_ahead(map(decode, runs)))):
            yield np.clip(frames / 2 + 0.5, 0, 1)

    def decode(
        self, latents: Windowed, sampling: Sampling, match: bool = False
    ) -> Iterator[Float[np.ndarray, "b n h8 w8 3"]]:
        """Images in [0, 1] of what was sampled, in order, some frames at a time.

        match: each window is decoded on its own, and scaled and shifted to fit the one before.
        """
        several, chunk = len(latents.windows) > 1, sampling.decode_chunk_size
        overlap = min(2, chunk // 2) * several if sampling.decode_overlap is None else sampling.decode_overlap
        decoded = lambda z: self.decode_latents(z, chunk, overlap)
        if match and several:
            pieces = (whole(decoded(piece)) for piece in latents.pieces)
            return (np.clip(frames, 0, 1) for frames in cross_fade(latents.windows, pieces, match_range))
        return decoded(latents.blended())

    def denoise(
        self,
        noise: Float[ArrayLike, "b f h w c"],
        conditions: Float[ArrayLike, "b f h w d"],
        context: Callable[[slice], Array | list[Array]],
        domain: Array | None,
        sampling: Sampling,
        bar: tqdm,
    ) -> Windowed:
        """Scaled latents, from unit noise and encoded conditions; domain as `clean` takes it.

        A long clip's windows are denoised together: at every noise level their x̂₀ are faded into one another over the
        frames that they share, and the clip as a whole takes the step (MultiDiffusion, Bar-Tal et al. 2023, over time).
        It stays on the host meanwhile; the device holds a window.

        Args:
          context: of the frames of a window, as `clean` takes it.
        """
        windows = plan_windows(noise.shape[1], sampling.frames, sampling.overlap)
        micro = np.array([sampling.fps - 1, sampling.motion_bucket_id, sampling.noise_aug_strength], np.float32)
        micro = np.tile(micro, (noise.shape[0], 1))  # SVD was trained with the frame rate less one
        guided = max(sampling.guidance) > 1
        scales = diffusion.guidance_scales(sampling.guidance, noise.shape[1])
        sigmas = self.sigmas(sampling)
        if len(windows) == 1:
            of_window = lambda array, window: array
            # Committed to the parameters' device as the steps' results are, for which else all is compiled again.
            noise, conditions = jax.device_put((noise, conditions), jax.tree.leaves(self.params)[0].sharding)
        else:
            of_window = lambda array, window: array[:, window]
            noise, conditions = np.asarray(noise), np.asarray(conditions)

        def pieces(x, i) -> list[Array]:
            now = diffusion.dynamic_guidance_scales(scales, i, len(sigmas) - 1) if sampling.dynamic_guidance else scales
            cleaned = []
            for window in windows:
                if self.stopped.is_set():
                    raise KeyboardInterrupt
                arguments = of_window(conditions, window), context(window), domain, micro
                guidance = now[window] if guided else None
                cleaned.append(self._clean(self.params["unet"], *arguments, guidance, of_window(x, window), sigmas[i]))
                # Wait for what came before: progress stays honest, and the device never runs dry.
                jax.block_until_ready(cleaned[-2] if len(cleaned) > 1 else x)
                bar.update()
            return cleaned

        clean = lambda x, i: Windowed(windows, pieces(x, i)).blended()
        if sampling.deterministic:
            x = jnp.zeros_like(noise) if len(windows) == 1 else np.zeros_like(noise)
        else:
            schedule = self.config.scheduler
            x = noise * np.float32(diffusion.initial_scale(float(sigmas[0]), schedule.timestep_spacing))
        # From the last level all samplers go to x̂₀.
        x = diffusion.SAMPLERS[sampling.sampler](clean, x, sigmas[:-1])
        return Windowed(windows, pieces(x, len(sigmas) - 2))

    def network_calls(self, num_frames: int, sampling: Sampling) -> int:
        """How often the network will be called to sample a clip of so many frames."""
        windows = len(plan_windows(num_frames, sampling.frames, sampling.overlap))
        return windows * diffusion.network_calls(sampling.sampler, len(self.sigmas(sampling)) - 1)

    def initial_noise(
        self, noise: np.ndarray | None, seed: int, grid: tuple[int, ...]
    ) -> Float[np.ndarray, "b f h w c"]:
        """The given unit noise, or that of the seed, which is the same on every device; grid: of latents, b f h w."""
        wanted = (*grid[:4], self.config.vae.latent_channels)
        if noise is None:
            noise = jax.random.normal(jax.random.key(seed), wanted)
        if np.shape(noise) != wanted:
            raise InputError(f"noise has shape {np.shape(noise)}, but these images need {wanted}")
        return np.asarray(noise, np.float32)

    def check_images(self, name: str, images, shape: tuple[int, ...] | None = None) -> Float[np.ndarray, "b f h w 3"]:
        """The images as float32 of a shape that the networks take, or an InputError."""
        images = np.asarray(images)
        if images.ndim != 5 or images.shape[-1] != 3 or 0 in images.shape:
            raise InputError(f"{name} has shape {images.shape}; expected [batch, frames, height, width, 3]")
        if not np.issubdtype(images.dtype, np.floating):
            raise InputError(f"{name} has dtype {images.dtype}; expected floats in [0, 1] (divide bytes by 255)")
        if shape is not None and images.shape != shape:
            raise InputError(f"{name} has shape {images.shape}, but the other images have {shape}")
        h, w = images.shape[2:4]
        if h % self.config.vae.downscale or w % self.config.vae.downscale:
            raise InputError(f"{name} is {h}×{w}; sides must be multiples of {self.config.vae.downscale}")
        return images.astype(np.float32)


def predict(
    graphdef: nnx.GraphDef, params, conditions, context, domain, micro, scales, x, sigma
) -> Float[Array, "b f h w c"]:
    """The network's F, guided where `scales` (per frame) are given.

    Args:
      conditions: conditioning latents [b, f, h, w, d].
      context, domain, micro: as `UNet` takes them.
      x: noisy latents [b, f, h, w, c] at noise level `sigma`.
    """
    noisy = diffusion.scaled_input(x, sigma)
    rows = jnp.concatenate([noisy, conditions], axis=-1)
    if scales is not None:
        # The second half of the rows is the unconditional one. The inverse renderer's keeps its domain token; the
        # forward renderer's has no environment, which the network knows by there being fewer rows of context.
        rows = jnp.concatenate([rows, jnp.concatenate([noisy, jnp.zeros_like(conditions)], axis=-1)])
        micro = jnp.concatenate([micro, micro])
        if domain is not None:
            domain, context = jnp.concatenate([domain, domain]), jnp.concatenate([context, context])
    time = jnp.broadcast_to(diffusion.network_time(sigma), rows.shape[:1])
    prediction = nnx.merge(graphdef, params)(rows, time, context, micro, domain)
    if scales is None:
        return prediction
    conditional, unconditional = jnp.split(prediction, 2)
    return diffusion.guide(unconditional, conditional, scales[:, None, None, None])


def clean(
    graphdef: nnx.GraphDef, params, conditions, context, domain, micro, scales, x, sigma
) -> Float[Array, "b f h w c"]:
    """x̂₀ by one call of the network; arguments as `predict` takes them.

    At sigma_max, from x = 0, it is −F but for a millionth: the one-step mode.
    """
    return diffusion.denoised(x, predict(graphdef, params, conditions, context, domain, micro, scales, x, sigma), sigma)


def in_runs(fn: Callable, items: Float[np.ndarray, "n ..."], run: int = ENCODE_RUN):
    """Applies `fn` to runs of at most `run` items, all of one length, so that one shape is compiled.

    Returns numpy arrays, in the tree that `fn` returns.
    """
    n = len(items)
    num_runs = -(-n // run)
    length = -(-n // num_runs)
    filled = np.concatenate([items, np.repeat(items[-1:], num_runs * length - n, axis=0)])
    results = one_ahead(fn(filled[i : i + length]) for i in range(0, len(filled), length))
    return jax.tree.map(lambda *pieces: np.concatenate(pieces)[:n], *results)


def one_ahead(results: Iterator) -> Iterator:
    """Results of the device, on the host; it works at each while the one before is seen to."""
    for result, _ in itertools.pairwise(itertools.chain(results, [None])):
        yield jax.tree.map(np.asarray, result)


def _method(graphdef: nnx.GraphDef, name: str) -> Callable:
    """One method of a network, compiled: (params, *arguments) -> result."""
    return jax.jit(lambda params, *arguments: getattr(nnx.merge(graphdef, params), name)(*arguments))


def cache_compilations() -> None:
    """Keeps compiled stages on disk between runs, unless the program or JAX_COMPILATION_CACHE_DIR says otherwise."""
    if jax.config.jax_compilation_cache_dir is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "drender" / "xla"))
