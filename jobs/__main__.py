"""`python -m jobs` is the command `promptmill`."""

from jobs.cli import main

if __name__ == "__main__":
    main()
