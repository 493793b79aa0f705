"""Calibration: what drafts cost and keep on a sample of a manifest, measured, and the cheapest cascade that keeps enough."""
