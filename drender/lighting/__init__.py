"""Lighting: lat-long HDR maps, the light of a clip, and the images that light the forward renderer."""

from drender.lighting.estimation import estimate_environment

__all__ = ["estimate_environment"]
