"""Training and fine-tuning: losses, the step, the loop, and a run on disk."""
