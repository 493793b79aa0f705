"""Holds the schema of configs and the YAML presets; imports nothing of promptmill's."""
