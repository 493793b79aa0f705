"""Measures the cost and the quality of drafts on a sample of a manifest, and chooses the cheapest cascade that keeps enough."""
