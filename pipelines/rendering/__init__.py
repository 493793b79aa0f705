"""Renders units with diffusion models: loading, slots, batches, conditioning, tuning; nothing of scores."""
