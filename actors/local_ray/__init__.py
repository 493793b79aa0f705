"""Starts, joins and watches Ray, and keeps strangers' files and addresses away from Ray; nothing of units or lanes."""
