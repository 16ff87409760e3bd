"""Render G-buffers by plain image-based lighting, the baseline without learning of the forward renderer.

Split-sum shading (Karis 2013, "Real Shading in Unreal Engine 4"): Lambertian irradiance, plus the environment filtered
by a GGX lobe around the mirror direction times an analytic environment BRDF. Shadows and interreflection are missing.
The light is given by the environment maps that condition the forward renderer.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from drender.media.color import linear_to_srgb_jnp, srgb_to_linear
from drender.media.encodings import decode_normal

MAX_LOG = np.log1p(10_000.0)  # log(1 + radiance) at which `env_log` is 1
SHARP = 0.05  # least roughness of a lobe, which covers a few pixels of the map


def shade(
    buffers: dict[str, Float[np.ndarray, "f h w 3"]], environment: dict[str, Float[np.ndarray, "f H W 3"]], fov: float
) -> Float[np.ndarray, "f h w 3"]:
    """Return sRGB frames of G-buffers under `environment_maps`; `fov` is vertical, in radians."""
    radiance = np.expm1(srgb_to_linear(environment["env_log"]) * MAX_LOG).astype(np.float32)
    towards = decode_normal(environment["env_nrm"])  # direction in camera space of each pixel of the map
    height, width = buffers["depth"].shape[1:3]
    y, x = np.meshgrid(
        -(2 * np.arange(height) + 1) / height + 1, (2 * np.arange(width) + 1) / height - width / height, indexing="ij"
    )
    ray = np.stack([x * np.tan(fov / 2), y * np.tan(fov / 2), -np.ones_like(x)], axis=-1)
    ray = (ray / np.linalg.norm(ray, axis=-1, keepdims=True)).astype(np.float32)
    frames = []
    for i in range(len(buffers["depth"])):
        frame = {name: images[i] for name, images in buffers.items()}
        frame["basecolor"] = srgb_to_linear(frame["basecolor"])
        light = _lights(radiance[min(i, len(radiance) - 1)], towards[min(i, len(towards) - 1)])
        frames.append(np.asarray(_shade(frame, decode_normal(frame["normal"]), ray, *light)))
    return np.stack(frames)


def _lights(radiance: Float[np.ndarray, "H W 3"], towards: Float[np.ndarray, "H W 3"]) -> tuple[np.ndarray, ...]:
    """Return the pixels of a map as lights: direction, solid angle, and radiance times solid angle."""
    height, width = radiance.shape[:2]
    share = np.sin(np.pi * np.linspace(1 / height, 1 - 1 / height, height))
    solid_angle = np.repeat(share / share.sum() * 4 * np.pi / width, width)[:, None].astype(np.float32)
    return towards.reshape(-1, 3), solid_angle, radiance.reshape(-1, 3) * solid_angle


@jax.jit
def _shade(buffers: dict, normal: Array, ray: Array, towards: Array, solid_angle: Array, power: Array) -> Array:
    """Shade one frame of linear basecolor."""
    base, metallic, roughness = buffers["basecolor"], buffers["metallic"][..., :1], buffers["roughness"][..., :1]
    facing = jnp.clip(-jnp.sum(normal * ray, axis=-1, keepdims=True), 0.0, 1.0)
    mirrored = ray - 2 * jnp.sum(ray * normal, axis=-1, keepdims=True) * normal
    diffuse = jnp.maximum(normal @ towards.T, 0) @ power / jnp.pi
    specular = _filtered(mirrored, roughness, towards, solid_angle, power)
    reflectance = 0.04 * (1 - metallic) + base * metallic
    scale, bias = _environment_brdf(roughness, facing)
    lit = base * (1 - metallic) * diffuse + specular * (reflectance * scale + bias)
    background = _filtered(ray, jnp.full_like(roughness, SHARP), towards, solid_angle, power)
    return linear_to_srgb_jnp(jnp.clip(jnp.where(buffers["depth"][..., :1] >= 1, background, lit), 0, 1))


def _filtered(direction: Array, roughness: Array, towards: Array, solid_angle: Array, power: Array) -> Array:
    """Return the mean radiance under a GGX lobe around each direction, with n = v = r as in Karis 2013."""
    cosine = direction @ towards.T
    half = (1 + cosine) / 2  # squared cosine between the direction and the half vector
    alpha = jnp.maximum(roughness, SHARP) ** 2
    weight = jnp.maximum(cosine, 0) * (alpha / (half * (alpha**2 - 1) + 1)) ** 2
    return (weight @ power) / jnp.maximum(weight @ solid_angle, 1e-9)


def _environment_brdf(roughness: Array, facing: Array) -> tuple[Array, Array]:
    """Return scale and bias of the reflectance (Karis 2014, "Physically Based Shading on Mobile")."""
    r = roughness * jnp.array([-1, -0.0275, -0.572, 0.022]) + jnp.array([1, 0.0425, 1.04, -0.04])
    a = jnp.minimum(r[..., :1] ** 2, 2 ** (-9.28 * facing)) * r[..., :1] + r[..., 1:2]
    return -1.04 * a + r[..., 2:3], 1.04 * a + r[..., 3:]
