"""Says what a model can do and what it is, from its files alone: capabilities, families, identity, licences; free of torch."""
