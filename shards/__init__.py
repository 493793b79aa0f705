"""Stores datasets: parts, tars, Parquet, images, commits, on disks and object stores; knows neither Ray nor torch."""
