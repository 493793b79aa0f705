"""Starts, joins and watches Ray, and keeps strangers' files and addresses away from it; nothing of units or lanes."""
