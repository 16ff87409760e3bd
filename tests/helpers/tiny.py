"""Tiny checkpoints in the released layout, rebuilt from the names of their tensors.

Every weight is a function of its name (see `draw`), so nothing needs to be stored, and the results of the released
pipeline on these very checkpoints can be kept in `tests/golden`.
"""

import functools
import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from drender.checkpoints import convert
from drender.config import EnvEncoderConfig, UNetConfig, VAEConfig
from drender.fields import from_dict
from drender.models.params import abstract_module, flatten
from drender.models.registry import NETWORKS

UNET = {
    "_class_name": "UNetCustomSpatioTemporalConditionModel",
    "_diffusers_version": "0.32.0",
    "addition_time_embed_dim": 32,
    "block_out_channels": [32, 32, 64, 64],
    "context_vocab_size": 16,
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal"] * 3 + ["DownBlockSpatioTemporal"],
    "layers_per_block": 2,
    "num_attention_heads": [1, 2, 2, 4],
    "num_frames": 4,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 96,
    "sample_size": 8,
    "transformer_layers_per_block": 1,
    "up_block_types": ["UpBlockSpatioTemporal"] + ["CrossAttnUpBlockSpatioTemporal"] * 3,
}
INVERSE_UNET = UNET | {
    "context_embedding_type": "clip",
    "cross_attention_dim": 48,
    "in_channels": 8,
    "multi_res_encoder_hidden_states": False,
    "temporal_cross_attention_dim": 48,
}
FORWARD_UNET = UNET | {
    "context_embedding_type": None,
    "cross_attention_dim": [32, 32, 64, 64],
    "in_channels": 24,
    "multi_res_encoder_hidden_states": True,
    "temporal_cross_attention_dim": None,
}
SVD_UNET = UNET | {
    "_class_name": "UNetSpatioTemporalConditionModel",
    "cross_attention_dim": 48,
    "in_channels": 8,
}
VAE = {
    "_class_name": "AutoencoderKLTemporalDecoder",
    "_diffusers_version": "0.32.0",
    "block_out_channels": [32, 32, 64, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "out_channels": 3,
    "sample_size": 32,
    "scaling_factor": 0.18215,
}
ENV_ENCODER = {
    "_class_name": "EnvEncoder",
    "channels": [32, 32, 64, 64],
    "in_channels": 12,
    "latent_encoder": True,
    "num_res_blocks": 2,
}
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}
CONFIGS = {
    "inverse": {"unet": INVERSE_UNET, "vae": VAE, "scheduler": SCHEDULER | {"timestep_spacing": "leading"}},
    "forward": {
        "unet": FORWARD_UNET,
        "vae": VAE,
        "env_encoder": ENV_ENCODER,
        "scheduler": SCHEDULER | {"timestep_spacing": "trailing"},
    },
    "svd": {"unet": SVD_UNET, "vae": VAE, "scheduler": SCHEDULER | {"timestep_spacing": "leading"}},
}
CLASSES = {"unet": UNetConfig, "vae": VAEConfig, "env_encoder": EnvEncoderConfig}
LORA_RANK = 4


def draw(component: str, name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """The float16 weight that belongs to a name: normals from a generator seeded with it, scaled by what it is."""
    z = np.random.default_rng([zlib.crc32(f"{component}/{name}".encode()), seed]).standard_normal(shape, np.float32)
    parts = name.split(".")
    if component == "lora":
        z = np.float32(z / np.sqrt(shape[1]))  # divided in float64
    elif len(shape) == 1 and parts[-1] != "mix_factor":
        z = 1 + 0.1 * z if parts[-1] == "weight" and "norm" in parts[-2] else 0.1 * z
    elif parts[-1] != "mix_factor" and "context_embedding" not in name:
        z = np.float32(z / np.sqrt(math.prod(shape[1:])))
    return z.astype(np.float16)


def weights(component: str, shapes: dict[str, tuple[int, ...]], dtype: str = "float16") -> dict[str, np.ndarray]:
    """The weights of a component by torch name."""
    return {name: draw(component, name, shape).astype(jnp.dtype(dtype)) for name, shape in shapes.items()}


@functools.cache
def shapes(kind: str, component: str) -> dict[str, tuple[int, ...]]:
    """Torch names and shapes of a tiny checkpoint's component."""
    if component == "lora":
        return _lora_shapes(shapes(kind, "unet"))
    values = CONFIGS[kind][component]
    if kind == "svd" and component == "unet":
        values = values | {"temporal_cross_attention_dim": 48}
    return network_shapes(component, from_dict(CLASSES[component], values, "tiny", ignore_unknown=True))


def network_shapes(component: str, config) -> dict[str, tuple[int, ...]]:
    """Torch names and shapes of a network."""
    leaves = flatten(abstract_module(NETWORKS[component], config)[1])
    torch = lambda name, shape: convert.to_torch(name, np.broadcast_to(np.int8(0), shape)).shape
    return {convert.torch_name(name): torch(name, leaf.shape) for name, leaf in leaves.items()}


def _lora_shapes(unet: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    factors = {}
    for name, shape in unet.items():
        if name.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")):
            module = "unet." + name.removesuffix(".weight")
            factors[f"{module}.lora_A.weight"] = (LORA_RANK, shape[1])
            factors[f"{module}.lora_B.weight"] = (shape[0], LORA_RANK)
    return factors


def components(kind: str) -> list[str]:
    return ["unet", "vae"] + ["env_encoder", "lora"] * (kind == "forward")


def write_released(
    folder: Path, kind: str = "inverse", dtype: str = "float16", sharded: bool = False, variant: str | None = None
) -> Path:
    """Writes a tiny checkpoint as the release does.

    Args:
      kind: "inverse", "forward" (with LoRA) or "svd".
      sharded: cut the weights in three, listed by an index.
      variant: what comes before the extension: "fp16".
    """
    index = {"_class_name": "RGBXVideoDiffusionPipeline", "unet": ["src.models.custom_unet_st", UNET["_class_name"]]}
    _write_json(folder / "model_index.json", index)
    for component, values in CONFIGS[kind].items():
        _write_json(folder / component / ("scheduler_" * (component == "scheduler") + "config.json"), values)
    for component in components(kind):
        tensors = weights(component, shapes(kind, component), dtype)
        stem = "pytorch_lora_weights" if component == "lora" else "diffusion_pytorch_model"
        write_weights(folder / component, stem, tensors, sharded and component != "lora", variant)
    return folder


def write_weights(folder: Path, stem: str, tensors: dict, sharded: bool = False, variant: str | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    variant = f".{variant}" if variant else ""
    if not sharded:
        save_file(tensors, folder / f"{stem}{variant}.safetensors", {"format": "pt"})
        return
    names = sorted(tensors)
    files = [f"{stem}{variant}-{i + 1:05}-of-00003.safetensors" for i in range(3)]
    for i, file in enumerate(files):
        save_file({name: tensors[name] for name in names[i::3]}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: files[i % 3] for i, name in enumerate(names)}}
    _write_json(folder / f"{stem}.safetensors.index{variant}.json", index)


def _write_json(file: Path, values: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values))


# --- spoiling one ----------------------------------------------------------------------------------------------------


def linked(original: Path, copy: Path) -> Path:
    """A copy of a released folder to spoil; its weights are links, to be replaced and not written into."""
    for file in original.rglob("*"):
        if file.is_file():
            target = copy / file.relative_to(original)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes()) if file.suffix == ".json" else target.symlink_to(file)
    return copy


def edit_json(file: Path, **values) -> None:
    """Changes a JSON file's values; `...` removes one."""
    changed = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in changed.items() if value is not ...}))


def edit_weights(folder: Path, change: Callable[[dict], object], stem: str = "diffusion_pytorch_model") -> None:
    """Rewrites a component's weights as `change`, which edits a dict of arrays, leaves them."""
    file = folder / f"{stem}.safetensors"
    tensors = load_file(file)
    change(tensors)
    file.unlink()
    save_file(tensors, file)
