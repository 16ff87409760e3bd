"""Networks by the names that checkpoints and training runs give them."""

from typing import Any

from flax import nnx

from drender.config import RendererConfig
from drender.models.env_autoencoder import DirectionEncoder, EnvDecoder
from drender.models.env_encoder import EnvEncoder
from drender.models.params import abstract_module
from drender.models.unet import UNet
from drender.models.vae import VAE

# Components of a renderer. Each is configured by the field of `RendererConfig` with the same name.
NETWORKS: dict[str, type[nnx.Module]] = {"unet": UNet, "vae": VAE, "env_encoder": EnvEncoder}
# Trained together with the environment encoder, by its configuration, and dropped afterwards.
AUXILIARY_NETWORKS: dict[str, type[nnx.Module]] = {"nrm_encoder": DirectionEncoder, "env_decoder": EnvDecoder}


def network_of(config: RendererConfig, name: str) -> tuple[type[nnx.Module], Any]:
    """Return the class of a component and its configuration, the arguments of `abstract_module`."""
    if name in AUXILIARY_NETWORKS:
        return AUXILIARY_NETWORKS[name], config.env_encoder
    return NETWORKS[name], getattr(config, name)


def abstract_params(config: RendererConfig) -> dict[str, dict]:
    """Return the shapes of the parameters of every network that the configuration has."""
    names = [name for name in NETWORKS if getattr(config, name) is not None]
    return {name: abstract_module(*network_of(config, name))[1] for name in names}
