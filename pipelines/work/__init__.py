"""Holds what work is and what becomes of it: units, passes, ranking, results, metadata rows; free of torch."""
