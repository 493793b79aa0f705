"""Runs the command line: `python -m promptmill` is the command `promptmill`."""

from promptmill.jobs.cli import main

if __name__ == "__main__":
    main()
