"""The inverse and the forward renderer: arrays in, arrays out."""
