"""Datasets with right hashes and hostile contents: what a stranger makes who knows promptmill's formats as well as we do."""
