"""Finds the files that promptmill brings along: its folders, the presets, what pins its libraries."""

from pathlib import Path

# Resolved, since `promptmill/` of a checkout holds links: the repository there, the package `promptmill` where it is installed.
ROOT = Path(__file__).resolve().parents[1]
PRESETS = ROOT / "configs" / "presets"
PROJECT = ROOT / "pyproject.toml"
LOCK = ROOT / "requirements.lock"
