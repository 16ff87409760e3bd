"""The networks, as `flax.nnx` modules: UNet, VAE, environment encoder, and LoRA beside them.

Read them from small to large: `layers` and `attention`, then `vae`, `env_encoder` and `unet`. Attributes have the names
of the released checkpoints, so that conversion is one rule in both directions (see `checkpoints/convert.py`).
"""
