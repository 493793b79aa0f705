"""Reading and checking requests; knows neither Ray nor torch."""
