"""DiffusionRenderer in JAX: neural inverse and forward rendering with video diffusion models."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drender.errors import InputError
    from drender.lighting.environment import environment_maps
    from drender.renderers.forward import ForwardRenderer
    from drender.renderers.inverse import InverseRenderer

__all__ = ["ForwardRenderer", "InputError", "InverseRenderer", "environment_maps"]

_MODULES = {
    "ForwardRenderer": "renderers.forward",
    "InputError": "errors",
    "InverseRenderer": "renderers.inverse",
    "environment_maps": "lighting.environment",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, because JAX takes seconds to import and `--help` does not need it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
