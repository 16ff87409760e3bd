"""Frozen dataclasses that configure the models and the sampler, in the names of released files.

Field names are those of the released `config.json` files. A released value that is one number or a list with an entry
per UNet level is always a list here.
"""

import functools
from dataclasses import dataclass
from typing import Literal

from drender.errors import InputError, unknown_name_error
from drender.fields import bounded, check_ranges

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


_CROSS_DOWN, _DOWN = "CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"
_CROSS_UP, _UP = "CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal"


# --- models ----------------------------------------------------------------------------------------------------------

# Far beyond all models of this kind; larger numbers come from damaged or hostile files.
MAX_SIZE, MAX_DEPTH, MAX_LEVELS = 2**16, 64, 8
_size = functools.partial(bounded, at_least=1, at_most=MAX_SIZE)
_depth = functools.partial(bounded, at_least=1, at_most=MAX_DEPTH)


@dataclass(frozen=True)
class UNetConfig:
    """The spatio-temporal UNet. Defaults are Stable Video Diffusion's, which the released configs leave out."""

    in_channels: int = _size(8)
    out_channels: int = _size(4)
    block_out_channels: tuple[int, ...] = _size((320, 640, 1280, 1280), items=MAX_LEVELS)
    down_block_types: tuple[str, ...] = (_CROSS_DOWN, _CROSS_DOWN, _CROSS_DOWN, _DOWN)
    up_block_types: tuple[str, ...] = (_UP, _CROSS_UP, _CROSS_UP, _CROSS_UP)
    layers_per_block: int | tuple[int, ...] = _depth((2, 2, 2, 2))
    transformer_layers_per_block: int | tuple[int, ...] = _depth((1, 1, 1, 1))
    num_attention_heads: int | tuple[int, ...] = _size((5, 10, 20, 20))
    cross_attention_dim: int | tuple[int, ...] = _size((1024, 1024, 1024, 1024))
    temporal_cross_attention_dim: int | None = _size(1024)  # None: temporal blocks have no cross-attention
    addition_time_embed_dim: int = _size(256)
    projection_class_embeddings_input_dim: int = _size(768)
    multi_res_encoder_hidden_states: bool = False  # the context is a list, one entry per level
    context_embedding_type: Literal["clip"] | None = None  # "clip": a learned domain embedding is added to the context
    context_vocab_size: int = _size(16)
    norm_num_groups: int = _size(32)
    num_frames: int = _size(25)  # clip length the model was trained on; the network itself takes any
    sample_size: int = _size(64)

    def __post_init__(self):
        check_ranges(self, "unet.")
        levels = len(self.block_out_channels)
        for name in ("layers_per_block", "transformer_layers_per_block", "num_attention_heads", "cross_attention_dim"):
            self._per_level(name, levels)
        for name, allowed in (("down_block_types", (_CROSS_DOWN, _DOWN)), ("up_block_types", (_CROSS_UP, _UP))):
            self._per_level(name, levels)
            for kind in getattr(self, name):
                if kind not in allowed:
                    raise unknown_name_error(f"entry of unet.{name}", kind, allowed)
        for channels, heads in zip(self.block_out_channels, self.num_attention_heads, strict=True):
            _require_multiples("unet.block_out_channels", (channels,), "num_attention_heads", heads)
        _require_multiples("unet.block_out_channels", self.block_out_channels, "norm_num_groups", self.norm_num_groups)

    @property
    def num_layers(self) -> int:
        """A lower bound on the residual blocks and transformer blocks, in time that does not depend on them."""
        down, up = self.down_block_types, self.up_block_types[::-1]
        counts = zip(self.layers_per_block, self.transformer_layers_per_block, down, up, strict=True)
        return sum(n * (2 + m * ((d == _CROSS_DOWN) + (u == _CROSS_UP))) for n, m, d, u in counts)

    def _per_level(self, name: str, levels: int) -> None:
        """Repeat a single number for all levels, and check the length of a list."""
        value = getattr(self, name)
        value = (value,) * levels if isinstance(value, int) else tuple(value)
        if len(value) != levels:
            raise InputError(f"unet.{name}: expected {levels} entries, as in block_out_channels, got {value}")
        object.__setattr__(self, name, value)


def _require_multiples(name: str, channels: tuple[int, ...], divisor_name: str, divisor: int) -> None:
    if wrong := [number for number in channels if number % divisor]:
        raise InputError(f"{name}: expected multiples of {divisor_name} ({divisor}), got {wrong[0]}")


@dataclass(frozen=True)
class VAEConfig:
    """The video autoencoder with temporal decoder (`AutoencoderKLTemporalDecoder`)."""

    in_channels: int = _size(3)
    out_channels: int = _size(3)
    latent_channels: int = _size(4)
    block_out_channels: tuple[int, ...] = _size((128, 256, 512, 512), items=MAX_LEVELS)
    layers_per_block: int = _depth(2)  # in the encoder; the decoder has one more
    norm_num_groups: int = _size(32)
    scaling_factor: float = bounded(0.18215, above=0, at_most=1e6)
    sample_size: int = _size(768)

    def __post_init__(self):
        check_ranges(self, "vae.")
        _require_multiples("vae.block_out_channels", self.block_out_channels, "norm_num_groups", self.norm_num_groups)

    @property
    def num_layers(self) -> int:
        """A lower bound on the residual blocks."""
        return 2 * len(self.block_out_channels) * self.layers_per_block

    @property
    def downscale(self) -> int:
        """Pixels per latent along each side."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class EnvEncoderConfig:
    """The environment encoder, from latents (or pixels) of the environment images to a feature map per UNet level."""

    in_channels: int = _size(12)
    channels: tuple[int, ...] = _size((320, 640, 1280, 1280), items=MAX_LEVELS)
    num_res_blocks: int = _depth(2)
    latent_encoder: bool = True  # False: pixels enter through a small conv stem
    in_labels: tuple[str, ...] = bounded(ENVIRONMENT_LABELS, items=64)
    norm_num_groups: int = _size(32)

    def __post_init__(self):
        check_ranges(self, "env_encoder.")
        _require_multiples("env_encoder.channels", self.channels, "norm_num_groups", self.norm_num_groups)

    @property
    def num_layers(self) -> int:
        """The residual blocks."""
        return len(self.channels) * self.num_res_blocks


@dataclass(frozen=True)
class SchedulerConfig:
    """The noise schedule (EDM with Karras sigmas, Karras et al. 2022, eq. 5)."""

    sigma_min: float = bounded(0.002, above=0, at_most=1e6)
    sigma_max: float = bounded(700.0, above=0, at_most=1e6)
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"

    def __post_init__(self):
        check_ranges(self, "scheduler.")
        if self.sigma_min >= self.sigma_max:
            raise InputError(
                f"scheduler.sigma_min: expected less than sigma_max ({self.sigma_max}), got {self.sigma_min}"
            )


@dataclass(frozen=True)
class RendererConfig:
    """One checkpoint: its networks, and how sampling combines them."""

    kind: Literal["inverse", "forward", "svd"]
    unet: UNetConfig = UNetConfig()
    vae: VAEConfig = VAEConfig()
    env_encoder: EnvEncoderConfig | None = None
    scheduler: SchedulerConfig = SchedulerConfig()
    scale_cond_latents: bool = False  # multiply conditioning latents by the VAE's scaling factor
    # The row of the context embedding per G-buffer.
    domains: dict[str, int] = bounded(DOMAINS, items=1024, at_least=0, below=MAX_SIZE)  # noqa: RUF009 (copied)
    conditions: tuple[str, ...] = bounded(CONDITIONS, items=64)  # in the order of the forward UNet's input channels
    size: tuple[int, int] = _size((512, 512))  # default height and width of frames
    frames: int = _size(24)  # of a training clip
    environment_size: tuple[int, int] = _size((512, 512))  # height and width of the environment maps
    deterministic: bool = False  # trained as a one-step model, which is also how it is sampled by default

    def __post_init__(self):
        check_ranges(self)


def check_parts(config: RendererConfig) -> None:
    """Raise InputError where the networks of an inverse or forward renderer do not fit together."""
    unet, vae, encoder = config.unet, config.vae, config.env_encoder
    forward, latent = config.kind == "forward", vae.latent_channels
    if forward and encoder is None:
        raise InputError("env_encoder: missing, but a forward renderer needs it")
    context = encoder.channels if forward else unet.cross_attention_dim[-1:] * len(unet.cross_attention_dim)
    expected = {
        "unet.in_channels": latent * (1 + len(config.conditions) if forward else 2),
        "unet.out_channels": latent,
        "unet.projection_class_embeddings_input_dim": 3 * unet.addition_time_embed_dim,
        "unet.cross_attention_dim": context,
        "unet.multi_res_encoder_hidden_states": forward,
        "unet.context_embedding_type": "clip" if config.kind == "inverse" else None,
        "vae.in_channels": 3,
        "vae.out_channels": 3,
    }
    if forward:
        expected["env_encoder.in_channels"] = len(encoder.in_labels) * (latent if encoder.latent_encoder else 3)
    if unet.temporal_cross_attention_dim is not None:
        expected["unet.temporal_cross_attention_dim"] = unet.cross_attention_dim[-1]
    for name, value in expected.items():
        part, _, key = name.partition(".")
        if (actual := getattr(getattr(config, part), key)) != value:
            raise InputError(f"{name}: expected {value!r}, which fits the other networks, got {actual!r}")
    rows = unet.context_vocab_size
    if config.kind == "inverse" and (outside := [name for name, row in config.domains.items() if row >= rows]):
        raise InputError(
            f"domains: expected rows below unet.context_vocab_size {rows}, got "
            f"{', '.join(f'{name} {config.domains[name]}' for name in outside)}; use a free row or raise the size"
        )


# --- sampling --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """Sampling options: keyword arguments of both renderers and options of `drender`.

    Attributes:
      num_steps: denoising steps.
      sampler: "euler" as released, "heun" (two network calls per step) or "dpm++" (DPM-Solver++(2M)).
      rho, sigma_min, sigma_max: noise schedule (EDM, eq. 5); None: 7 and the model's.
      guidance: classifier-free guidance scale, or one for the first and one for the last frame; used if one
        exceeds 1.
      dynamic_guidance: let a guidance of g grow over the steps, from 1 to almost 2g − 1.
      fps, motion_bucket_id, noise_aug_strength: SVD's micro-conditioning. As in SVD, the last is also the standard
        deviation of Gaussian noise added to the conditioning images, in the VAE's range [-1, 1].
      frames: window length in frames; longer clips are denoised in overlapping windows. None: the model's.
      overlap: least number of frames that neighboring windows share; None: 6, at most half a window.
      decode_chunk_size: frames that the VAE decodes together.
      decode_overlap: frames over which decoded chunks are cross-faded; None: 0 as released for a clip of one window,
        else 2, at most half a chunk.
      seed: of the initial noise, which is the same for every pass and clip.
      deterministic: one step from zeros instead of num_steps, for models trained with `loss.one_step`.
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
