"""Turns requests into images, scores and ranks with torch, diffusers and open_clip; knows nothing of Ray."""
