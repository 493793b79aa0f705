"""Names the one package that Python sees: its folders are links to those of the same names beside it."""
