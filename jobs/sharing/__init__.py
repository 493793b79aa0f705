"""Hands datasets on: to the Hub, as preference pairs, as next manifests, without duplicates; changes nothing in a dataset."""
