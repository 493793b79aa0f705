"""The Ray actor classes, generator and scorer, and the pools they live in."""
