"""The example of a training set for a ControlNet renders images with their maps, and a ControlNet is trained with them."""

import io
import json
import sys

import datasets
import numpy as np
import torch
from diffusers import ControlNetModel
from PIL import Image

from promptmill.embedded.pictures import canny
from promptmill.shards.tars import read_tar
from tests.examples.readme import commands, done


def test_the_readmes_commands_render_images_with_maps_and_train_with_them(checkout):
    make, run, train = commands("controlnet-training", {"--rows 40": "--rows 6"})
    done(make, checkout)
    done(f"{run} --set defaults.steps=2", checkout)
    trained = json.loads(done(train, checkout))
    assert len(trained["losses"]) == 2 and np.isfinite(trained["losses"]).all()
    assert trained["fixed batch"]["before"] != trained["fixed batch"]["after"]

    folder = checkout / "runs/controlnet"
    samples = [*read_tar((folder / "dataset/data/000000.tar").read_bytes())]
    assert len(samples) == 6
    for number, sample in enumerate(samples):
        picture = np.asarray(Image.open(folder / f"pictures/{number:04d}.png"))
        seen = np.asarray(Image.open(io.BytesIO(sample.files["control.0.png"])))
        assert (seen == canny(picture)).mean() > 0.99, "the map is not that of the row's picture"

    net = ControlNetModel.from_pretrained(folder / "net")
    # These begin as zeros, and the second step is the first one that they change more than themselves.
    assert all(torch.any(block.weight != 0) for block in net.controlnet_down_blocks)

    # The columns that diffusers' own script asks for, and how it is called.
    rows = datasets.load_dataset(str(folder / "dataset"), split="train", cache_dir=str(checkout / "cache"))
    assert rows[0]["png"].size == rows[0]["control.0.png"].size == (64, 64) and rows[0]["txt"]
    script = checkout / "script.py"
    script.write_text("import json, sys; print(json.dumps(sys.argv[1:]))", encoding="utf-8")
    by_script = "examples/controlnet-training/train_by_diffusers.py"
    said = done(f"{sys.executable} {by_script} {folder}/dataset --script {script} --lr_warmup_steps=0", checkout)
    given = dict(option.split("=", 1) for option in json.loads(said))
    columns = [given[f"--{name}"] for name in ("image_column", "conditioning_image_column", "caption_column")]
    assert {*columns} <= {*rows.column_names} and given["--max_train_steps"] == "2" and given["--lr_warmup_steps"] == "0"
    for name in ("pretrained_model_name_or_path", "controlnet_model_name_or_path", "dataset_name"):
        assert (checkout / given[f"--{name}"]).is_dir()
