"""Renders units with diffusion models: loading, slots, batches, conditioning, tuning; knows nothing of scores."""
