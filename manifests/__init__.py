"""Reads manifests and checks the requests in them; knows neither Ray nor torch."""
