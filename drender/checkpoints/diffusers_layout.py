"""The layout of the released torch checkpoints: their folders, and what their JSON files say.

    model_index.json
    unet/, vae/          config.json, diffusion_pytorch_model.safetensors
    env_encoder/         the same, of a forward renderer
    lora/                pytorch_lora_weights.safetensors, of some forward renderers
    scheduler/           scheduler_config.json

What they say in JSON is not always so: where the tensors tell, they decide.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from drender.checkpoints import orbax, torch_files
from drender.checkpoints.torch_files import Tensor
from drender.config import (
    CONDITIONS,
    DOMAINS,
    EnvEncoderConfig,
    RendererConfig,
    SchedulerConfig,
    UNetConfig,
    VAEConfig,
    from_dict,
    to_dict,
)
from drender.errors import InputError, first_line
from drender.files import expand_home

MODEL_INDEX = "model_index.json"
STEMS = dict.fromkeys(("unet", "vae", "env_encoder"), "diffusion_pytorch_model") | {"lora": "pytorch_lora_weights"}

# Keys of the UNet that Stable Video Diffusion does not have.
RENDERER_KEYS = (
    "temporal_cross_attention_dim",
    "multi_res_encoder_hidden_states",
    "context_embedding_type",
    "context_vocab_size",
)
# What the scheduler's other keys say in this family of models; that is how we sample, whatever they say.
SCHEDULER = {
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

Log = Callable[[str], None]


def is_released(folder: Path) -> bool:
    """Is this a folder in the released layout?"""
    return (folder / MODEL_INDEX).is_file()


# --- reading ---------------------------------------------------------------------------------------------------------


def read(folder: Path, log: Log) -> tuple[RendererConfig, dict[str, dict[str, Tensor]]]:
    """The configuration of a released checkpoint, and its tensors by component and name, not yet in memory.

    Args:
      folder: in the layout above; fp16 variants, shards and legacy pickles will do.
      log: is told what is ignored, and where the tensors overrule a configuration.
    Raises:
      InputError: no such layout, unreadable JSON, or missing or damaged weights.
    """
    for name in ("unet", "vae"):
        if not (folder / name / "config.json").is_file():
            if (folder / orbax.CONFIG).is_file() and orbax.components(folder):
                raise InputError(f"{folder}: converted already; --to-torch converts it back")
            raise InputError(f"{folder}: no released checkpoint (it has no {name}/config.json)")
    tensors = {name: torch_files.read(folder / name, STEMS[name]) for name in STEMS if (folder / name).is_dir()}
    kind = _kind(folder, tensors)
    if kind != "forward":
        tensors = {name: tensors[name] for name in ("unet", "vae")}
    unused = {path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."} - {*tensors, "scheduler"}
    if unused:
        log(f"left alone, inference does not use them: {', '.join(sorted(unused))}")
    return _renderer_config(folder, kind, tensors, log), tensors


def _renderer_config(folder: Path, kind: str, tensors: dict[str, dict[str, Tensor]], log: Log) -> RendererConfig:
    unet = _config(UNetConfig, folder / "unet/config.json", _observed_unet(tensors["unet"], kind), log)
    encoder, scheduler = None, SchedulerConfig()
    if kind == "forward":
        observed = _observed_encoder(tensors["env_encoder"])
        encoder = _config(EnvEncoderConfig, folder / "env_encoder/config.json", observed, log)
    if (folder / "scheduler").is_dir():
        scheduler = _config(SchedulerConfig, folder / "scheduler/scheduler_config.json", {}, log)
    index = _json(folder / MODEL_INDEX) if is_released(folder) else {}
    scaled = index.get("scale_cond_latents")
    return RendererConfig(
        kind=kind,
        unet=unet,
        vae=_config(VAEConfig, folder / "vae/config.json", {}, log),
        env_encoder=encoder,
        scheduler=scheduler,
        scale_cond_latents=scaled if isinstance(scaled, bool) else kind == "forward",
        domains={name: row for name, row in DOMAINS.items() if row < unet.context_vocab_size},
    )


def _kind(folder: Path, tensors: dict[str, dict[str, Tensor]]) -> str:
    """Only the inverse renderer has a domain table, and only the forward renderer an environment encoder."""
    if "context_embedding.weight" in tensors["unet"]:
        return "inverse"
    if "env_encoder" in tensors:
        return "forward"
    conv_in = tensors["unet"].get("conv_in.weight")
    if conv_in is not None and conv_in.shape[1] == 4 * (1 + len(CONDITIONS)):
        raise InputError(f"{folder}: a forward renderer without its env_encoder folder; download it again")
    return "svd"


def _observed_unet(tensors: dict[str, Tensor], kind: str) -> dict[str, Any]:
    """What the tensors tell of the UNet's configuration."""
    observed: dict[str, Any] = {"multi_res_encoder_hidden_states": True} if kind == "forward" else {}
    if "conv_in.weight" in tensors:
        observed["in_channels"] = tensors["conv_in.weight"].shape[1]
    if "context_embedding.weight" in tensors:
        observed["context_embedding_type"] = "clip"
        observed["context_vocab_size"] = tensors["context_embedding.weight"].shape[0]
    temporal = [name for name in tensors if name.endswith("temporal_transformer_blocks.0.attn2.to_k.weight")]
    observed["temporal_cross_attention_dim"] = tensors[temporal[0]].shape[1] if temporal else None
    return observed


def _observed_encoder(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What the tensors tell of the environment encoder's configuration: its stem, and what enters it."""
    for name, latent in (("conv_in.weight", True), ("conv_in.conv_in.weight", False)):
        if name in tensors:
            return {"latent_encoder": latent, "in_channels": tensors[name].shape[1]}
    return {}


def _config(cls: type, file: Path, observed: dict[str, Any], log: Log) -> Any:
    """The configuration in a file, with what the tensors tell in place of what it says."""
    values = _json(file)
    short = f"{file.parent.name}/{file.name}"
    usual = {"force_upcast": True} | (SCHEDULER if cls is SchedulerConfig else {})
    known = {field.name: field.default for field in dataclasses.fields(cls)}
    ignored = [f"{key} = {value!r}" for key, value in values.items() if not _expected(key, value, known, usual)]
    if ignored:
        log(f"{short}: ignored {', '.join(ignored)}")
    for key, value in observed.items():
        if values.get(key, known[key]) != value:
            log(f"{short}: {key} is {values.get(key, 'not given')!r}; the tensors tell {value!r}, which counts")
    # A null stands for the default, as an absent key does.
    values = {key: value for key, value in values.items() if value is not None}
    return from_dict(cls, values | observed, str(file), ignore_unknown=True)


def _expected(key: str, value: Any, known: Collection[str], usual: dict[str, Any]) -> bool:
    """Is a key either used, or of no consequence?"""
    described = ("_class_name", "_diffusers_version", "down_block_types")
    return key in known or key in described or (key in usual and usual[key] == value)


def _json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: no JSON ({error}); download it again") from None
    if not isinstance(values, dict):
        raise InputError(f"{file}: expected a mapping of names to values, found {type(values).__name__}")
    return values


# --- fetching --------------------------------------------------------------------------------------------------------


def find(source: str, log: Log) -> Path:
    """The folder of a released checkpoint; fetched from Hugging Face unless it is a local one.

    Raises:
      InputError: neither a folder, nor a repository that can be fetched.
    """
    folder = expand_home(source)
    if folder.is_dir():
        return folder
    if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        raise InputError(f"{source}: neither a folder nor a Hugging Face name of the form owner/name")
    return _fetch(source, log)


def _fetch(name: str, log: Log) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        try:
            files = wanted([file.rfilename for file in HfApi().model_info(name).siblings])
        except RepositoryNotFoundError:
            raise
        except Exception as error:  # of whichever HTTP library is underneath
            log(f"Hugging Face cannot be reached ({type(error).__name__}); looking for an earlier download")
            return Path(snapshot_download(name, local_files_only=True))
        log(f"fetching {len(files)} files of {name} from Hugging Face")
        return Path(snapshot_download(name, allow_patterns=files))
    except GatedRepoError:
        problem = f"accept its terms at https://huggingface.co/{name}, then run `hf auth login`"
    except RepositoryNotFoundError:
        problem = "neither a local folder nor a public repository on Hugging Face; check the name"
    except LocalEntryNotFoundError:
        problem = "no such folder, and no earlier download; check the path, or the network"
    except Exception as error:
        problem = f"could not be fetched ({first_line(error)}); try again"
    raise InputError(f"{name}: {problem}")


def wanted(files: list[str]) -> list[str]:
    """Of a repository's files those that `read` needs: JSON files, and each component's weights in the best form."""
    chosen = [name for name in files if name in (MODEL_INDEX, "scheduler/scheduler_config.json")]
    for component, stem in STEMS.items():
        chosen += [name for name in files if name == f"{component}/config.json"]
        inside = [name.removeprefix(f"{component}/") for name in files if name.startswith(f"{component}/")]
        chosen += [f"{component}/{name}" for name in torch_files.best(inside, stem)]
    return chosen


# --- writing ---------------------------------------------------------------------------------------------------------


def json_files(config: RendererConfig) -> dict[str, dict[str, Any]]:
    """The released JSON files of a configuration, by path; `diffusers` reads those of its own classes."""
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
    files = {
        MODEL_INDEX: index,
        "unet/config.json": {"_class_name": unet_class} | _unet_values(config.unet, svd),
        "vae/config.json": {
            "_class_name": "AutoencoderKLTemporalDecoder",
            "down_block_types": ["DownEncoderBlock2D"] * len(config.vae.block_out_channels),
            "force_upcast": True,
            **_values(config.vae),
        },
        "scheduler/scheduler_config.json": {
            "_class_name": "EulerDiscreteScheduler",
            **SCHEDULER,
            **_values(config.scheduler),
        },
    }
    if config.env_encoder is not None:
        index["env_encoder"] = ["src.models.env_encoder", "EnvEncoder"]
        files["env_encoder/config.json"] = {"_class_name": "EnvEncoder"} | _values(config.env_encoder)
    if config.scale_cond_latents != (config.kind == "forward"):
        index["scale_cond_latents"] = config.scale_cond_latents
    return files


def _values(config: Any) -> dict[str, Any]:
    """A network's values; the number of norm groups is not in released files, where it is always the default."""
    values = to_dict(config)
    if values.get("norm_num_groups") == 32:
        del values["norm_num_groups"]
    return values


def _unet_values(config: UNetConfig, svd: bool) -> dict[str, Any]:
    values = _values(config)
    # One number where the release has one.
    for key in ("layers_per_block", "transformer_layers_per_block", "cross_attention_dim"):
        if len(set(values[key])) == 1:
            values[key] = values[key][0]
    return {key: value for key, value in values.items() if not (svd and key in RENDERER_KEYS)}
