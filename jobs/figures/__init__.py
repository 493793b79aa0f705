"""Computes the figures of a dataset from its metadata: samples of shards, digests, the gain by ranking; no words, no pictures."""
