"""Holds the workers of a run, generator, scorer and assembler, and what each asks and tells; no plans, no commands."""

import os

# Before Ray is imported: nothing is reported to anyone, and zero GPUs for an actor leaves its environment alone.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Every error is ours to handle: of an actor's two results the second, which nobody asks for then, has it too.
os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Under `uv run` Ray would ship the current folder to the workers, and have them look for modules there.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
