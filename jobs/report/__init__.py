"""Makes the report of a dataset, one HTML file; reads a dataset and changes nothing in it."""
