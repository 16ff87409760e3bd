"""DiffusionRenderer in JAX: neural inverse and forward rendering with video diffusion models."""

from .environment import environment_maps
from .errors import InputError
from .renderers import ForwardRenderer, InverseRenderer

__all__ = ["ForwardRenderer", "InputError", "InverseRenderer", "environment_maps"]
