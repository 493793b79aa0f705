"""The config schema and the YAML presets."""
