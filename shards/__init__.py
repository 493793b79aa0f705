"""Parts, tars, Parquet, images on disk, storage, commits; knows neither Ray nor torch."""
