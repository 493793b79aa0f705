"""Scores, ranks and encodes rendered units: CLIP, heads, preference models; knows nothing of denoising."""
