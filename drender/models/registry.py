"""TODO."""

from drender.models.env_encoder import EnvEncoder
from drender.models.unet import UNet
from drender.models.vae import VAE

NETWORKS = {"unet": UNet, "vae": VAE, "env_encoder": EnvEncoder}
