"""Fills a small disk under a run, makes room, and lets the run end: `unshare -rm python -m tests.chaos.small_disk TEMPLATE FOLDER`.

In a mount namespace of its own, where anybody may mount a tmpfs. Prints what the run said when the disk was full; exits with 0
where it ended well once there was room, and copies what it published to FOLDER/out.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import click

from tests.chaos.site import PUBLISHED, Site


def mount(place: Path, size: str, *options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(place)], check=True)


@click.command()
@click.argument("template", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--size", default="600k")
def main(template: Path, folder: Path, size: str) -> None:
    """Fill a disk."""
    disk = folder / "disk"
    disk.mkdir(parents=True)
    mount(disk, size)
    site = Site.of(template, disk / "site", None, "--seconds", "0")
    full = site.run()
    click.echo(full.errors.strip().splitlines()[-1] if full.errors.strip() else "said nothing")
    if full.status != 1:
        sys.exit(f"the disk was full, and the run ended with {full.status}")
    mount(disk, "64m", "remount")
    site.finish()
    for name in (*PUBLISHED, "index.json", "README.md"):
        source = Path(site.out) / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / "out" / name)


if __name__ == "__main__":
    main()
