"""Trains a ControlNet on a dataset of images, control maps and prompts, by diffusers' own train_controlnet.py as it stands.

    python examples/controlnet-training/train_by_diffusers.py DATASET [--steps 2] [--to FOLDER] [--script train_controlnet.py] […]

The script is no part of diffusers' wheel. Where no file is given, the script of the installed version is fetched from diffusers'
repository on GitHub. The ControlNet begins as the embedded family's own for edges. All other
options go to the script.
"""

import argparse
import subprocess
import sys
import urllib.request
from pathlib import Path

import diffusers

from promptmill.configs.own_files import ROOT

WEIGHTS = ROOT / "embedded/weights"
FETCHED = "https://raw.githubusercontent.com/huggingface/diffusers/v{version}/examples/controlnet/train_controlnet.py"
# The columns of a dataset of promptmill, by the names of the script's options.
COLUMNS = {"image_column": "png", "conditioning_image_column": "control.0.png", "caption_column": "txt"}


def main() -> int:
    """Run the script on a dataset, and return its exit status."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("dataset", type=Path)
    asked.add_argument("--steps", type=int, default=2)
    asked.add_argument("--to", type=Path, default=Path("net"), help="the folder to save the ControlNet in")
    asked.add_argument("--script", type=Path, help="diffusers' train_controlnet.py; fetched where not given")
    given, more = asked.parse_known_args()
    script = given.script
    if script is None:
        address = FETCHED.format(version=diffusers.__version__)
        script = given.to / "train_controlnet.py"
        script.parent.mkdir(parents=True, exist_ok=True)
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                script.write_bytes(answer.read())
        except OSError as error:
            asked.exit(2, f"{address}: {error}; give a copy of the script by --script\n")
    options = {
        "pretrained_model_name_or_path": WEIGHTS / "pipeline",
        "controlnet_model_name_or_path": WEIGHTS / "controlnet-canny",
        "dataset_name": given.dataset,
        **COLUMNS,
        "output_dir": given.to,
        "cache_dir": given.to / "cache",
        "resolution": 64,
        "train_batch_size": 8,
        "max_train_steps": given.steps,
        "seed": 0,
        "report_to": "all",  # of the trackers that are installed
    }
    command = [sys.executable, str(script), *(f"--{name}={value}" for name, value in options.items()), *more]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
