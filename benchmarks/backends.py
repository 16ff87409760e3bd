"""The backends of speed.py: the stages of a renderer in drender, and the same arithmetic in PyTorch."""

import contextlib
import ctypes
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import plan

from drender import diffusion
from drender.checkpoints import convert, orbax
from drender.config import RendererConfig
from drender.models.params import flatten
from drender.renderers.windows import concat_frames

STAGES = {"inverse": ("encode", "denoise", "decode"), "forward": ("environment", "denoise")}
PASS, GUIDANCE = "normal", (1.2, 1.2)
MICRO = (6.0, 127.0, 0.0)  # micro-conditioning of the default options: fps − 1, motion bucket, noise strength
CHUNK = 8  # frames that the VAE decodes together
GIB = 2**30


class Inputs:
    """Random inputs, the same for every backend."""

    def __init__(self, config: RendererConfig, args):
        rng = np.random.default_rng(0)
        grid = args.frames, *(side // config.vae.downscale for side in args.size)

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, np.float32)

        c = config.vae.latent_channels
        self.rgb = rng.random((args.frames, *args.size, 3), np.float32)
        self.noise, self.latents = normal(1, *grid, c), normal(1, *grid, c * 5)[..., : config.unet.in_channels - c]
        if config.env_encoder is not None:
            height, width = config.environment_size
            scale = config.vae.downscale if config.env_encoder.latent_encoder else 1
            self.light = normal(1, args.frames, height // scale, width // scale, config.env_encoder.in_channels)


def peak_resident() -> float:
    """Return the peak memory of this process since `reset_peak_memory`, in GiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def reset_peak_memory() -> None:
    """Return freed memory to the system, and reset the peak that the kernel counts."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):  # some sandboxes have no such file; a GPU's memory is counted without it
            Path("/proc/self/clear_refs").write_text("5")


def processor_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} cores of {names[0] if names else platform.machine()}"


# --- drender ---------------------------------------------------------------------------------------------------------


class DrenderBackend:
    """A renderer of this package."""

    def __init__(self, path: Path, kind: str, args):
        self.renderer = plan.RENDERERS[kind].load(path, args.dtype, lora_scale=0.0)
        self.kind, self.inputs = kind, Inputs(self.renderer.config, args)
        self.sampling = self.renderer.sampling({"num_steps": args.steps, "frames": args.frames, "deterministic": False})
        jax.block_until_ready(self.renderer.params)

    def encode(self):
        return self.renderer.encode_images(self.inputs.rgb)

    def decode(self):
        return concat_frames(self.renderer.decode_latents(self.inputs.noise, CHUNK))

    def environment(self):
        tokens = self.renderer.environment_tokens(self.inputs.light)
        return np.concatenate([np.asarray(level, np.float32).ravel() for level in tokens])

    def denoise(self):
        noise, latents = self.inputs.noise, self.inputs.latents
        if self.kind == "inverse":
            ((_, result),) = self.renderer.estimate(latents, [PASS], self.sampling, noise, progress=False)
        else:
            names = self.renderer.config.conditions
            conditions = dict(zip(names, np.split(latents, len(names), axis=-1), strict=True))
            result = self.renderer.render(conditions, self.inputs.light[:, :1], self.sampling, noise, progress=False)
        return np.asarray(result.blended())

    def peak(self):
        """Return the TFLOP/s of a large matrix product, the fastest of five."""
        n = 1024 if jax.devices()[0].platform == "cpu" else 8192
        x = jnp.asarray(np.random.default_rng(0).standard_normal((n, n), np.float32), self.dtype)
        jax.block_until_ready(_matmul(x, x))
        times = []
        for _ in range(5):
            began = time.perf_counter()
            jax.block_until_ready([_matmul(x, x) for _ in range(5)])
            times.append((time.perf_counter() - began) / 5)
        return np.float64(2 * n**3 / min(times) / 1e12)

    @property
    def dtype(self):
        return jax.tree.leaves(self.renderer.params)[0].dtype

    def about(self) -> str:
        device = jax.devices()[0]
        name = processor_name() if device.platform == "cpu" else device.device_kind
        return f"{name}, {self.dtype}, jax {jax.__version__}"

    def reset_memory(self) -> None:
        """Reset the peak memory. JAX cannot reset a GPU's."""
        reset_peak_memory()

    def memory(self) -> float:
        stats = jax.devices()[0].memory_stats()
        return stats["peak_bytes_in_use"] / GIB if stats else peak_resident()


_matmul = jax.jit(jnp.matmul)


# --- PyTorch ---------------------------------------------------------------------------------------------------------


class TorchBackend:
    """The released pipeline's arithmetic with unmodified diffusers modules."""

    compiles = False

    def __init__(self, path: Path, kind: str, args):
        import diffusers
        import torch
        from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D

        diffusers.utils.logging.set_verbosity_error()
        self.torch, self.kind, self.steps = torch, kind, args.steps
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = getattr(torch, args.dtype or ("float32" if self.device == "cpu" else "bfloat16"))
        config = self.config = orbax.load_config(path)
        self.inputs = Inputs(config, args)
        if {config.unet.norm_num_groups, config.vae.norm_num_groups} != {32}:
            raise ValueError(f"norm_num_groups: diffusers modules need 32, got {config.unet.norm_num_groups}")

        weights = self._weights(path, "unet")
        if kind == "inverse":
            row = weights.pop("context_embedding.weight")[config.domains[PASS]].float()
            self.token = (row * min(1.0, 10 / float(row.norm() + 1e-7)))[None, None].to(self.dtype)
        unet = {name: getattr(config.unet, name) for name in UNET_OPTIONS}
        with torch.device("meta"):
            self.unet = diffusers.UNetSpatioTemporalConditionModel(**unet)
            vae = {name: getattr(config.vae, name) for name in VAE_OPTIONS}
            downs = ("DownEncoderBlock2D",) * len(config.vae.block_out_channels)
            self.vae = diffusers.AutoencoderKLTemporalDecoder(**vae, down_block_types=downs)
            self.light = torch.nn.Module()
            if encoder := config.env_encoder:
                levels, layers = encoder.channels, encoder.num_res_blocks
                self.light.conv_in = torch.nn.Conv2d(encoder.in_channels, levels[0], 3, padding=1)
                self.light.down_blocks = torch.nn.ModuleList(
                    DownEncoderBlock2D(levels[max(i - 1, 0)], c, num_layers=layers, add_downsample=i > 0)
                    for i, c in enumerate(levels)
                )
        if kind == "forward":
            self._add_environment_attention()
        self._load(self.unet, weights)
        self._load(self.vae, self._weights(path, "vae"))
        if config.env_encoder:
            self._load(self.light, self._weights(path, "env_encoder"))
        if self.compiles:
            for module in self.unet.modules():
                if isinstance(module, torch.nn.Conv2d):  # other layers have no channels-last layout
                    module.to(memory_format=torch.channels_last)
            self.unet = torch.compile(self.unet)
            self.vae.encode, self.vae.decode = torch.compile(self.vae.encode), torch.compile(self.vae.decode)
        schedule = config.scheduler
        self.sigmas = diffusion.karras_sigmas(args.steps, schedule.sigma_min, schedule.sigma_max).tolist()
        self.scale = diffusion.initial_scale(schedule.sigma_max, schedule.timestep_spacing)

    def _weights(self, path: Path, name: str) -> dict:
        """Return tensors by torch name, in the compute dtype. Only one copy of all weights exists at a time."""
        with jax.default_device(jax.devices("cpu")[0]):
            leaves = flatten(orbax.load(path, name, None, str(self.dtype).removeprefix("torch.")))
        tensors = {}
        for key in list(leaves):
            x = np.ascontiguousarray(convert.to_torch(key, np.asarray(leaves.pop(key))))
            half = x.dtype.name == "bfloat16"  # torch cannot read it from numpy
            tensor = self.torch.tensor(x.view(np.int16) if half else x).to(self.device)
            tensors[convert.torch_name(key)] = tensor.view(self.torch.bfloat16) if half else tensor
        return tensors

    def _load(self, module, weights: dict) -> None:
        module.load_state_dict(weights, assign=True)
        module.eval().requires_grad_(False)

    def _add_environment_attention(self) -> None:
        """Turn the UNet into the forward renderer's: tokens per level and frame, no temporal cross-attention."""
        levels = len(self.config.unet.block_out_channels)
        self.tokens = [None] * levels
        for name, module in self.unet.named_modules():
            part, _, rest = name.partition(".")
            if name.endswith(".temporal_transformer_blocks.0"):
                module.attn2 = module.norm2 = None
            elif name.endswith(".transformer_blocks.0"):
                index = levels - 1 if part == "mid_block" else int(rest.partition(".")[0])
                level = levels - 1 - index if part == "up_blocks" else index

                def set_tokens(_, args, kwargs, level=level):
                    return args, kwargs | {"encoder_hidden_states": self.tokens[level]}

                module.register_forward_pre_hook(set_tokens, with_kwargs=True)

    def _in(self, x: np.ndarray):
        return self.torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, -3))).to(self.device)

    def _out(self, x) -> np.ndarray:
        return np.moveaxis(x.float().cpu().numpy(), -3, -1)

    def encode(self):
        x = self._in(self.inputs.rgb).to(self.dtype) * 2 - 1
        chunks = [self.vae.encode(chunk).latent_dist.mode() for chunk in x.split(CHUNK)]
        return self._out(self.torch.cat(chunks))

    def decode(self):
        z = (self._in(self.inputs.noise)[0] / self.config.vae.scaling_factor).to(self.dtype)
        chunks = [
            self.vae.decode(z[i : i + CHUNK], num_frames=len(z[i : i + CHUNK])).sample for i in range(0, len(z), CHUNK)
        ]
        return np.clip(self._out(self.torch.cat(chunks)[None]) / 2 + 0.5, 0, 1)

    def _tokens(self, light: np.ndarray) -> list:
        x, levels = self.light.conv_in(self._in(light)[0].to(self.dtype)), []
        for block in self.light.down_blocks:
            x = block(x)
            levels.append(x.flatten(2).mT)
        return levels

    def environment(self):
        return np.concatenate([level.float().cpu().numpy().ravel() for level in self._tokens(self.inputs.light)])

    def denoise(self):
        torch, guided = self.torch, self.kind == "forward"
        x, latents = self._in(self.inputs.noise) * self.scale, self._in(self.inputs.latents).to(self.dtype)
        micro = torch.tensor([MICRO] * (1 + guided), device=self.device, dtype=self.dtype)
        if guided:
            # Latents and tokens of the unconditional half are zero.
            latents = torch.cat([latents, torch.zeros_like(latents)])
            tokens = [level.expand(x.shape[1], -1, -1) for level in self._tokens(self.inputs.light[:, :1])]
            self.tokens = [torch.cat([level, torch.zeros_like(level)]) for level in tokens]
            context = torch.zeros(2, 1, 1, device=self.device, dtype=self.dtype)
        else:
            context = self.token.to(self.device)
        for sigma, following in zip(self.sigmas[:-1], self.sigmas[1:], strict=True):
            scaled = (x / (sigma**2 + 1) ** 0.5).to(self.dtype)
            rows = torch.cat([scaled.expand(len(latents), *x.shape[1:]), latents], dim=2)
            time = torch.tensor(float(np.log(sigma) / 4), device=self.device)
            prediction = self.unet(rows, time, context, micro, return_dict=False)[0].float()
            if guided:
                conditional, unconditional = prediction.chunk(2)
                prediction = unconditional + GUIDANCE[0] * (conditional - unconditional)
            x0 = -sigma / (sigma**2 + 1) ** 0.5 * prediction + x / (sigma**2 + 1)
            x = x + (following - sigma) * (x - x0) / sigma
        return self._out(x)

    def about(self) -> str:
        return f"torch {self.torch.__version__}, diffusers {metadata.version('diffusers')}"

    def reset_memory(self) -> None:
        """Reset the peak memory."""
        if self.device == "cuda":
            self.torch.cuda.reset_peak_memory_stats()
        reset_peak_memory()

    def memory(self) -> float:
        return self.torch.cuda.max_memory_allocated() / GIB if self.device == "cuda" else peak_resident()


class CompiledTorchBackend(TorchBackend):
    """The same modules through `torch.compile`."""

    compiles = True


UNET_OPTIONS = (
    "in_channels", "out_channels", "block_out_channels", "down_block_types", "up_block_types", "layers_per_block",
    "transformer_layers_per_block", "num_attention_heads", "cross_attention_dim", "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
)  # fmt: skip
VAE_OPTIONS = ("in_channels", "out_channels", "latent_channels", "block_out_channels", "layers_per_block")
BACKENDS = {"drender": DrenderBackend, "torch": TorchBackend, "torch.compile": CompiledTorchBackend}
