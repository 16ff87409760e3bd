"""Training data: clips on disk or cached latents in, rows of a batch out."""
