"""Holds units of work and their results: units, passes, ranking, results, metadata rows; free of torch."""
