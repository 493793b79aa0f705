"""Reads manifests and checks the requests in them; imports neither Ray nor torch."""
