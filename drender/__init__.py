"""DiffusionRenderer in JAX: neural inverse and forward rendering with video diffusion models."""

from drender.errors import InputError
from drender.lighting.environment import environment_maps
from drender.renderers.forward import ForwardRenderer
from drender.renderers.inverse import InverseRenderer

__all__ = ["ForwardRenderer", "InputError", "InverseRenderer", "environment_maps"]
