"""The losses of the four objectives, as pure functions of parameters, a batch and a random key.

    inverse      G-buffers from RGB, one random G-buffer per row                   (Liang et al. 2025, section 4.2)
    forward      RGB from G-buffers and light, with the light's encoder frozen     (section 4.1)
    environment  that encoder, as the first half of an auto-encoder of environment images
    vae          the auto-encoder of frames, with its temporal decoder

Parameters are a nested dict per component in the dtype of the computation; losses are float32. A batch is what
`drender.data.loader` yields. Its images are pixels in [0, 1] or, from cached latents, unscaled VAE means.

Shapes: b rows, i conditions, e environment images, f frames, h w latent grid, H W pixels, c channels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Key

from drender import diffusion
from drender.config import RendererConfig
from drender.data.clips import latent_mask
from drender.models import lora
from drender.models.params import abstract_module
from drender.models.registry import network_of
from drender.sharding import ROWS
from drender.training.config import LossConfig
from drender.training.perceptual import perceptual_distance

Params = Mapping[str, dict]
Batch = Mapping[str, Array]
Loss = tuple[Float[Array, ""], dict[str, Float[Array, ""]]]  # the value to minimize, and metrics to log

# SVD's micro-conditioning, as the samplers set it: frames per second − 1, motion bucket, noise augmentation.
MICRO_CONDITIONING = (6.0, 127.0, 0.0)


@dataclass(frozen=True)
class LossSetup:
    """Everything static that a loss depends on."""

    config: RendererConfig
    loss: LossConfig
    latent: bool = False  # batches hold cached latents instead of pixels
    image_only: bool = False  # every row holds unrelated images, so that temporal branches are not computed at all
    remat: bool = False  # recompute blocks in the backward pass
    mesh: Mesh | None = None  # its `frames` axis shards the frames of a row
    lora_on_all_rows: bool = False  # LoRA factors act on all rows instead of those of real sources only

    def network(self, params: Params, name: str) -> nnx.Module:
        """Return a network with its parameters."""
        return nnx.merge(abstract_module(*network_of(self.config, name))[0], params[name])

    def latents(self, params: Params, images: Float[Array, "b *i f h w c"]) -> Float[Array, "b *i f h8 w8 d"]:
        """Return the unscaled VAE means of images in [0, 1]; cached latents are returned as they are."""
        if self.latent:
            return self.shard(images.astype(jnp.float32))
        vae = self.network(params, "vae")
        flat = images.reshape(images.shape[0], -1, *images.shape[-3:])
        # Encode one image of every row at a time: memory is bounded, and every device encodes its own rows.
        means = jax.lax.map(lambda x: vae.encode(x[:, None] * 2 - 1)[:, 0], rearrange(flat, "b n h w c -> n b h w c"))
        means = rearrange(means, "n b h w c -> b n h w c").reshape(*images.shape[:-3], *means.shape[-3:])
        return self.shard(jax.lax.stop_gradient(means))

    def shard(self, latents: Float[Array, "b *i f h w c"]) -> Float[Array, "b *i f h w c"]:
        """Shard the rows and frames of latents over the mesh."""
        if self.mesh is None or self.mesh.shape["frames"] == 1:
            return latents
        spec = P(ROWS, *[None] * (latents.ndim - 5), "frames")
        return jax.lax.with_sharding_constraint(latents, NamedSharding(self.mesh, spec))


# --- the renderers ---------------------------------------------------------------------------------------------------


def inverse_loss(setup: LossSetup, params: Params, batch: Batch, key: Key[Array, ""]) -> Loss:
    """Return the denoising loss of a G-buffer, conditioned on RGB and on the buffer's domain embedding.

    Args:
      batch: rgb, buffer [b, f, H, W, 3]; domain [b]; image_only, real [b].
    """
    context = jnp.zeros((len(batch["rgb"]), 1, 1, setup.config.unet.cross_attention_dim[-1]))
    return denoising_loss(setup, params, batch["rgb"][:, None], batch["buffer"], context, batch, key)


def forward_loss(setup: LossSetup, params: Params, batch: Batch, key: Key[Array, ""]) -> Loss:
    """Return the denoising loss of RGB, conditioned on G-buffers and on the features of the environment images.

    Args:
      batch: rgb [b, f, H, W, 3]; conditions [b, i, f, H, W, 3]; environment [b, e, f, H, W, 3]; image_only, real [b].
    """
    context = light_features(setup, params, batch["environment"])
    return denoising_loss(setup, params, batch["conditions"], batch["rgb"], context, batch, key)


def denoising_loss(
    setup: LossSetup,
    params: Params,
    conditions: Float[Array, "b i f h w c"],
    target: Float[Array, "b f h w c"],
    context: Array | list[Array],
    batch: Batch,
    key: Key[Array, ""],
) -> Loss:
    """Return EDM's loss with v-prediction (Karras et al. 2022, section 5, with one noise level σ per row):

        ln σ ~ N(log_sigma_mean, log_sigma_std²)
        x = (x₀ + σ ε) / √(σ² + 1),   v = (ε − σ x₀) / √(σ² + 1)
        loss = mean (F(x, ln σ / 4) − v)²

    A one-step model has x = 0 and ε = 0 at σ = sigma_max instead, where v is −x₀ to within 10⁻⁶.

    With `loss.consistency` = r above 0, the target is not x₀ but the network's own x̂₀ of the same clip and noise at
    level r σ, without gradient (consistency tuning, Geng et al. 2024, Consistency Models Made Easy, section 3). From
    every level the network then learns where the sampler's path ends, instead of the mean of all its ends.

    With weight w = `loss.temporal_gradient` the loss matches temporal gradients too (Chen et al. 2025, Video Depth
    Anything): loss + w · mean (Δ(F − v))², where Δ is the difference between neighboring frames. A constant error then
    costs less than one that flickers. For one-step models, the weight `loss.perceptual` adds the distance of decoded
    images.

    Args:
      conditions, target: images, or unscaled latents.
      context: of the cross-attention, as `UNet` takes it.
      batch: image_only, real [b]; domain [b] for the inverse renderer; sigma [b], the noise levels in validation, where
        they are not drawn; valid [b, f, H, W, 1], where pixels may be invalid: a latent counts if all its pixels are.
    """
    config, loss, b = setup.config, setup.loss, len(target)
    # The conditions of the network, with noise and dropout.
    condition_key, dropout_key, key = jax.random.split(key, 3)
    conditions, noise_std = add_condition_noise(loss, conditions, condition_key)
    latents = setup.latents(params, jnp.concatenate([conditions, target[:, None]], axis=1))
    conditions, target = latents[:, :-1], latents[:, -1]
    keep, keep_light = condition_keep_mask(loss, dropout_key, conditions.shape[:2])
    conditions = conditions * keep[..., None, None, None, None]
    if isinstance(context, list):  # of light: attention over zeros equals the sampler's unconditional branch
        context = [level * keep_light[:, None, None, None] for level in context]
    x0 = target * config.vae.scaling_factor
    if config.scale_cond_latents:
        conditions = conditions * config.vae.scaling_factor

    unet = setup.network(params, "unet")
    if "lora" in params:
        gate = jnp.ones(b) if setup.lora_on_all_rows else batch["real"].astype(jnp.float32)
        lora.adapt(unet, params["lora"], gate)
    micro_conditioning = jnp.broadcast_to(jnp.asarray(MICRO_CONDITIONING), (b, 3)).at[:, 2].set(noise_std)
    image_only = True if setup.image_only else batch["image_only"]

    def predict(x: Float[Array, "b f h w c"], sigma: Float[Array, " b"]) -> Float[Array, "b f h w c"]:
        """Return the network's F of its input x."""
        inputs = setup.shard(jnp.concatenate([x, rearrange(conditions, "b i f h w c -> b f h w (i c)")], axis=-1))
        time, domain = diffusion.c_noise(sigma), batch.get("domain")
        return unet(inputs, time, context, micro_conditioning, domain, image_only, setup.remat)

    # The prediction and its target at one noise level per row.
    if loss.one_step:
        prediction, v = predict(jnp.zeros_like(x0), jnp.full((b,), config.scheduler.sigma_max)), -x0
    else:
        sigma_key, noise_key = jax.random.split(key)
        sigma = jnp.exp(loss.log_sigma_mean + loss.log_sigma_std * jax.random.normal(sigma_key, (b,)))
        sigma = batch.get("sigma", sigma)
        noise, level = jax.random.normal(noise_key, x0.shape), sigma[:, None, None, None, None]
        v = diffusion.v_target(x0, noise, level)
        if loss.consistency:
            near_sigma, near_level = loss.consistency * sigma, loss.consistency * level
            near = diffusion.add_noise(x0, noise, near_level)
            near_prediction = predict(diffusion.scale_model_input(near, near_level), near_sigma)
            goal = jax.lax.stop_gradient(diffusion.x0_from_v(near, near_prediction, near_level))
            v = v + (x0 - goal) * jnp.sqrt(level**2 + 1) / level  # the v from which `x0_from_v` recovers the goal
        prediction = predict(diffusion.scale_model_input(diffusion.add_noise(x0, noise, level), level), sigma)

    error, valid = prediction - v, valid_latents(setup, batch)
    total = masked_mean(error**2, valid)
    metrics = {"loss": total}
    if loss.temporal_gradient:
        is_clip = ~batch["image_only"][:, None, None, None, None]
        both_valid = None if valid is None else valid[:, 1:] * valid[:, :-1]
        metrics["flicker"] = masked_mean((jnp.diff(error, axis=1) * is_clip) ** 2, both_valid)
        total += loss.temporal_gradient * metrics["flicker"]
    if loss.perceptual:
        predicted = -prediction / config.vae.scaling_factor  # x̂₀ is −F to within 10⁻⁶
        metrics["perceptual"] = perceptual_distance(
            setup.network(params, "vae"), params["lpips"], predicted, target, valid, key, setup.remat
        )
        total += loss.perceptual * metrics["perceptual"]
    return total, metrics


def valid_latents(setup: LossSetup, batch: Batch) -> Float[Array, "b f h w 1"] | None:
    """Return 1 for latents of valid pixels only, else 0; None if all are valid."""
    if "valid" not in batch:
        return None
    return latent_mask(batch["valid"], 1 if setup.latent else setup.config.vae.downscale).astype(jnp.float32)


def masked_mean(values: Float[Array, "b f h w c"], mask: Float[Array, "b f h w 1"] | None) -> Float[Array, ""]:
    """Return the mean of the values inside the mask; 0 if it is empty."""
    if mask is None:
        return jnp.mean(values)
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask) * values.shape[-1], 1)


def condition_keep_mask(
    loss: LossConfig, key: Key[Array, ""], shape: tuple[int, int]
) -> tuple[Float[Array, "b i"], Float[Array, " b"]]:
    """Draw the condition dropout: 1 to keep and 0 to drop, for every condition of every row and for the row's light.

    Args:
      shape: (b, i).
    """
    single_key, all_key = jax.random.split(key)
    keep_single = jax.random.bernoulli(single_key, 1 - loss.condition_dropout, (shape[0], shape[1] + 1))
    keep_all = jax.random.bernoulli(all_key, 1 - loss.all_dropout, (shape[0], 1))
    keep = (keep_single & keep_all).astype(jnp.float32)
    return keep[:, :-1], keep[:, -1]


def add_condition_noise(
    loss: LossConfig, images: Float[Array, "b i f h w c"], key: Key[Array, ""]
) -> tuple[Float[Array, "b i f h w c"], Float[Array, " b"]]:
    """Return the conditions with Gaussian noise, and the noise's standard deviation per row, for pixels in [-1, 1]."""
    b = len(images)
    if loss.condition_noise is None:
        return images, jnp.full((b,), MICRO_CONDITIONING[2])
    log_mean, log_std = loss.condition_noise
    std_key, noise_key = jax.random.split(key)
    noise_std = jnp.exp(log_mean + log_std * jax.random.normal(std_key, (b,)))
    # These pixels are in [0, 1], half the range.
    noise = jax.random.normal(noise_key, images.shape) * (noise_std / 2)[:, None, None, None, None, None]
    return images + noise, noise_std


def light_features(
    setup: LossSetup, params: Params, environment: Float[Array, "b e f H W C"]
) -> list[Float[Array, "b f _ _"]]:
    """Return the environment encoder's features of the environment images, one array per UNet level."""
    if setup.config.env_encoder.latent_encoder:
        images = setup.latents(params, environment) * setup.config.vae.scaling_factor
    else:
        images = environment * 2 - 1
    return setup.network(params, "env_encoder")(rearrange(images, "b e f h w c -> b f h w (e c)"))


# --- the environment's encoder ---------------------------------------------------------------------------------------


def environment_loss(setup: LossSetup, params: Params, batch: Batch, key: Key[Array, ""]) -> Loss:
    """Return the auto-encoder's loss mean (h − D(E(h, n), E_dir(n)))² (Liang et al. 2025, section 4.1).

    E is the environment encoder, h are the latents of `env_ldr` and `env_log`, and n those of the directions `env_nrm`.
    The metric `relative` is 1 for a decoder that predicts the mean.

    Args:
      batch: environment [b, e, f, H, W, 3], in the order of `in_labels`.
    """
    latents = setup.latents(params, batch["environment"]) * setup.config.vae.scaling_factor
    light = jnp.concatenate([select_label(setup, latents, label) for label in ("env_ldr", "env_log")], axis=-1)
    value = jnp.mean((decode_light(setup, params, latents) - light) ** 2)
    return value, {"loss": value, "relative": value / jnp.var(light)}


def decode_light(setup: LossSetup, params: Params, latents: Float[Array, "b e f h w c"]) -> Float[Array, "b f h w c2"]:
    """Return the scaled latents of env_ldr and env_log, reconstructed from the encoder's features."""
    encoder, direction_encoder, decoder = (
        setup.network(params, name) for name in ("env_encoder", "nrm_encoder", "env_decoder")
    )
    features = encoder.features(rearrange(latents, "b e f h w c -> b f h w (e c)"), setup.remat)
    directions = direction_encoder.features(select_label(setup, latents, "env_nrm"), setup.remat)
    return decoder(features, directions, setup.remat)


def select_label(setup: LossSetup, latents: Float[Array, "b e f h w c"], label: str) -> Float[Array, "b f h w c"]:
    """Return the latents of one environment image."""
    return latents[:, setup.config.env_encoder.in_labels.index(label)]


def vae_loss(setup: LossSetup, params: Params, batch: Batch, key: Key[Array, ""]) -> Loss:
    """Return mean |x̂ − x| + mean (x̂ − x)² + kl · KL(N(μ, σ²) ‖ N(0, 1)) for images x and reconstructions x̂.

    The inverse of the metric `latent_std` is the `scaling_factor` to configure afterwards.

    Args:
      batch: images [b, f, H, W, 3].
    """
    vae = setup.network(params, "vae")
    images = batch["images"] * 2 - 1
    mean, log_variance = vae.moments(images, setup.remat)
    latents = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
    error = vae.decode(latents, setup.remat, setup.image_only) - images
    divergence = jnp.mean(mean**2 + jnp.exp(log_variance) - 1 - log_variance) / 2
    absolute, squared = jnp.mean(jnp.abs(error)), jnp.mean(error**2)
    value = absolute + squared + setup.loss.kl * divergence
    psnr = -10 * jnp.log10(squared / 4)
    return value, {"loss": value, "kl": divergence, "psnr": psnr, "latent_std": jnp.std(mean)}


@dataclass(frozen=True)
class Objective:
    """An objective and its components."""

    loss: Callable[[LossSetup, Params, Batch, Array], Loss]
    kind: str  # of the renderer to which the components belong
    trained: tuple[str, ...]  # components that train by default
    frozen: tuple[str, ...] = ()  # components that only compute; cached latents do without the VAE


OBJECTIVES = {
    "inverse": Objective(inverse_loss, "inverse", ("unet",), ("vae",)),
    "forward": Objective(forward_loss, "forward", ("unet",), ("env_encoder", "vae")),
    "environment": Objective(environment_loss, "forward", ("env_encoder", "nrm_encoder", "env_decoder"), ("vae",)),
    "vae": Objective(vae_loss, "svd", ("vae",)),
}
