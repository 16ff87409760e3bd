"""The BRDF of G-buffers: Disney's diffuse lobe (Burley 2012), and GGX with Smith's masking and Schlick's Fresnel."""

import numpy as np
from jaxtyping import Float, Float32

Points = Float[np.ndarray, "p 3"]
MIN_ROUGHNESS = 0.2  # sharper highlights would fall between the directions of a coarse grid


def light_kernels(
    normals: Points, views: Points, basecolor: Points, roughness: Float[np.ndarray, "p 1"],
    metallic: Float[np.ndarray, "p 1"], directions: Float[np.ndarray, "j 3"],
) -> Float32[np.ndarray, "3 p j"]:  # fmt: skip
    """Return BRDF times cosine, for red, green and blue, of light from each direction at each surface point.

    Args:
      normals, views, directions: unit vectors; views point to the camera, directions to the light.
      basecolor, roughness: linear; at least MIN_ROUGHNESS is used.
    """
    n_l = normals @ directions.T
    n_v = np.maximum((normals * views).sum(-1, keepdims=True), 1e-3)
    l_h = np.sqrt(np.clip((1 + views @ directions.T) / 2, 1e-6, 1))  # cosine of light and half vector
    n_h = np.clip((n_l + n_v) / (2 * l_h), 0, 1)
    n_l = np.maximum(n_l, 0)
    roughness = np.maximum(roughness, MIN_ROUGHNESS)
    f90 = 0.5 + 2 * roughness * l_h**2
    diffuse = (1 + (f90 - 1) * (1 - n_l) ** 5) * (1 + (f90 - 1) * (1 - n_v) ** 5) * n_l / np.pi
    squared = roughness**4  # GGX's α²
    ggx = squared / (np.pi * (n_h**2 * (squared - 1) + 1) ** 2)

    def smith(cosine):  # masking over the cosine
        return 2 / (cosine + np.sqrt(squared + (1 - squared) * cosine**2))

    mirror = ggx * smith(n_l) * smith(n_v) / 4 * n_l
    fresnel = (1 - l_h) ** 5
    scattered = basecolor * (1 - metallic)
    reflected = 0.04 * (1 - metallic) + basecolor * metallic
    kernels = np.empty((3, *n_l.shape), np.float32)
    for c in range(3):
        specular = mirror * (reflected[:, c, None] * (1 - fresnel) + fresnel)
        kernels[c] = scattered[:, c, None] * diffuse + specular
    return kernels
