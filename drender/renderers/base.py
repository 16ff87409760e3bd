"""Encode, denoise, decode: the stages that both renderers run, each compiled once per shape.

Outside the networks everything is float32. Pixels are on the device a run of frames at a time, latents a window.
"""

import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int
from tqdm import tqdm

from drender import assets, diffusion
from drender.checkpoints import orbax
from drender.config import DTYPES, RendererConfig, Sampling, from_dict
from drender.errors import InputError, unknown_name_error
from drender.models import lora
from drender.models.params import abstract_module
from drender.models.registry import NETWORKS
from drender.renderers import denoiser
from drender.renderers.windows import WindowedLatents, cross_fade, match_range, plan_windows, whole
from drender.sharding import SINGLE_DEVICE, DeviceGroup, cache_compilations, compiler_options, constrain, use_mesh

# Frames that go through an encoder at a time: enough to fill a GPU, few enough for its memory.
ENCODE_RUN = 8


class Renderer:
    """Networks, parameters and the stages; `renderers.py` has the two kinds."""

    kind: str
    # Set by another thread, it ends what is being sampled in this one, with a KeyboardInterrupt.
    stopped = threading.Event()

    def __init__(self, config: RendererConfig, params: Mapping[str, dict], team: DeviceGroup = SINGLE_DEVICE):
        """
        Args:
          params: nested dicts of arrays per component, on all devices; their dtype is the one that is computed in.
          team: the devices that share a clip, if there are several.
        """
        self.config, self.params, self.team = config, dict(params), team
        graphs = {name: abstract_module(NETWORKS[name], getattr(config, name))[0] for name in params}
        platform = team.devices[0].platform if team.devices else jax.default_backend()
        compiled = functools.partial(
            jax.jit,
            static_argnames="split",
            out_shardings=team.replicated,  # results are small beside what they are made of, and are needed whole
            compiler_options=compiler_options(platform) or None,
        )
        self._encode = compiled(_method(graphs["vae"], "encode"))
        self._decode = compiled(_method(graphs["vae"], "decode"))
        if "unet" in graphs:
            self._clean = compiled(functools.partial(denoiser.denoise, graphs["unet"]))
        if "env_encoder" in graphs:
            self._encode_light = compiled(_method(graphs["env_encoder"], "__call__"))

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        dtype: str | None = None,
        device: jax.Device | Sequence[jax.Device] | None = None,
        lora_scale: float = 1.0,
    ) -> "Renderer":
        """Loads a converted checkpoint.

        Args:
          path: folder written by `convert_weights.py`; None: the small model that comes with the package.
          dtype: what to compute in, "float32", "bfloat16" or "float16"; None: float32 on a CPU, else bfloat16.
          device: where; several share every clip, and each holds the parameters; None: the default device.
          lora_scale: how much to merge of the factors trained on real footage, where the checkpoint has them.
        Raises:
          InputError: no such checkpoint, one of another kind, or an unknown dtype.
        """
        cache_compilations()
        devices = (device,) if isinstance(device, jax.Device) else tuple(device or jax.devices()[:1])
        dtype = dtype or ("float32" if devices[0].platform == "cpu" else "bfloat16")
        if dtype not in DTYPES:
            raise unknown_name_error("dtype", dtype, DTYPES)
        path = path or assets.checkpoint(cls.kind)
        config = cls.load_config(path)
        with jax.default_device(devices[0]):
            params = cls._load_params(path, config, dtype)
            if lora_scale and "unet" in params and "lora" in orbax.components(path):
                params["unet"] = lora.merge(params["unet"], orbax.load(path, "lora"), lora_scale)
            team = DeviceGroup(devices)
            return cls(config, jax.device_put(params, team.replicated), team)

    @classmethod
    def load_config(cls, path: str | Path) -> RendererConfig:
        """The configuration of a converted checkpoint, without its weights; InputError if it is of another kind."""
        config = orbax.load_config(path)
        if config.kind != cls.kind:
            raise InputError(f"{path} holds a {config.kind!r} model, but the {cls.kind} renderer needs {cls.kind!r}")
        return config

    @classmethod
    def _load_params(cls, path: str | Path, config: RendererConfig, dtype: str) -> dict[str, dict]:
        names = [name for name in NETWORKS if getattr(config, name) is not None]
        abstract = {name: abstract_module(NETWORKS[name], getattr(config, name))[1] for name in names}
        return {name: orbax.load(path, name, abstract[name], dtype) for name in names}

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
        encode = lambda run: self._shared(self._encode, "vae", run[:, None] * 2 - 1)[:, 0]
        return map_in_batches(encode, images, len(self.team))

    def _shared(self, stage: Callable, network: str, rows: Float[ArrayLike, "b f ..."]):
        """What a stage makes of rows of frames, which the team shares."""
        split = self.team.split(*rows.shape[:2])
        return stage(self.params[network], constrain(rows, split), split)

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
        # Every device decodes a run of its own; a shorter last one they share.
        rows = itertools.groupby((clip[None, run] for run in runs for clip in z), np.shape)
        groups = [group for _, alike in rows for group in batched(list(alike), len(self.team))]
        decode = lambda group: self._shared(self._decode, "vae", np.concatenate(group))
        decoded = itertools.chain.from_iterable(prefetch_to_host(map(decode, groups)))
        pieces = (np.stack(list(itertools.islice(decoded, len(z)))) for _ in runs)
        for frames in cross_fade(runs, pieces):
            yield np.clip(frames / 2 + 0.5, 0, 1)

    def decode(
        self, latents: WindowedLatents, sampling: Sampling, match: bool = False
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
        domain: Int[ArrayLike, " b"] | None,
        sampling: Sampling,
        bar: tqdm,
    ) -> WindowedLatents:
        """Scaled latents, from unit noise and encoded conditions; domain as `diffusion.clean` takes it.

        A long clip's windows are denoised together: at every noise level their x̂₀ are faded into one another over the
        frames that they share, and the clip as a whole takes the step (MultiDiffusion, Bar-Tal et al. 2023, over time).
        It stays on the host meanwhile; a device holds a window.

        Args:
          context: of the frames of a window, as `diffusion.clean` takes it.
        """
        b, f = noise.shape[:2]
        windows = plan_windows(f, sampling.frames, sampling.overlap)
        # SVD was trained with the frame rate less one.
        micro = np.array([sampling.fps - 1, sampling.motion_bucket_id, sampling.noise_aug_strength], np.float32)
        guided = max(sampling.guidance) > 1
        scales = diffusion.guidance_scales(sampling.guidance, f)
        sigmas = self.sigmas(sampling)
        # As many windows at a time as give every device a row; one is no more than the device would hold alone.
        together = len(self.team) // math.gcd(len(self.team), b * (1 + guided))
        groups = batched(windows, together)
        joined = lambda *rows: rows[0] if len(rows) == 1 else jnp.concatenate(rows)
        if len(windows) == 1:
            of_windows = lambda array, group: array
            # Committed to where the steps' results are, for which else all is compiled again.
            noise, conditions = jax.device_put((noise, conditions), jax.tree.leaves(self.params)[0].sharding)
        else:
            of_windows = lambda array, group: (
                array[:, group[0]] if len(group) == 1 else np.concatenate([array[:, window] for window in group])
            )
            noise, conditions = np.asarray(noise), np.asarray(conditions)

        def pieces(x, i) -> list[ArrayLike]:
            now = diffusion.cosine_guidance(scales, i, len(sigmas) - 1) if sampling.dynamic_guidance else scales
            cleaned = []
            for group in groups:
                if self.stopped.is_set():
                    raise KeyboardInterrupt
                x0 = self._clean(
                    self.params["unet"],
                    of_windows(conditions, group),
                    jax.tree.map(joined, *map(context, group)),
                    None if domain is None else np.tile(domain, len(group)),
                    np.tile(micro, (b * len(group), 1)),
                    np.repeat([now[window] for window in group], b, axis=0) if guided else None,
                    of_windows(x, group),
                    sigmas[i],
                    self.team.split(b * len(group) * (1 + guided), windows[0].stop),
                )
                cleaned.append(x0)
                # Wait for what came before: progress stays honest, and the device never runs dry.
                jax.block_until_ready(cleaned[-2] if len(cleaned) > 1 else x)
                bar.update(len(group))
            of_each = lambda x0, group: [x0] if len(group) == 1 else np.split(np.asarray(x0), len(group))
            return [piece for found in zip(cleaned, groups, strict=True) for piece in of_each(*found)]

        clean = lambda x, i: WindowedLatents(windows, pieces(x, i)).blended()
        if sampling.deterministic:
            x = jnp.zeros_like(noise) if len(windows) == 1 else np.zeros_like(noise)
        else:
            schedule = self.config.scheduler
            x = noise * np.float32(diffusion.initial_scale(float(sigmas[0]), schedule.timestep_spacing))
        # From the last level all samplers go to x̂₀.
        x = diffusion.SAMPLERS[sampling.sampler](clean, x, sigmas[:-1])
        return WindowedLatents(windows, pieces(x, len(sigmas) - 2))

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


def map_in_batches(fn: Callable, items: Float[np.ndarray, "n ..."], devices: int = 1):
    """Applies `fn` to runs of at most ENCODE_RUN items per device, all of one length, so that one shape is compiled.

    Returns numpy arrays, in the tree that `fn` returns.
    """
    n = len(items)
    num_runs = -(-n // (ENCODE_RUN * devices))
    length = -(-n // (num_runs * devices)) * devices
    filled = np.concatenate([items, np.repeat(items[-1:], num_runs * length - n, axis=0)])
    results = prefetch_to_host(map(fn, np.split(filled, num_runs)))
    return jax.tree.map(lambda *pieces: np.concatenate(pieces)[:n], *results)


def batched(items: Sequence, n: int) -> list[Sequence]:
    """Items in order, n at a time."""
    return [items[i : i + n] for i in range(0, len(items), n)]


def prefetch_to_host(results: Iterator) -> Iterator:
    """Results of the device, on the host; it works at each while the one before is seen to."""
    for result, _ in itertools.pairwise(itertools.chain(results, [None])):
        yield jax.tree.map(np.asarray, result)


def _method(graphdef: nnx.GraphDef, name: str) -> Callable:
    """One method of a network: (params, rows of frames, how a team shares them) -> result."""

    def method(params, rows, split=None):
        with use_mesh(split and split.mesh):
            return getattr(nnx.merge(graphdef, params), name)(constrain(rows, split))

    return method
