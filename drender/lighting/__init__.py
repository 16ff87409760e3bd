"""Lighting: lat-long HDR maps, the light of a clip, and the images that light the forward renderer."""
