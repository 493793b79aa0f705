"""Shows people the state of a run or a dataset: progress, summaries, contact sheets, printed lines; changes no dataset."""
