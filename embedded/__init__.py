"""Holds the embedded family of models, which promptmill brings along, and what trained it; imports nothing else of promptmill's."""
