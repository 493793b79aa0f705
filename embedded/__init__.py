"""The embedded model family: its world, its oracle, its training, its weights."""
