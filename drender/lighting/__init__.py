"""Lighting: lat-long HDR maps, orientation of light and camera, and the images that light the forward renderer."""
