"""Describes a model from its files alone: capabilities, families, identity, licences; free of torch."""
