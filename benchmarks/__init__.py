"""Measures promptmill, one command a module; no measurement is a timed test."""
