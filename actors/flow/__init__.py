"""Moves units through a run: lanes, slots for workers, queues, placement, pools, events; no models, and nothing of plans."""
