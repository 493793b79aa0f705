"""Holds datasets against their records and plans, repairs them, and makes images again to compare; no new images, no new plans."""
