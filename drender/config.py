"""Frozen dataclasses that configure the models and the sampler, and their conversion from and to JSON.

Field names are those of the released `config.json` files. A released value that is one number or a list with an entry
per UNet level is always a list here.
"""

import contextlib
import dataclasses
import math
import operator
import reprlib
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from drender.errors import InputError, unknown_name_error

# Computation types, by the names of numpy and JAX.
DTYPES = ("float32", "bfloat16", "float16")
# The released domain table: the row of `context_embedding` that requests each G-buffer.
DOMAINS = {"basecolor": 0, "metallic": 1, "roughness": 2, "normal": 3, "depth": 4, "diffuse_albedo": 5}
# The default G-buffers of the inverse renderer.
DEFAULT_PASSES = ("basecolor", "metallic", "roughness", "normal", "depth")
# The order of the G-buffer latents in the input channels of the forward renderer's UNet.
CONDITIONS = ("basecolor", "normal", "depth", "roughness", "metallic")
# The order of the environment images in the input channels of the environment encoder.
ENVIRONMENT_LABELS = ("env_ldr", "env_log", "env_nrm")

# One number for all levels of the UNet, or one per level.
PerLevel = int | tuple[int, ...]

_CROSS_DOWN, _DOWN = "CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"
_CROSS_UP, _UP = "CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal"

# Shortens values in messages: YAML's aliases let a small file hold a value whose repr is endless.
SHORT = reprlib.Repr()
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother = 2, 100, 100


# --- ranges ----------------------------------------------------------------------------------------------------------

_COMPARISONS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


def bounded(default: Any = dataclasses.MISSING, **limits: int | float) -> Any:
    """Declare a field of finite numbers within limits: `at_least`, `above`, `at_most` or `below`.

    `check_ranges` enforces them. None is always allowed; in a tuple every number is checked.
    """
    return field(default=default, metadata={"limits": limits})


def check_ranges(config: Any, prefix: str = "") -> None:
    """Raise InputError for the first `bounded` number out of range, in a dataclass and those nested in its fields."""
    for f in dataclasses.fields(config):
        value, name = getattr(config, f.name), prefix + f.name
        limits = f.metadata.get("limits")
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{name}.")
        elif limits is not None and value is not None:
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(_in_range(number, limits) for number in numbers):
                expected = " and ".join(f"{word.replace('_', ' ')} {limit}" for word, limit in limits.items())
                raise InputError(f"{name}: expected {expected or 'a finite number'}, got {value}")


def _in_range(number: int | float, limits: dict[str, int | float]) -> bool:
    finite = -math.inf < number < math.inf
    return finite and all(_COMPARISONS[word](number, limit) for word, limit in limits.items())


# --- models ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UNetConfig:
    """The spatio-temporal UNet. Defaults are Stable Video Diffusion's, which the released configs leave out."""

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
                    f"UNet block_out_channels: expected multiples of the attention heads ({heads}) "
                    f"and of norm_num_groups ({self.norm_num_groups}), got {channels}"
                )

    def _per_level(self, name: str, levels: int) -> None:
        """Repeat a single number for all levels, and check the length of a list."""
        value = getattr(self, name)
        value = (value,) * levels if isinstance(value, int) else tuple(value)
        if len(value) != levels:
            raise InputError(f"UNet {name}: expected {levels} entries, as in block_out_channels, got {value}")
        object.__setattr__(self, name, value)


@dataclass(frozen=True)
class VAEConfig:
    """The video autoencoder with temporal decoder (`AutoencoderKLTemporalDecoder`)."""

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
    """The environment encoder, from latents (or pixels) of the environment images to a feature map per UNet level."""

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
    """One checkpoint: its networks, and how sampling combines them.

    Attributes:
      scale_cond_latents: multiply conditioning latents by the VAE's scaling factor.
      domains: row of the context embedding per G-buffer.
      conditions: G-buffers in the order of the forward UNet's input channels.
      size: height and width of the training images.
      frames: frames of a training clip.
      environment_size: height and width of the environment maps.
      deterministic: trained as a one-step model, which is also how it is sampled by default.
    """

    kind: Literal["inverse", "forward", "svd"]
    unet: UNetConfig = UNetConfig()
    vae: VAEConfig = VAEConfig()
    env_encoder: EnvEncoderConfig | None = None
    scheduler: SchedulerConfig = SchedulerConfig()
    scale_cond_latents: bool = False
    domains: dict[str, int] = field(default_factory=lambda: dict(DOMAINS))
    conditions: tuple[str, ...] = CONDITIONS
    size: tuple[int, int] = (512, 512)
    frames: int = 24
    environment_size: tuple[int, int] = (512, 512)
    deterministic: bool = False


# --- sampling --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """How to sample: keyword arguments of both renderers and options of `sample.py`.

    Attributes:
      num_steps: denoising steps.
      sampler: "euler" as released, "heun" (two network calls per step) or "dpm++" (DPM-Solver++(2M)).
      rho, sigma_min, sigma_max: noise schedule (EDM, eq. 5); None: 7 and the model's.
      guidance: classifier-free guidance scale, or one for the first and one for the last frame; used above 1.
      dynamic_guidance: let the guidance grow over the steps.
      fps, motion_bucket_id, noise_aug_strength: SVD's micro-conditioning. As in SVD, the last is also the standard
        deviation of Gaussian noise added to the conditioning images, in the VAE's range [-1, 1].
      frames: window length in frames; longer clips are denoised in overlapping windows. None: the model's.
      overlap: least number of frames that neighboring windows share; None: 6, at most half a window.
      decode_chunk_size: frames that the VAE decodes together.
      decode_overlap: frames over which decoded chunks are cross-faded; None: 0 as released for a clip of one window,
        else 2, at most half a chunk.
      seed: of the initial noise, which is the same for every pass and clip.
      deterministic: one step from zeros instead of num_steps, for one-step models.
    """

    num_steps: int = bounded(20, at_least=1)
    sampler: Literal["euler", "heun", "dpm++"] = "euler"
    rho: float | None = bounded(None, above=0)
    sigma_min: float | None = bounded(None, above=0)
    sigma_max: float | None = bounded(None, above=0)
    guidance: float | tuple[float, ...] = bounded((1.0, 1.0))
    dynamic_guidance: bool = False
    fps: float = bounded(7.0)
    motion_bucket_id: float = bounded(127.0)
    noise_aug_strength: float = bounded(0.0, at_least=0)
    frames: int | None = bounded(None, at_least=1)
    overlap: int | None = bounded(None, at_least=0)
    decode_chunk_size: int = bounded(8, at_least=1)
    decode_overlap: int | None = bounded(None, at_least=0)
    seed: int = bounded(0, at_least=0, below=2**63)
    deterministic: bool = False

    def __post_init__(self):
        check_ranges(self)
        for shared, length in (("overlap", "frames"), ("decode_overlap", "decode_chunk_size")):
            overlap, frames = getattr(self, shared), getattr(self, length)
            if overlap is not None and frames is not None and overlap >= frames:
                raise InputError(f"{shared}: expected less than {length} ({frames}), got {overlap}")
        if isinstance(self.guidance, float):
            object.__setattr__(self, "guidance", (self.guidance, self.guidance))
        if len(self.guidance) != 2:
            raise InputError(f"guidance: expected two numbers, for the first and the last frame, got {self.guidance}")


# --- JSON ------------------------------------------------------------------------------------------------------------


def from_dict(cls: type, data: dict, where: str, ignore_unknown: bool = False) -> Any:
    """Build a configuration dataclass from plain JSON values.

    Args:
      cls: one of the dataclasses above.
      data: keys and values; absent keys take the defaults.
      where: file or option that `data` comes from, for messages.
      ignore_unknown: drop unknown keys, which released files carry, instead of failing.

    Raises:
      InputError: an unknown key (with the nearest known one), or a value of the wrong type.
    """
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a mapping of names to values, got {type(data).__name__}")
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
    """Return a configuration as plain JSON values, which `from_dict` reads back."""
    return dataclasses.asdict(config)


def _required(f: dataclasses.Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Convert a JSON value to the type `hint`, or raise an InputError that names both."""
    if isinstance(value, np.generic):
        value = value.item()
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        # Only one member of the union takes lists, and only one takes mappings.
        members = [member for member in args if member is not type(None)]
        container = tuple if isinstance(value, (list, tuple)) else dict if isinstance(value, dict) else None
        matching = [member for member in members if typing.get_origin(member) is container]
        return _convert((matching or members)[0], value, where)
    if hint is Any:
        return value
    if origin is Literal:
        if value in args:
            return value
        raise InputError(f"{where}: expected one of {', '.join(map(repr, args))}, got {SHORT.repr(value)}")
    if origin is tuple:
        if isinstance(value, (list, tuple)):
            if args[-1] is not Ellipsis and len(value) != len(args):
                raise InputError(f"{where}: expected {len(args)} values, got {len(value)}: {SHORT.repr(value)}")
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
    raise InputError(f"{where}: expected {hint if origin else hint.__name__}, got {SHORT.repr(value)}")
