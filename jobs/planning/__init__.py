"""Makes plans and reads them: what a manifest and a config become, what has changed since; no Ray, no rendering but to estimate."""
