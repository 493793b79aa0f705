"""Runs a plan to its end: opens shards, settles units, commits, counts; no terminal, no pages."""
