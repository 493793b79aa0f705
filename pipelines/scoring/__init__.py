"""Scores, ranks and encodes rendered units: CLIP, heads, preference models; nothing of denoising."""
