"""Parameters as data: paths of leaves, and the released networks' sizes."""

import jax
import pytest

from drender.config import EnvEncoderConfig, RendererConfig, UNetConfig, VAEConfig
from drender.models.env_encoder import EnvEncoder
from drender.models.params import abstract_module, flatten, unflatten
from drender.models.registry import AUXILIARY_NETWORKS, NETWORKS, network_of
from drender.models.unet import UNet
from drender.models.vae import VAE

FORWARD_UNET = UNetConfig(
    in_channels=24,
    cross_attention_dim=(320, 640, 1280, 1280),
    temporal_cross_attention_dim=None,
    multi_res_encoder_hidden_states=True,
)


@pytest.mark.parametrize(
    ("cls", "config", "parameters", "tensors"),
    [
        (UNet, UNetConfig(context_embedding_type="clip"), 1_524_639_466, 1429),
        (UNet, FORWARD_UNET, 1_473_513_642, 1316),
        (VAE, VAEConfig(), 97_742_847, 374),
        (EnvEncoder, EnvEncoderConfig(), 161_462_720, 76),
    ],
)
def test_full_size_networks_have_the_released_parameters(cls, config, parameters, tensors):
    leaves = jax.tree.leaves(abstract_module(cls, config)[1])
    assert (sum(leaf.size for leaf in leaves), len(leaves)) == (parameters, tensors)


def test_unflatten_inverts_flatten():
    tree = {"blocks": {0: {"kernel": 1.0, "bias": 2.0}, 10: {"kernel": 3.0}}, "scale": 4.0}
    leaves = flatten(tree)
    assert leaves == {"blocks.0.bias": 2.0, "blocks.0.kernel": 1.0, "blocks.10.kernel": 3.0, "scale": 4.0}
    assert unflatten(leaves) == tree


def test_every_network_is_configured_by_the_renderer():
    config = RendererConfig("forward", env_encoder=EnvEncoderConfig())
    for name, cls in NETWORKS.items():
        assert network_of(config, name) == (cls, getattr(config, name))
    for name, cls in AUXILIARY_NETWORKS.items():
        assert network_of(config, name) == (cls, config.env_encoder)
