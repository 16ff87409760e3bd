"""What is learnt: the losses of the four objectives, as functions of parameters, a batch and a key.

    inverse      G-buffers from RGB, one random buffer per row           (Liang et al. 2025, section 4.2)
    forward      RGB from G-buffers and light, the light's encoder frozen (section 4.1)
    environment  that encoder, as the first half of an auto-encoder of environment images
    vae          the auto-encoder of frames, with its temporal decoder

Parameters are nested dicts per component, in the dtype that is computed in; losses are float32. A batch is what
`data.py` yields; its images are pixels in [0, 1] or, from cached latents, unscaled VAE means.
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
from drender.models import lora
from drender.models.params import abstract_module
from drender.models.registry import network_of
from drender.sharding import ROWS
from drender.training.config import LossConfig

Params = Mapping[str, dict]
Batch = Mapping[str, Array]
Loss = tuple[Float[Array, ""], dict[str, Float[Array, ""]]]


# Frames per second − 1, motion bucket and noise: what the samplers tell the network too.
MICRO_CONDITIONING = (6.0, 127.0, 0.0)


@dataclass(frozen=True)
class LossContext:
    """Networks and how they are computed, without their parameters.

    Attributes:
      config: the renderer.
      loss: the loss's numbers.
      latent: images of a batch are cached latents.
      images_only: every row is of unrelated images: temporal branches are not computed at all.
      remat: recompute blocks in the backward pass.
      mesh: whose `frames` axis shares the frames of a row.
      lora_on_all_rows: LoRA factors act on all rows, and not only on those of real footage.
    """

    config: RendererConfig
    loss: LossConfig
    latent: bool = False
    images_only: bool = False
    remat: bool = False
    mesh: Mesh | None = None
    lora_on_all_rows: bool = False

    def network(self, params: Params, name: str) -> nnx.Module:
        """One network with its parameters."""
        return nnx.merge(abstract_module(*network_of(self.config, name))[0], params[name])

    def latents(self, params: Params, images: Float[Array, "b *i f h w c"]) -> Float[Array, "b *i f h8 w8 d"]:
        """Unscaled VAE means of images in [0, 1]; cached ones are what they are."""
        if self.latent:
            return self.spread(images.astype(jnp.float32))
        vae = self.network(params, "vae")
        flat = images.reshape(images.shape[0], -1, *images.shape[-3:])
        # One image of every row at a time: memory stays bounded, and every device encodes its own rows.
        means = jax.lax.map(lambda x: vae.encode(x[:, None] * 2 - 1)[:, 0], rearrange(flat, "b n h w c -> n b h w c"))
        means = rearrange(means, "n b h w c -> b n h w c").reshape(*images.shape[:-3], *means.shape[-3:])
        return self.spread(jax.lax.stop_gradient(means))

    def spread(self, latents: Float[Array, "b *i f h w c"]) -> Float[Array, "b *i f h w c"]:
        """Latents with their rows and frames spread over the mesh."""
        if self.mesh is None or self.mesh.shape["frames"] == 1:
            return latents
        spec = P(ROWS, *[None] * (latents.ndim - 5), "frames")
        return jax.lax.with_sharding_constraint(latents, NamedSharding(self.mesh, spec))


# --- the renderers ---------------------------------------------------------------------------------------------------


def inverse_loss(model: LossContext, params: Params, batch: Batch, key: Key[Array, ""]) -> Loss:
    """batch: rgb, buffer [b, f, h, w, C], domain [b], image_only, real [b]."""
    keys = jax.random.split(key, 3)
    config = model.config
    rgb, strength = condition_noise(model.loss, batch["rgb"][:, None], keys[0])
    latents = model.latents(params, jnp.concatenate([rgb, batch["buffer"][:, None]], axis=1))
    condition, target = latents[:, :1], latents[:, 1]
    condition = (
        condition * condition_keep_mask(model.loss, keys[1], condition.shape[:2])[0][..., None, None, None, None]
    )
    context = jnp.zeros((len(target), 1, 1, config.unet.cross_attention_dim[-1]))
    return denoising_loss(model, params, target, condition, context, batch["domain"], strength, batch, keys[2])


def forward_loss(model: LossContext, params: Params, batch: Batch, key: Key[Array, ""]) -> Loss:
    """batch: rgb [b, f, h, w, C], conditions [b, i, f, h, w, C], environment [b, e, f, H, W, C], image_only, real."""
    keys = jax.random.split(key, 3)
    noisy, strength = condition_noise(model.loss, batch["conditions"], keys[0])
    latents = model.latents(params, jnp.concatenate([noisy, batch["rgb"][:, None]], axis=1))
    conditions, target = latents[:, :-1], latents[:, -1]
    kept, kept_light = condition_keep_mask(model.loss, keys[1], conditions.shape[:2])
    conditions = conditions * kept[..., None, None, None, None]
    tokens = light_tokens(model, params, batch["environment"])
    # Attention over zeros is attention over no light at all, as the sampler leaves it out.
    context = [level * kept_light[:, None, None, None] for level in tokens]
    return denoising_loss(model, params, target, conditions, context, None, strength, batch, keys[2])


def denoising_loss(
    model: LossContext,
    params: Params,
    target: Float[Array, "b f h w c"],
    conditions: Float[Array, "b i f h w c"],
    context: Array | list[Array],
    domain: Array | None,
    strength: Float[Array, " b"],
    batch: Batch,
    key: Key[Array, ""],
) -> Loss:
    """EDM's loss with v-prediction: the mean of (F − v)², at a noise level per row (Karras et al. 2022, section 5).

    The deterministic variant asks for −x₀ from zeros at the highest level instead, where v is −x₀ (to one in 10⁵).

    With `loss.temporal`, so much of the mean square is added of what the error changes from a frame to the next:
    temporal gradient matching (Chen et al. 2025, Video Depth Anything). An error that stays weighs less than one that
    flickers.

    Args:
      target, conditions: unscaled latents.
      context, domain: as `UNet` takes them.
      strength: of the noise added to the conditions, which the network is told.
    """
    config, loss = model.config, model.loss
    target = target * config.vae.scaling_factor
    if config.scale_cond_latents:
        conditions = conditions * config.vae.scaling_factor
    b = len(target)
    if loss.deterministic:
        sigma, x, aim = jnp.full((b,), config.scheduler.sigma_max), jnp.zeros_like(target), -target
    else:
        keys = jax.random.split(key)
        sigma = jnp.exp(loss.log_sigma_mean + loss.log_sigma_std * jax.random.normal(keys[0], (b,)))
        noise, level = jax.random.normal(keys[1], target.shape), sigma[:, None, None, None, None]
        x = diffusion.scale_model_input(diffusion.add_noise(target, noise, level), level)
        aim = diffusion.v_target(target, noise, level)
    unet = model.network(params, "unet")
    if "lora" in params:
        gate = jnp.ones(b) if model.lora_on_all_rows else batch["real"].astype(jnp.float32)
        lora.adapt(unet, params["lora"], gate)
    micro = jnp.broadcast_to(jnp.asarray(MICRO_CONDITIONING), (b, 3)).at[:, 2].set(strength)
    prediction = unet(
        model.spread(jnp.concatenate([x, rearrange(conditions, "b i f h w c -> b f h w (i c)")], axis=-1)),
        diffusion.c_noise(sigma),
        context,
        micro,
        domain,
        True if model.images_only else batch["image_only"],
        model.remat,
    )
    error = prediction - aim
    value = jnp.mean(error**2)
    if not loss.temporal:
        return value, {"loss": value}
    flicker = jnp.diff(error, axis=1) * ~batch["image_only"][:, None, None, None, None]
    flicker = jnp.mean(flicker**2)
    return value + loss.temporal * flicker, {"loss": value, "flicker": flicker}


def condition_keep_mask(
    loss: LossConfig, key: Key[Array, ""], shape: tuple[int, int]
) -> tuple[Float[Array, "b i"], Float[Array, " b"]]:
    """Which of i conditions of b rows, and whose light, stay: 1, or 0 for those dropped alone or all together."""
    keys = jax.random.split(key)
    alone = jax.random.bernoulli(keys[0], 1 - loss.condition_dropout, (shape[0], shape[1] + 1))
    together = jax.random.bernoulli(keys[1], 1 - loss.all_dropout, (shape[0], 1))
    kept = (alone & together).astype(jnp.float32)
    return kept[:, :-1], kept[:, -1]


def condition_noise(
    loss: LossConfig, images: Float[Array, "b i f h w c"], key: Key[Array, ""]
) -> tuple[Float[Array, "b i f h w c"], Float[Array, " b"]]:
    """The conditions' pixels with noise of a random strength per row, and that strength."""
    b = len(images)
    if loss.condition_noise is None:
        return images, jnp.full((b,), MICRO_CONDITIONING[2])
    mean, deviation = loss.condition_noise
    keys = jax.random.split(key)
    strength = jnp.exp(mean + deviation * jax.random.normal(keys[0], (b,)))
    # Pixels in [0, 1] have half the range that the strength is told for.
    noise = jax.random.normal(keys[1], images.shape) * (strength / 2)[:, None, None, None, None, None]
    return images + noise, strength


def light_tokens(
    model: LossContext, params: Params, environment: Float[Array, "b e f H W C"]
) -> list[Float[Array, "b f _ _"]]:
    """The frozen encoder's features of the environment images, per level."""
    if model.config.env_encoder.latent_encoder:
        images = model.latents(params, environment) * model.config.vae.scaling_factor
    else:
        images = environment * 2 - 1
    return model.network(params, "env_encoder")(rearrange(images, "b e f h w c -> b f h w (e c)"))


# --- the environment's encoder ---------------------------------------------------------------------------------------


def environment_loss(model: LossContext, params: Params, batch: Batch, key: Key[Array, ""]) -> Loss:
    """‖h − D(E(h), E_dir(n))‖², h the latents of the light's images, n those of its directions (section 4.1).

    batch: environment [b, e, f, H, W, C], in the order of `in_labels`. The metric `relative` is 1 for a decoder that
    knows no more than the mean.
    """
    latents = model.latents(params, batch["environment"]) * model.config.vae.scaling_factor
    light = jnp.concatenate([labelled(model, latents, label) for label in ("env_ldr", "env_log")], axis=-1)
    value = jnp.mean((decoded_light(model, params, latents) - light) ** 2)
    return value, {"loss": value, "relative": value / jnp.var(light)}


def decoded_light(
    model: LossContext, params: Params, latents: Float[Array, "b e f h w c"]
) -> Float[Array, "b f h w c2"]:
    """What the decoder makes of the encoder's features: scaled latents of env_ldr and env_log."""
    light = model.network(params, "env_encoder").features(
        rearrange(latents, "b e f h w c -> b f h w (e c)"), model.remat
    )
    asked = model.network(params, "nrm_encoder").features(labelled(model, latents, "env_nrm"), model.remat)
    return model.network(params, "env_decoder")(light, asked, model.remat)


def labelled(model: LossContext, latents: Float[Array, "b e f h w c"], label: str) -> Float[Array, "b f h w c"]:
    return latents[:, model.config.env_encoder.in_labels.index(label)]


# --- the auto-encoder of frames --------------------------------------------------------------------------------------


def vae_loss(model: LossContext, params: Params, batch: Batch, key: Key[Array, ""]) -> Loss:
    """Mean absolute and squared error of the reconstruction, and the weighted divergence from a unit Gaussian.

    batch: images [b, f, h, w, 3]. The metric `latent_std` tells the `scaling_factor` to set afterwards: its inverse.
    """
    vae = model.network(params, "vae")
    images = batch["images"] * 2 - 1
    mean, log_variance = vae.moments(images, model.remat)
    latents = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
    error = vae.decode(latents, model.remat, model.images_only) - images
    divergence = jnp.mean(mean**2 + jnp.exp(log_variance) - 1 - log_variance) / 2
    absolute, squared = jnp.mean(jnp.abs(error)), jnp.mean(error**2)
    value = absolute + squared + model.loss.kl * divergence
    psnr = -10 * jnp.log10(squared / 4)
    return value, {"loss": value, "kl": divergence, "psnr": psnr, "latent_std": jnp.std(mean)}


# --- by name ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Objective:
    """An objective.

    Attributes:
      loss: (model, params, batch, key) -> value and metrics.
      kind: of the renderer whose parts are trained.
      trained: components that learn unless told otherwise.
      frozen: components that are computed with and do not learn; the VAE is among them unless latents are cached.
    """

    loss: Callable[[LossContext, Params, Batch, Array], Loss]
    kind: str
    trained: tuple[str, ...]
    frozen: tuple[str, ...] = ()


OBJECTIVES = {
    "inverse": Objective(inverse_loss, "inverse", ("unet",), ("vae",)),
    "forward": Objective(forward_loss, "forward", ("unet",), ("env_encoder", "vae")),
    "environment": Objective(environment_loss, "forward", ("env_encoder", "nrm_encoder", "env_decoder"), ("vae",)),
    "vae": Objective(vae_loss, "svd", ("vae",)),
}
