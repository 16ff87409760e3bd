"""The released torch layout: its folders, its JSON files, and the configuration that they and the tensors give.

    model_index.json
    unet/, vae/          config.json, diffusion_pytorch_model.safetensors
    env_encoder/         the same; forward renderers only
    lora/                pytorch_lora_weights.safetensors; some renderers
    scheduler/           scheduler_config.json

The released JSON files are sometimes wrong. Where the tensors' names and shapes give a value, it overrules the JSON.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from drender.checkpoints import orbax, torch_files
from drender.checkpoints.torch_files import Tensor
from drender.config import CONDITIONS, DOMAINS, EnvEncoderConfig, RendererConfig, SchedulerConfig, UNetConfig, VAEConfig
from drender.errors import InputError, naming
from drender.fields import from_dict, to_dict
from drender.files import parse_json, read_json

MODEL_INDEX = "model_index.json"
OWN = "drender"  # key of MODEL_INDEX for what the released layout has no place for: OWN_KEYS that are not the default
OWN_KEYS = ("domains", "conditions", "size", "frames", "environment_size", "deterministic")
AGAIN = "download it again"
# Components, and the stem of their weight files.
STEMS = dict.fromkeys(("unet", "vae", "env_encoder"), "diffusion_pytorch_model") | {"lora": "pytorch_lora_weights"}

# Keys of the UNet that Stable Video Diffusion does not have.
RENDERER_KEYS = (
    "temporal_cross_attention_dim",
    "multi_res_encoder_hidden_states",
    "context_embedding_type",
    "context_vocab_size",
)
# The scheduler's other keys in this family of models. Sampling assumes these values, so others are reported as ignored.
SCHEDULER_CONSTANTS = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "final_sigmas_type": "zero",
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": False,
    "steps_offset": 1,
    "timestep_type": "continuous",
    "trained_betas": None,
    "use_beta_sigmas": False,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": True,
}
# Keys of any config.json that have no consequence.
DESCRIPTIVE_KEYS = ("_class_name", "_diffusers_version", "down_block_types")
# Prefixes that torch.compile and DistributedDataParallel put before every name.
WRAPPER_PREFIX = re.compile(r"(_orig_mod\.|module\.)*")

Log = Callable[[str], None]


def is_released(folder: Path) -> bool:
    """Return whether a folder is in the released layout."""
    return (folder / MODEL_INDEX).is_file()


# --- reading ---------------------------------------------------------------------------------------------------------


def read(
    folder: Path, log: Log, base: Path | None = None, unet: str = "unet"
) -> tuple[RendererConfig, dict[str, dict[str, Tensor]]]:
    """Return the configuration of a released checkpoint, and its tensors by component and name, not yet in memory.

    Args:
      folder: in the layout above; half-precision variants, shards and legacy pickles are read too.
      log: receives a line about everything ignored, and wherever the tensors overrule a configuration.
      base: another such folder, of the components that `folder` lacks.
      unet: name of the UNet's folder.
    Raises:
      InputError: another layout, unreadable JSON, or missing or damaged weights.
    """
    parts = _find_parts(folder, log, base, unet)
    tensors = {name: _read_component(parts[name], name, log) for name in STEMS if name in parts}
    kind = _kind(folder, tensors)
    kept = {"forward": STEMS, "inverse": ("unet", "vae", "lora"), "svd": ("unet", "vae")}[kind]
    tensors = {name: tensors[name] for name in kept if name in tensors}
    if "lora" in tensors:
        tensors["lora"] |= _missing_alphas(parts["lora"], tensors["lora"], log)
    used = {parts[name] for name in (*tensors, "scheduler") if name in parts}
    unused = {path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "." and path not in used}
    if unused:
        log(f"ignored folders, which inference does not use: {', '.join(sorted(unused))}")
    index = next((path / MODEL_INDEX for path in (folder, base) if path and is_released(path)), None)
    return _renderer_config(parts, index, kind, tensors, log), tensors


def _find_parts(folder: Path, log: Log, base: Path | None, unet: str) -> dict[str, Path]:
    """Return the folder of each component that there is, and of the scheduler."""
    named = {name: unet if name == "unet" else name for name in (*STEMS, "scheduler")}
    parts = {name: folder / subfolder for name, subfolder in named.items() if (folder / subfolder).is_dir()}
    if (folder / orbax.CONFIG).is_file() and orbax.components(folder) and not (folder / unet / "config.json").is_file():
        raise InputError(f"{folder}: converted already; --to-torch converts it back")
    if base is not None:
        # The base's LoRA corrects the base's UNet, not this one.
        added = [name for name in named if name not in (*parts, "unet", "lora") and (base / name).is_dir()]
        parts |= {name: base / name for name in added}
        log(f"taken from {base}: {', '.join(added) or 'nothing, as the folder has all components'}")
    for name in ("unet", "vae"):
        if name not in parts or not (parts[name] / "config.json").is_file():
            remedy = "; --base names a checkpoint to take it from" if "unet" in parts and base is None else ""
            if name == "unet" and (folder / "unet_ema").is_dir():
                remedy = "; --ema takes unet_ema/"
            raise InputError(f"{folder}: not a released checkpoint (no {named[name]}/config.json){remedy}")
    return parts


def _read_component(folder: Path, name: str, log: Log) -> dict[str, Tensor]:
    """Return a component's tensors by name, without the prefixes of wrappers around the whole network."""
    tensors = torch_files.read(folder, STEMS[name])
    prefix = WRAPPER_PREFIX.match(next(iter(tensors), "")).group()
    if not prefix or not all(key.startswith(prefix) for key in tensors):
        return tensors
    log(f"{name}: removed {prefix!r} from the names of all tensors")
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}


def _kind(folder: Path, tensors: dict[str, dict[str, Tensor]]) -> str:
    """Return the kind of renderer: the inverse one has a domain table, the forward one an environment encoder."""
    if "context_embedding.weight" in tensors["unet"]:
        return "inverse"
    if "env_encoder" in tensors:
        return "forward"
    conv_in = tensors["unet"].get("conv_in.weight")
    if conv_in is not None and conv_in.shape[1] == 4 * (1 + len(CONDITIONS)):
        raise InputError(f"{folder}: a forward renderer without its env_encoder folder; download it again")
    return "svd"


# --- configurations --------------------------------------------------------------------------------------------------


def _renderer_config(
    parts: Mapping[str, Path], index: Path | None, kind: str, tensors: dict[str, dict[str, Tensor]], log: Log
) -> RendererConfig:
    read = functools.partial(_component_config, parts, log)
    unet = read("unet/config.json", UNetConfig, _infer_unet(tensors["unet"], kind))
    encoder, scheduler = None, SchedulerConfig()
    if kind == "forward":
        encoder = read("env_encoder/config.json", EnvEncoderConfig, _infer_env_encoder(tensors["env_encoder"]))
    if "scheduler" in parts:
        scheduler = read("scheduler/scheduler_config.json", SchedulerConfig, {})
    values = read_json(index, AGAIN) if index else {}
    scaled, own = values.get("scale_cond_latents"), values.get(OWN)
    config = RendererConfig(
        kind=kind,
        unet=unet,
        vae=read("vae/config.json", VAEConfig, {}),
        env_encoder=encoder,
        scheduler=scheduler,
        scale_cond_latents=scaled if isinstance(scaled, bool) else kind == "forward",
        domains={name: row for name, row in DOMAINS.items() if row < unet.context_vocab_size},
    )
    return from_dict(RendererConfig, to_dict(config) | own, f"{index}: {OWN}") if isinstance(own, dict) else config


def _infer_unet(tensors: dict[str, Tensor], kind: str) -> dict[str, Any]:
    """Return the configuration values that the UNet's tensors determine."""
    inferred: dict[str, Any] = {"multi_res_encoder_hidden_states": True} if kind == "forward" else {}
    if "conv_in.weight" in tensors:
        inferred["in_channels"] = tensors["conv_in.weight"].shape[1]
    if "context_embedding.weight" in tensors:
        inferred["context_embedding_type"] = "clip"
        inferred["context_vocab_size"] = tensors["context_embedding.weight"].shape[0]
    temporal = [name for name in tensors if name.endswith("temporal_transformer_blocks.0.attn2.to_k.weight")]
    inferred["temporal_cross_attention_dim"] = tensors[temporal[0]].shape[1] if temporal else None
    return inferred


def _infer_env_encoder(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the configuration values that the environment encoder's stem determines."""
    for name, latent in (("conv_in.weight", True), ("conv_in.conv_in.weight", False)):
        if name in tensors:
            return {"latent_encoder": latent, "in_channels": tensors[name].shape[1]}
    return {}


def _component_config(parts: Mapping[str, Path], log: Log, name: str, cls: type, inferred: dict[str, Any]) -> Any:
    """Return the configuration in a file of the layout, overruled by the `inferred` values; report every difference."""
    component, _, file_name = name.partition("/")
    file = parts[component] / file_name
    values = read_json(file, AGAIN)
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    constants = {"force_upcast": True} | (SCHEDULER_CONSTANTS if cls is SchedulerConfig else {})
    ignored = [
        f"{key} = {value!r}"
        for key, value in values.items()
        if key not in defaults and key not in DESCRIPTIVE_KEYS and not (key in constants and constants[key] == value)
    ]
    if ignored:
        log(f"{name}: ignored {', '.join(ignored)}")
    for key, value in inferred.items():
        if values.get(key, defaults[key]) != value:
            log(f"{name}: {key} is {values.get(key, 'absent')!r}; using {value!r}, which the tensors determine")
    # A null means the default, as an absent key does.
    values = {key: value for key, value in values.items() if value is not None}
    with naming(file):
        return from_dict(cls, values | inferred, "", ignore_unknown=True)


# --- LoRA strength ---------------------------------------------------------------------------------------------------


def _missing_alphas(folder: Path, tensors: Mapping[str, Tensor], log: Log) -> dict[str, Tensor]:
    """Return the `alpha` of LoRA modules that the tensors lack and PEFT's settings give.

    The correction's strength is alpha/rank (with `use_rslora` alpha/√rank); without alpha it is 1.
    """
    settings, source = _lora_settings(folder)
    alphas = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"((?:unet\.)?(.+))\.(lora_A|lora\.down)\.weight", name)
        if match is None or f"{match[1]}.alpha" in tensors:
            continue
        rank = tensor.shape[0]
        if not settings.get("rank_pattern") and settings.get("r") not in (None, rank):
            raise InputError(f"{source}: r is {settings['r']!r}, but {name} has rank {rank}; download both again")
        if (alpha := _module_alpha(settings, match[2], rank, source)) != rank:
            read = functools.partial(np.full, (), alpha, np.float32)
            alphas[f"{match[1]}.alpha"] = Tensor((), np.dtype(np.float32), read)
    if alphas:
        log(f"lora: alpha of {len(alphas)} modules from {source}")
    return alphas


def _lora_settings(folder: Path) -> tuple[dict[str, Any], str]:
    """Return PEFT's settings and where they are: the header of the weights, or else `adapter_config.json`."""
    packed = torch_files.read_metadata(folder, STEMS["lora"]).get("lora_adapter_metadata")
    file = folder / "adapter_config.json"
    if packed is not None:
        source = f"{folder}: lora_adapter_metadata"
        return {key.removeprefix("unet."): value for key, value in parse_json(packed, source, AGAIN).items()}, source
    return (read_json(file, AGAIN), str(file)) if file.is_file() else ({}, str(file))


def _module_alpha(settings: Mapping[str, Any], module: str, rank: int, source: str) -> float:
    """Return the alpha that gives a module's strength as alpha/rank.

    It is that of the first pattern that matches the end of the module's name, or else the default.
    """
    patterns = settings.get("alpha_pattern") or {}
    try:
        matching = [value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", module)]
    except (AttributeError, re.error) as error:
        raise InputError(f"{source}: alpha_pattern: expected numbers by pattern ({error}); download it again") from None
    alpha = matching[0] if matching else settings.get("lora_alpha")
    if alpha is None:
        return float(rank)
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise InputError(f"{source}: lora_alpha: expected a number, got {alpha!r}; download it again")
    return alpha * math.sqrt(rank) if settings.get("use_rslora") else float(alpha)


# --- writing ---------------------------------------------------------------------------------------------------------


def json_files(config: RendererConfig) -> dict[str, dict[str, Any]]:
    """Return the released JSON files of a configuration, by path; diffusers reads those of its own classes."""
    svd = config.kind == "svd"
    library = "diffusers" if svd else "src.models.custom_unet_st"
    unet_class = "UNetSpatioTemporalConditionModel" if svd else "UNetCustomSpatioTemporalConditionModel"
    index: dict[str, Any] = {
        "_class_name": "StableVideoDiffusionPipeline" if svd else "RGBXVideoDiffusionPipeline",
        "unet": [library, unet_class],
        "vae": ["diffusers", "AutoencoderKLTemporalDecoder"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "image_encoder": [None, None],
        "feature_extractor": [None, None],
    }
    vae = {"down_block_types": ["DownEncoderBlock2D"] * len(config.vae.block_out_channels), "force_upcast": True}
    files = {
        MODEL_INDEX: index,
        "unet/config.json": {"_class_name": unet_class} | _unet_values(config.unet, svd),
        "vae/config.json": {"_class_name": index["vae"][1]} | vae | _values(config.vae),
        "scheduler/scheduler_config.json": {
            "_class_name": index["scheduler"][1],
            **SCHEDULER_CONSTANTS,
            **_values(config.scheduler),
        },
    }
    if config.env_encoder is not None:
        index["env_encoder"] = ["src.models.env_encoder", "EnvEncoder"]
        files["env_encoder/config.json"] = {"_class_name": "EnvEncoder"} | _values(config.env_encoder)
    if config.scale_cond_latents != (config.kind == "forward"):
        index["scale_cond_latents"] = config.scale_cond_latents
    usual = RendererConfig(config.kind)
    if own := {key: getattr(config, key) for key in OWN_KEYS if getattr(config, key) != getattr(usual, key)}:
        index[OWN] = own
    return files


def _values(config: Any) -> dict[str, Any]:
    """Return a network's configuration as released files give it."""
    values = to_dict(config)
    # Released files do not give the number of norm groups: it is always 32.
    if values.get("norm_num_groups") == 32:
        del values["norm_num_groups"]
    return values


def _unet_values(config: UNetConfig, svd: bool) -> dict[str, Any]:
    values = _values(config)
    # A single number where all levels have the same, as in released files.
    for key in ("layers_per_block", "transformer_layers_per_block", "cross_attention_dim"):
        if len(set(values[key])) == 1:
            values[key] = values[key][0]
    return {key: value for key, value in values.items() if not (svd and key in RENDERER_KEYS)}
