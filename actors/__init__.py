"""Holds the workers of a run, generator, scorer and assembler, and their messages; no plans, no commands."""

import os

# Set before Ray is imported: Ray reports nothing to anyone, and zero GPUs for an actor leave its environment alone.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Promptmill handles every error itself: the second of an actor's two results, which is then never fetched, has the error too.
os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Under `uv run` Ray would ship the current folder to the workers, which would look for modules there.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
