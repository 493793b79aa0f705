"""Runs open_clip's own trainer on the shards, unchanged, from the command that its documentation gives.

    python -m benchmarks.trainer                          # renders the quickstart first
    python -m benchmarks.trainer --data runs/quickstart   # or takes a dataset that is there; writes docs/open_clip.md

The trainer wants webdataset 0.2.86 or older, where promptmill's tests use a later one. So it gets an environment of its own: a venv
that looks for what it lacks (torch, open_clip, …) among the packages of the one this runs in.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import click

TRAINING = ("webdataset==0.2.86", "sentencepiece==0.2.3")  # what open_clip_torch[training] asks for besides what is here
BATCH, STEPS = 8, 2
MODEL = "ViT-S-32"


def environment(folder: Path) -> Path:
    """Make a venv with the trainer's own pins before this environment's packages; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "around.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*install, *TRAINING], check=True)
    return python


def command(shards: int) -> list[str]:
    """Return the command that open_clip documents for webdataset, at a size for a processor."""
    numbers = f"{{000000..{shards - 1:06d}}}" if shards > 1 else "000000"
    options = {
        "train-data": f"data/{numbers}.tar",
        "dataset-type": "webdataset",
        "train-num-samples": BATCH * STEPS,
        "batch-size": BATCH,
        "model": MODEL,
        "epochs": 1,
        "warmup": 1,
        "workers": 1,
        "precision": "fp32",
        "log-every-n-steps": 1,
    }
    return ["-m", "open_clip_train.main", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]


def trained(python: Path, data: Path, logs: Path) -> str:
    """Return the trainer's lines on its steps, each without the time of day."""
    shards = len(list((data / "data").glob("*.tar")))
    run = [python, *command(shards), "--logs", logs]
    done = subprocess.run(run, cwd=data, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = [line.partition(" | INFO | ")[2] for line in done.stdout.splitlines()]
    steps = [line for line in lines if line.startswith(("Start epoch", "Train Epoch"))]
    if done.returncode or sum(line.startswith("Train Epoch") for line in steps) != STEPS:
        raise click.ClickException(f"the trainer did not take {STEPS} steps:\n{done.stdout[-4000:]}")
    return "\n".join(steps)


def versions(python: Path) -> str:
    """Return the versions of what took part, as the trainer's own environment sees them."""
    names = ("open_clip_torch", "webdataset", "torch")
    code = f"import importlib.metadata as m; print(', '.join(f'{{name}} {{m.version(name)}}' for name in {names}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


PAGE = """\
# open_clip's trainer on the shards

open_clip's trainer reads promptmill's shards as they are. `python -m benchmarks.trainer` wrote this page, with {versions}, on
processors, with the model `{model}` from nothing.
In the dataset's folder the command

    python {command}

prints these lines when it comes to its steps:

{steps}

Nothing was converted: the trainer takes `png`, `jpg` and `webp` for the image and `txt` for the caption, which is what the tars
hold. The trainer needs `open_clip_torch[training]`, which asks for webdataset 0.2.86 or older. The machine had other work, too.
"""


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), help="A dataset that is there.")
@click.option("--write", type=click.Path(path_type=Path), default=Path("docs/open_clip.md"), show_default=True)
def main(data: Path | None, write: Path) -> None:
    """Let open_clip take two steps on a dataset."""
    with tempfile.TemporaryDirectory() as folder:
        if data is None:
            data = Path(folder) / "quickstart"
            subprocess.run(
                [sys.executable, "-m", "promptmill", "run", "quickstart", "--out", data], check=True, stdout=subprocess.DEVNULL
            )
        python = environment(Path(folder) / "venv")
        steps = trained(python, data.absolute(), Path(folder) / "logs")
        shards = len(list((data / "data").glob("*.tar")))
        shown = " ".join(f"'{part}'" if "{" in part else part for part in command(shards))
        indented = "\n".join(f"    {line}" for line in steps.splitlines())
        write.write_text(PAGE.format(versions=versions(python), model=MODEL, command=shown, steps=indented))
    click.echo(f"{steps}\n{os.fspath(write)}")


if __name__ == "__main__":
    main()
