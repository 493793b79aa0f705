"""Shows people how things stand: progress, summaries, contact sheets, printed lines; changes nothing in a dataset."""
