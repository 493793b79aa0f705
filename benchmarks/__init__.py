"""Measurements, each one command; none of them is a timed test."""
