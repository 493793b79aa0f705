"""Holds the functions that a Python program calls: render, plan and open a dataset; the rooms below do all the work."""
