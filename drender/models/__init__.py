"""The networks, as `flax.nnx` modules: UNet, VAE, environment encoder, and LoRA beside them.

Read them from small to large: `layers`, `attention` and `transformer`, then `vae`, `unet` and `env_encoder`. Attributes
have the names of the released checkpoints, so that conversion is one rule in both directions (see
`checkpoints/convert.py`). A module computes in the dtype of its parameters.

Shapes in signatures: b batch, f frames, h w grid, c channels, n heads, d head size, t tokens; u tokens and e channels
of a context. `rows` is the batch axis of a layer to which clips, frames or positions are alike, such as (b f).
"""
