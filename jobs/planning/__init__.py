"""Makes plans and reads them: the shards of a manifest and a config, the changes since; no Ray, no rendering but to estimate."""
