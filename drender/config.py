"""What every model is made of, as frozen dataclasses, and their way from and to JSON.

Field names are those of the released `config.json` files, so that a reader of one knows the other. Where the released
files hold one number or a list with one entry per level, we hold the list.
"""

import contextlib
import dataclasses
import math
import reprlib
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from drender.errors import InputError, unknown_name_error

# The released domain table: which row of `context_embedding` asks for which G-buffer.
DOMAINS = {"basecolor": 0, "metallic": 1, "roughness": 2, "normal": 3, "depth": 4, "diffuse_albedo": 5}
# What the inverse renderer estimates unless told otherwise.
DEFAULT_PASSES = ("basecolor", "metallic", "roughness", "normal", "depth")
# The order in which the forward renderer's UNet takes its G-buffer latents.
CONDITIONS = ("basecolor", "normal", "depth", "roughness", "metallic")
# The order in which the environment encoder takes its images.
ENVIRONMENT_LABELS = ("env_ldr", "env_log", "env_nrm")

# One number for all levels of the UNet, or one for each.
PerLevel = int | tuple[int, ...]

_CROSS_DOWN, _DOWN = "CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"
_CROSS_UP, _UP = "CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal"

SHORT = reprlib.Repr()  # of values in messages: with YAML's aliases a small file can hold one that is endless in print
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother = 2, 100, 100


@dataclass(frozen=True)
class UNetConfig:
    """The spatio-temporal UNet. The defaults are Stable Video Diffusion's, and what the released configs leave out."""

    in_channels: int = 8
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = (_CROSS_DOWN, _CROSS_DOWN, _CROSS_DOWN, _DOWN)
    up_block_types: tuple[str, ...] = (_UP, _CROSS_UP, _CROSS_UP, _CROSS_UP)
    layers_per_block: PerLevel = (2, 2, 2, 2)
    transformer_layers_per_block: PerLevel = (1, 1, 1, 1)
    num_attention_heads: PerLevel = (5, 10, 20, 20)
    cross_attention_dim: PerLevel = (1024, 1024, 1024, 1024)
    temporal_cross_attention_dim: int | None = 1024  # None: temporal blocks have no cross-attention
    addition_time_embed_dim: int = 256
    projection_class_embeddings_input_dim: int = 768
    multi_res_encoder_hidden_states: bool = False  # the context is a list, one entry per level
    context_embedding_type: Literal["clip"] | None = None  # "clip": a learned domain embedding is added to the context
    context_vocab_size: int = 16
    norm_num_groups: int = 32
    num_frames: int = 25  # clip length the model was trained on; the network itself takes any
    sample_size: int = 64

    def __post_init__(self):
        levels = len(self.block_out_channels)
        for name in ("layers_per_block", "transformer_layers_per_block", "num_attention_heads", "cross_attention_dim"):
            self._per_level(name, levels)
        for name, allowed in (("down_block_types", (_CROSS_DOWN, _DOWN)), ("up_block_types", (_CROSS_UP, _UP))):
            self._per_level(name, levels)
            for kind in getattr(self, name):
                if kind not in allowed:
                    raise unknown_name_error(f"UNet {name} entry", kind, allowed)
        for channels, heads in zip(self.block_out_channels, self.num_attention_heads, strict=True):
            if channels % heads or channels % self.norm_num_groups:
                raise InputError(
                    f"UNet block_out_channels: {channels} is not divisible by its {heads} attention heads "
                    f"and norm_num_groups {self.norm_num_groups}"
                )

    def _per_level(self, name: str, levels: int) -> None:
        """Spreads a single number over all levels, and checks the length of a list."""
        value = getattr(self, name)
        value = (value,) * levels if isinstance(value, int) else tuple(value)
        if len(value) != levels:
            raise InputError(
                f"UNet {name} has {len(value)} entries {value}, but block_out_channels has {levels} levels"
            )
        object.__setattr__(self, name, value)


@dataclass(frozen=True)
class VAEConfig:
    """The video auto-encoder with temporal decoder (`AutoencoderKLTemporalDecoder`)."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2  # in the encoder; the decoder has one more
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    sample_size: int = 768

    @property
    def downscale(self) -> int:
        """Pixels per latent along each side."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class EnvEncoderConfig:
    """The environment encoder: latents (or pixels) of the environment images to one feature map per UNet level."""

    in_channels: int = 12
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    latent_encoder: bool = True  # False: pixels enter through a small conv stem
    in_labels: tuple[str, ...] = ENVIRONMENT_LABELS
    norm_num_groups: int = 32


@dataclass(frozen=True)
class SchedulerConfig:
    """The noise schedule (EDM with Karras sigmas, Karras et al. 2022, eq. 5)."""

    sigma_min: float = 0.002
    sigma_max: float = 700.0
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"


@dataclass(frozen=True)
class RendererConfig:
    """One checkpoint: its networks and how they work together."""

    kind: Literal["inverse", "forward", "svd"]
    unet: UNetConfig = UNetConfig()
    vae: VAEConfig = VAEConfig()
    env_encoder: EnvEncoderConfig | None = None
    scheduler: SchedulerConfig = SchedulerConfig()
    scale_cond_latents: bool = False  # are conditioning latents multiplied by the VAE's scaling factor?
    domains: dict[str, int] = field(default_factory=lambda: dict(DOMAINS))
    conditions: tuple[str, ...] = CONDITIONS
    size: tuple[int, int] = (512, 512)  # height and width, and
    frames: int = 24  # number of the frames that it was trained with
    environment_size: tuple[int, int] = (512, 512)  # height, width of the environment maps it was trained with
    deterministic: bool = False  # trained to predict in one step from zeros: sampled so unless told otherwise


# The least values of what can be too little.
LEAST = {
    "num_steps": 1, "frames": 1, "overlap": 0, "decode_chunk_size": 1, "decode_overlap": 0, "seed": 0,
    "noise_aug_strength": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Sampling:
    """How to sample; keyword arguments of both renderers and options of `sample.py`.

    Attributes:
      num_steps: steps from noise to image.
      sampler: "euler" as released, "heun" (two calls of the network per step) or "dpm++" (DPM-Solver++(2M)).
      rho, sigma_min, sigma_max: of the noise levels (EDM, eq. 5); None: 7, and the model's.
      guidance: classifier-free guidance scale, or one for the first and one for the last frame; used when over 1.
      dynamic_guidance: lets the guidance grow over the steps.
      fps, motion_bucket_id, noise_aug_strength: SVD's micro-conditioning; the last also adds Gaussian noise of that
        strength to the images that condition, in the VAE's range [-1, 1], as SVD does.
      frames, overlap: a clip of more than so many frames is denoised in windows, neighbours of which share so many or
        more; None: the model's, and 6, but at most half a window.
      decode_chunk_size, decode_overlap: frames that the VAE decodes together, and those that such runs share and fade
        over; None: none, as released, for a clip of one window, else 2, but at most half a run.
      seed: of the initial noise, the same for every pass and clip.
      deterministic: one step from zeros instead of num_steps, for models trained so.
    """

    num_steps: int = 20
    sampler: Literal["euler", "heun", "dpm++"] = "euler"
    rho: float | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    guidance: float | tuple[float, ...] = (1.0, 1.0)
    dynamic_guidance: bool = False
    fps: float = 7.0
    motion_bucket_id: float = 127.0
    noise_aug_strength: float = 0.0
    frames: int | None = None
    overlap: int | None = None
    decode_chunk_size: int = 8
    decode_overlap: int | None = None
    seed: int = 0
    deterministic: bool = False

    def __post_init__(self):
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise InputError(f"{name} is {value}; it must be {least} or more")
        for name in ("rho", "sigma_min", "sigma_max"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} is {value}; it must be more than 0")
        for shared, length in (("overlap", "frames"), ("decode_overlap", "decode_chunk_size")):
            n, most = getattr(self, shared), getattr(self, length)
            if n is not None and most is not None and n >= most:
                raise InputError(f"{shared} is {n}; it must be less than the {most} of {length}")
        if self.seed >= 2**63:
            raise InputError(f"seed is {self.seed}; it must be less than 2**63")
        for name in ("fps", "motion_bucket_id", "noise_aug_strength"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"{name} is {getattr(self, name)}; it must be a number")
        if isinstance(self.guidance, float):
            object.__setattr__(self, "guidance", (self.guidance, self.guidance))
        if len(self.guidance) != 2 or not all(math.isfinite(g) for g in self.guidance):
            raise InputError(f"guidance is {self.guidance}; expected two numbers, for the first and the last frame")


def from_dict(cls: type, data: dict, where: str, ignore_unknown: bool = False) -> Any:
    """Fills a configuration dataclass from plain JSON values.

    Args:
      cls: one of the dataclasses above.
      data: keys and values; absent keys take the defaults.
      where: file or option that `data` comes from, for messages.
      ignore_unknown: drop keys that nobody uses (released files carry some) instead of failing.
    Raises:
      InputError: an unknown key (with the nearest known one), or a value of the wrong type.
    """
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a mapping of names to values, found {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in data.items():
        if key not in hints:
            if ignore_unknown:
                continue
            raise InputError(f"{where}: {unknown_name_error('key', str(key), hints)}")
        values[key] = _convert(hints[key], value, f"{where}: {key}")
    missing = [f.name for f in dataclasses.fields(cls) if f.name not in values and _required(f)]
    if missing:
        raise InputError(f"{where}: missing key {missing[0]!r}")
    return cls(**values)


def to_dict(config: Any) -> dict:
    """The plain JSON values of a configuration; `from_dict` reads them back."""
    return dataclasses.asdict(config)


def _required(f: dataclasses.Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`, or an InputError that names both."""
    if isinstance(value, np.generic):
        value = value.item()
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        # A list can only be meant for the member that takes lists, a mapping for the one that takes mappings.
        members = [a for a in args if a is not type(None)]
        shape = tuple if isinstance(value, (list, tuple)) else dict if isinstance(value, dict) else None
        fitting = [a for a in members if typing.get_origin(a) is shape]
        return _convert((fitting or members)[0], value, where)
    if hint is Any:
        return value
    if origin is Literal:
        if value in args:
            return value
        raise InputError(f"{where}: {SHORT.repr(value)} is none of {', '.join(map(repr, args))}")
    if origin is tuple:
        if isinstance(value, (list, tuple)):
            if args[-1] is not Ellipsis and len(value) != len(args):
                raise InputError(f"{where}: expected {len(args)} values, found {len(value)}: {SHORT.repr(value)}")
            return tuple(_convert(args[0], item, where) for item in value)
    elif origin is dict:
        if isinstance(value, dict):
            return {_convert(args[0], k, where): _convert(args[1], v, where) for k, v in value.items()}
    elif dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer of hundreds of digits
            return float(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise InputError(f"{where}: expected {hint if origin else hint.__name__}, found {SHORT.repr(value)}")


DTYPES = ("float32", "bfloat16", "float16")
