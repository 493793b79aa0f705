"""Computes the figures of a dataset from its metadata: samples of shards, digests, what ranking gained; no words, no pictures."""
