"""Holds what a Python program calls: render, plan and open a dataset; everything in it is done by the rooms below."""
