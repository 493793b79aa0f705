"""Holds the embedded family of models, which promptmill brings along, and the code that trained the family.

The folder imports nothing else of promptmill's.
"""
