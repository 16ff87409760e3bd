"""Small renderers with random weights, for tests that do not need the released layout."""

import math

import jax
import numpy as np

from drender.config import EnvEncoderConfig, RendererConfig, UNetConfig, VAEConfig
from drender.models.params import abstract_module
from drender.models.registry import NETWORKS

UNET = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    "layers_per_block": 1,
    "transformer_layers_per_block": 1,
    "num_attention_heads": (2, 4),
    "addition_time_embed_dim": 16,
    "projection_class_embeddings_input_dim": 48,
}
# Compiles in half the time, and has all kinds of layers too.
ONE_LEVEL = UNET | {
    "block_out_channels": (32,),
    "down_block_types": UNET["down_block_types"][:1],
    "up_block_types": UNET["up_block_types"][1:],
    "num_attention_heads": (2,),
    "norm_num_groups": 8,  # a channel alone in its group would lose what the time adds to it
}
# Compiles quicker again, for tests that need any UNet: attention is in the middle only.
SMALLEST = ONE_LEVEL | {
    "down_block_types": UNET["down_block_types"][1:],
    "up_block_types": UNET["up_block_types"][:1],
}
VAE = VAEConfig(block_out_channels=(32, 32), layers_per_block=1)


def inverse_config(unet: dict = SMALLEST) -> RendererConfig:
    context = {"cross_attention_dim": 24, "temporal_cross_attention_dim": 24, "context_embedding_type": "clip"}
    return RendererConfig("inverse", UNetConfig(**unet, **context), VAE)


def forward_config(unet: dict = SMALLEST) -> RendererConfig:
    levels = unet["block_out_channels"]
    unet = UNetConfig(
        **unet,
        in_channels=24,
        cross_attention_dim=levels,
        temporal_cross_attention_dim=None,
        multi_res_encoder_hidden_states=True,
    )
    encoder = EnvEncoderConfig(channels=levels, num_res_blocks=1, norm_num_groups=unet.norm_num_groups)
    return RendererConfig("forward", unet, VAE, encoder, scale_cond_latents=True, environment_size=(16, 16))


def random_params(network, config, seed: int = 0) -> dict:
    """float32 parameters: kernels that keep the variance, norms and biases a little off their usual start."""
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        z = random.standard_normal(leaf.shape).astype(np.float32)
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if name == "kernel":
            return z / np.float32(math.sqrt(math.prod(leaf.shape[:-1])))
        return z if name in ("embedding", "mix_factor") else (name == "scale") + np.float32(0.1) * z

    return jax.tree_util.tree_map_with_path(draw, abstract_module(network, config)[1])


def params_of(config: RendererConfig) -> dict[str, dict]:
    """Return random parameters of each network."""
    names = [name for name in NETWORKS if getattr(config, name) is not None]
    return {name: random_params(NETWORKS[name], getattr(config, name)) for name in names}


def renderer(cls, config: RendererConfig):
    return cls(config, jax.device_put(params_of(config)))
