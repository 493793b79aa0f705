"""Holds the code behind what a person runs: commands, and what they do in rooms of one subject each; no tensors."""

from promptmill import actors as actors  # sets what Ray reads from the environment before anybody imports Ray
