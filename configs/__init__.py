"""Holds the schema of configs and the YAML presets; imports nothing else of promptmill's."""
