"""Stores datasets: parts, tars, Parquet files, images, commit records, on disks and object stores; knows neither Ray nor torch."""
