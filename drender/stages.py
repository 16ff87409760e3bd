"""Encode, denoise, decode: the stages that both renderers run, each compiled once per shape.

Between stages everything stays on the device, in float32 outside the networks.
"""

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
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

NETWORKS = {"unet": UNet, "vae": VAE, "env_encoder": EnvEncoder}
DTYPES = ("float32", "bfloat16", "float16")
# Frames that go through an encoder at a time: enough to fill a GPU, few enough for its memory.
ENCODE_RUN = 8


class Renderer:
    """Networks, parameters and the stages; `renderers.py` has the two kinds."""

    kind: str

    def __init__(self, config: RendererConfig, params: Mapping[str, dict]):
        """params: nested dicts of arrays per component; their dtype is the one that is computed in."""
        self.config = config
        self.params = dict(params)
        graphs = {name: structure(NETWORKS[name], getattr(config, name))[0] for name in params}
        self._encode = _method(graphs["vae"], "encode")
        self._decode = _method(graphs["vae"], "decode")
        if "unet" in graphs:
            self._predict = jax.jit(functools.partial(predict, graphs["unet"]))
            self._step = jax.jit(functools.partial(denoising_step, graphs["unet"]))
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
        options = {"deterministic": self.config.deterministic} | dict(options)
        if not options["deterministic"]:
            options = {"guidance": guidance} | options
        return from_dict(Sampling, options, "sampling")

    def encode_images(self, images: Float[np.ndarray, "n h w 3"]) -> Float[Array, "n h8 w8 c"]:
        """VAE means of images in [0, 1], unscaled."""
        return in_runs(lambda run: self._encode(self.params["vae"], run[:, None] * 2 - 1)[:, 0], jnp.asarray(images))

    def decode_latents(self, z: Float[Array, "b f h w c"], chunk: int) -> Float[np.ndarray, "b f h8 w8 3"]:
        """Images in [0, 1]. Runs of `chunk` frames are decoded together; a run never spans two clips."""
        z = z / self.config.vae.scaling_factor
        decode = lambda run: np.asarray(self._decode(self.params["vae"], run))
        clips = [[decode(clip[None, i : i + chunk]) for i in range(0, clip.shape[0], chunk)] for clip in z]
        frames = np.concatenate([np.concatenate(runs, axis=1) for runs in clips])
        return np.clip(frames / 2 + 0.5, 0, 1)

    def denoise(
        self,
        noise: Float[Array, "b f h w c"],
        conditions: Float[Array, "b f h w d"],
        context: Array | list[Array],
        domain: Array | None,
        sampling: Sampling,
        bar: tqdm,
    ) -> Float[Array, "b f h w c"]:
        """Scaled latents, from unit noise and encoded conditions; arguments as `predict` takes them."""
        micro = np.array([sampling.fps - 1, sampling.motion_bucket_id, sampling.noise_aug_strength], np.float32)
        micro = np.tile(micro, (noise.shape[0], 1))  # SVD was trained with the frame rate less one
        arguments = (self.params["unet"], conditions, context, domain, micro)
        scales = diffusion.guidance_scales(sampling.guidance, noise.shape[1]) if max(sampling.guidance) > 1 else None
        schedule = self.config.scheduler
        if sampling.deterministic:
            latents = -self._predict(*arguments, scales, jnp.zeros_like(noise), np.float32(schedule.sigma_max))
            bar.update(sampling.num_steps)
            return latents

        def step(x, i, sigma, next_sigma):
            now = scales
            if sampling.dynamic_guidance and scales is not None:
                now = diffusion.dynamic_guidance_scales(scales, i, sampling.num_steps)
            following = self._step(*arguments, now, x, sigma, next_sigma)
            # Wait for the step before this one: progress stays honest, and the device never runs dry.
            jax.block_until_ready(x)
            bar.update()
            return following

        sigmas = diffusion.karras_sigmas(sampling.num_steps, schedule.sigma_min, schedule.sigma_max)
        return diffusion.sample(
            step, noise, sigmas, diffusion.initial_scale(schedule.sigma_max, schedule.timestep_spacing)
        )

    def initial_noise(self, noise: np.ndarray | None, seed: int, shape: tuple[int, ...]) -> Float[Array, "b f h w c"]:
        """The given unit noise, or that of the seed, which is the same on every device, for images of `shape`."""
        b, f, h, w = shape[:4]
        down = self.config.vae.downscale
        wanted = (b, f, h // down, w // down, self.config.vae.latent_channels)
        if noise is None:
            noise = jax.random.normal(jax.random.key(seed), wanted)
        if np.shape(noise) != wanted:
            raise InputError(f"noise has shape {np.shape(noise)}, but these images need {wanted}")
        # Committed to the parameters' device like the results of a step, which would else be compiled twice.
        return jax.device_put(jnp.asarray(noise, jnp.float32), jax.tree.leaves(self.params)[0].sharding)

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


def denoising_step(
    graphdef: nnx.GraphDef, params, conditions, context, domain, micro, scales, x, sigma, next_sigma
) -> Float[Array, "b f h w c"]:
    """One Euler step of the sampler."""
    prediction = predict(graphdef, params, conditions, context, domain, micro, scales, x, sigma)
    return diffusion.euler_step(x, diffusion.denoised(x, prediction, sigma), sigma, next_sigma)


def in_runs(fn: Callable, items: ArrayLike, run: int = ENCODE_RUN):
    """Applies `fn` to runs of at most `run` items, all of one length, so that one shape is compiled."""
    n = len(items)
    num_runs = -(-n // run)
    length = -(-n // num_runs)
    if num_runs == 1:
        return fn(items)
    filled = jnp.concatenate([items, jnp.repeat(items[-1:], num_runs * length - n, axis=0)])
    results = [fn(filled[i : i + length]) for i in range(0, len(filled), length)]
    return jax.tree.map(lambda *pieces: jnp.concatenate(pieces)[:n], *results)


def _method(graphdef: nnx.GraphDef, name: str) -> Callable:
    """One method of a network, compiled: (params, *arguments) -> result."""
    return jax.jit(lambda params, *arguments: getattr(nnx.merge(graphdef, params), name)(*arguments))


def cache_compilations() -> None:
    """Keeps compiled stages on disk between runs, unless the program or JAX_COMPILATION_CACHE_DIR says otherwise."""
    if jax.config.jax_compilation_cache_dir is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "drender" / "xla"))
