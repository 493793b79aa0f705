"""Begins a submitted job on its cluster: `python -m promptmill.jobs.cli.landing CONFIG --out OUT [options of run]`.

Looks first whether Python and the libraries are there, before importing any: a traceback of an import tells a person little.
"""

import sys
from importlib.metadata import PackageNotFoundError, version

NEEDED = (
    "ray",
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "open_clip_torch",
    "pyarrow",
    "pydantic",
    "obstore",
    "s3fs",
    "webdataset",
)
USAGE = 2


def missing() -> list[str]:
    """The libraries that this Python lacks."""
    lacking = []
    for name in NEEDED:
        try:
            version(name)
        except PackageNotFoundError:
            lacking.append(name)
    return lacking


def main() -> None:
    """Run what was submitted, on the cluster that this is."""
    lacking = missing()
    if lacking:
        remedy = "start Ray on its nodes with promptmill's .venv/bin first on the PATH, or submit with --install"
        print(f"{sys.executable} on the cluster lacks {', '.join(lacking)}; {remedy}", file=sys.stderr)
        sys.exit(USAGE)
    from promptmill.jobs.cli import main as command

    # The driver of an earlier submission may have gone with its node a moment ago.
    command(["run", *sys.argv[1:], "--address", "auto", "--wait", "90"])


if __name__ == "__main__":
    main()
